package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mark3labs "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mark3 "github.com/mark3labs/mcp-go/mcp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func serversFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mcp.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGoSDKClient(t *testing.T) {
	n := startNode(t)
	for _, path := range []string{"/mcp/demo", "/mcp"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		asked := 0
		c := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, &mcp.ClientOptions{
			ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
				asked++
				return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"answer": "yes"}}, nil
			},
		})
		s, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: n.http + path}, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		prefix := ""
		if path == "/mcp" {
			prefix = "demo__"
		}
		list, err := s.ListTools(ctx, nil)
		if err != nil || !slices.ContainsFunc(list.Tools, func(t *mcp.Tool) bool { return t.Name == prefix+"echo" }) {
			t.Fatalf("%s: tools %v, %v", path, list, err)
		}
		r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: prefix + "echo", Arguments: map[string]any{"text": "hi"}})
		if err != nil || r.IsError || r.Content[0].(*mcp.TextContent).Text != "hi" {
			t.Errorf("%s: echo = %+v, %v", path, r, err)
		}
		if _, err := s.CallTool(ctx, &mcp.CallToolParams{Name: prefix + "ask", Arguments: map[string]any{"question": "well?"}}); err != nil || asked != 1 {
			t.Errorf("%s: ask: %v, asked %d times", path, err, asked)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: close: %v", path, err)
		}
	}
}

func TestMark3LabsClient(t *testing.T) {
	n := startNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tr, err := transport.NewStreamableHTTP(n.http + "/mcp/demo")
	if err != nil {
		t.Fatal(err)
	}
	c := mark3labs.NewClient(tr)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Initialize(ctx, mark3.InitializeRequest{Params: mark3.InitializeParams{
		ProtocolVersion: mark3.LATEST_PROTOCOL_VERSION, ClientInfo: mark3.Implementation{Name: "e2e", Version: "1"},
	}}); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTools(ctx, mark3.ListToolsRequest{})
	if err != nil || len(list.Tools) < 5 {
		t.Fatalf("tools %v, %v", list, err)
	}
	req := mark3.CallToolRequest{}
	req.Params.Name = "echo"
	req.Params.Arguments = map[string]any{"text": "hi"}
	r, err := c.CallTool(ctx, req)
	if err != nil || r.IsError || r.Content[0].(mark3.TextContent).Text != "hi" {
		t.Errorf("echo = %+v, %v", r, err)
	}
}

func TestTypeScriptClients(t *testing.T) {
	dir, nodejs := peers(t)
	n := startNode(t)
	for generation, version := range map[string]string{"legacy": "2025-11-25", "modern": "2026-07-28"} {
		for path, prefix := range map[string]string{"/mcp/demo": "", "/mcp": "demo__"} {
			r := run(t, 30*time.Second, "", nodejs, filepath.Join(dir, "client.mjs"), generation, n.http+path, prefix+"ask", `{"question":"well?"}`).ok(t)
			r.says(t, `"`+prefix+`echo"`, `yes`, `"version":"`+version+`"`)
		}
	}
}

// TestEverythingOverStdio: the reference server as a child process for each
// session, two clients at once with separate state, and no process left.
func TestEverythingOverStdio(t *testing.T) {
	dir, nodejs := peers(t)
	n := startNode(t, "--demo=false")
	agent := n.attach(t, "everything", "--", nodejs, filepath.Join(dir, "node_modules/@modelcontextprotocol/server-everything/dist/index.js"), "stdio")
	connect := func() *mcp.ClientSession {
		s, err := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, nil).
			Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: n.http + "/mcp/everything"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := connect(), connect()
	if a.ID() == b.ID() {
		t.Fatalf("both clients have session %s", a.ID())
	}
	call := func(s *mcp.ClientSession, tool string, args any) string {
		r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: args})
		if err != nil {
			t.Fatalf("%s: %v", tool, err)
		}
		if len(r.Content) == 0 {
			return ""
		}
		text, _ := r.Content[0].(*mcp.TextContent)
		if text == nil {
			return ""
		}
		return text.Text
	}
	// The toggle is state of the server's process: turned on in one session it
	// must be off in the other.
	const toggle = "toggle-simulated-logging"
	first, second := call(a, toggle, nil), call(b, toggle, nil)
	if !strings.Contains(first, "Started") || !strings.Contains(second, "Started") {
		t.Errorf("toggles say %q and %q: the sessions share a process", first, second)
	}
	if again := call(a, toggle, nil); !strings.Contains(again, "Stopped") {
		t.Errorf("toggle again says %q", again)
	}
	if got := call(a, "echo", map[string]any{"message": "hi"}); !strings.Contains(got, "hi") {
		t.Errorf("echo = %q", got)
	}
	children := childrenOf(t, agent.cmd.Process.Pid)
	if len(children) < 2 {
		t.Fatalf("%d child processes with two sessions open", len(children))
	}
	a.Close()
	b.Close()
	if code := agent.stop(t); code != 0 {
		t.Errorf("agent: exit %d", code)
	}
	eventually(t, 5*time.Second, func() string {
		for _, pid := range children {
			if alive(pid) {
				return "a child process is left"
			}
		}
		return ""
	})
}

// TestEverythingKilled: kill -9 of the agent leaves neither a process nor a
// registry entry.
func TestEverythingKilled(t *testing.T) {
	dir, nodejs := peers(t)
	n := startNode(t, "--demo=false")
	agent := n.attach(t, "everything", "--", "sh", "-c", nodejs+" "+filepath.Join(dir, "node_modules/@modelcontextprotocol/server-everything/dist/index.js")+" stdio; true")
	n.session(t, "everything")
	children := childrenOf(t, agent.cmd.Process.Pid)
	if len(children) < 3 {
		t.Fatalf("%d processes below the agent, want a shell, its node, and the guard", len(children))
	}
	agent.cmd.Process.Kill()
	killed := time.Now()
	eventually(t, time.Second, func() string {
		if a := n.do(t, "GET", "/metrics", ""); !strings.Contains(a.body, "ripstop_registry_servers 0") {
			return "the killed agent's server is still registered"
		}
		return ""
	})
	t.Logf("gone from the registry after %s", time.Since(killed))
	eventually(t, 5*time.Second, func() string {
		for _, pid := range children {
			if alive(pid) {
				return "a child process is left"
			}
		}
		return ""
	})
}
