package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/jsonrpc"
)

// Names of the servers that the lab attaches.
const (
	benchSDKNode   = "sdk-node"
	benchSDKServe  = "sdk-serve"
	benchBareNode  = "bare-node"
	benchBareServe = "bare-serve"
	benchGo        = "go"
	benchRaw       = "bench.raw" // subject of the raw responder
)

// benchLab is the processes a benchmark runs against.
type benchLab struct {
	dir     string
	procs   []*exec.Cmd
	nc      *nats.Conn
	natsURL string
	httpURL string
	sdkURL  string
	bareURL string
}

// openBenchLab starts an MCP server, a node that attaches it, agents that do,
// and waits until all are registered.
func openBenchLab(ctx context.Context) (*benchLab, error) {
	dir, err := os.MkdirTemp("", "ripstop-bench-*")
	if err != nil {
		return nil, err
	}
	l := &benchLab{dir: dir}
	if err := l.open(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *benchLab) open(ctx context.Context) error {
	lines, err := l.start(ctx, 2, "bench", "server")
	if err != nil {
		return err
	}
	l.sdkURL, l.bareURL = lines[0], lines[1]
	file := filepath.Join(l.dir, "mcp.json")
	entry := func(url string) map[string]string { return map[string]string{"url": url} }
	data, err := json.Marshal(map[string]any{"mcpServers": map[string]any{benchSDKNode: entry(l.sdkURL), benchBareNode: entry(l.bareURL)}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	nodeArgs := []string{"start", "--data-dir", filepath.Join(l.dir, "data"), "--nats-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--demo=false", "--servers", file, "--log-level", "warn"}
	if lines, err = l.start(ctx, 5, nodeArgs...); err != nil {
		return err
	}
	for _, line := range lines {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "nats://") {
				l.natsURL = word
			}
			if rest, ok := strings.CutSuffix(word, "/health"); ok {
				l.httpURL = rest
			}
		}
	}
	if l.natsURL == "" || l.httpURL == "" {
		return fmt.Errorf("the node did not say where it listens: %q", lines)
	}
	for _, args := range [][]string{
		{"bench", "server", "--nats", l.natsURL},
		{"serve", benchSDKServe, "--nats", l.natsURL, "--url", l.sdkURL},
		{"serve", benchBareServe, "--nats", l.natsURL, "--url", l.bareURL},
	} {
		if _, err := l.start(ctx, 1, args...); err != nil {
			return err
		}
	}
	if l.nc, err = nats.Connect(l.natsURL); err != nil {
		return err
	}
	return l.awaitServers(ctx, benchSDKNode, benchSDKServe, benchBareNode, benchBareServe, benchGo)
}

// start runs this binary with args and returns the first lines it prints.
func (l *benchLab) start(ctx context.Context, lines int, args ...string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l.procs = append(l.procs, cmd)
	got := make(chan []string, 1)
	go func() { // ends with the process, which close ends
		var head []string
		s := bufio.NewScanner(out)
		for s.Scan() {
			if t := strings.TrimSpace(s.Text()); t != "" && len(head) < lines {
				if head = append(head, t); len(head) == lines {
					got <- head
				}
			}
		}
		close(got)
	}()
	select {
	case head := <-got:
		if len(head) < lines {
			return nil, fmt.Errorf("ripstop %s ended early", strings.Join(args, " "))
		}
		return head, nil
	case <-time.After(20 * time.Second):
		return nil, fmt.Errorf("ripstop %s: not up within 20 s", strings.Join(args, " "))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *benchLab) awaitServers(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := kv.RegistryClient{Conn: l.nc}.List(ctx)
		missing := ""
		for _, name := range names {
			found := false
			for _, i := range list {
				found = found || i.Server == name && len(i.Eras) > 0
			}
			if !found {
				missing = name
			}
		}
		if err == nil && missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("server %s is not registered: %w", missing, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// close ends the processes, in reverse order, and removes their data.
func (l *benchLab) close() {
	if l.nc != nil {
		l.nc.Close()
	}
	for i := len(l.procs) - 1; i >= 0; i-- {
		p := l.procs[i]
		_ = p.Process.Signal(syscall.SIGTERM) // it may have ended
		hard := time.AfterFunc(10*time.Second, func() { _ = p.Process.Kill() })
		_ = p.Wait() // how it ended does not matter here
		hard.Stop()
	}
	_ = os.RemoveAll(l.dir) // a temporary directory
}

func (l *benchLab) cases(f benchFlags) []benchCase {
	web := func(name, url string) benchKind {
		return benchKind{name, func(ctx context.Context) (caller, error) { return openHTTP(ctx, url) }}
	}
	plain := func(name, subject string) benchKind {
		return benchKind{name, func(context.Context) (caller, error) {
			return &natsCaller{l.nc, subject, echoCall("1")}, nil
		}}
	}
	var out []benchCase
	if f.only != "nats" {
		out = append(out,
			benchCase{"http, Go SDK server", f.http, []benchKind{web("direct", l.sdkURL), web("node", l.httpURL+"/mcp/"+benchSDKNode), web("serve", l.httpURL+"/mcp/"+benchSDKServe)}},
			benchCase{"http, bare handler", f.http, []benchKind{web("direct", l.bareURL), web("node", l.httpURL+"/mcp/"+benchBareNode), web("serve", l.httpURL+"/mcp/"+benchBareServe)}})
	}
	if f.only != "http" {
		out = append(out, benchCase{"nats, Go server", f.nats, []benchKind{plain("raw", benchRaw), plain("fabric", "mcp.v1.req."+benchGo+".tools.call.echo")}})
	}
	return out
}

// newBenchServerCommand is the server process of a benchmark: without --nats,
// an MCP server made with the Go SDK and a bare one, over HTTP; with it, a raw
// NATS responder and a Go server attached to the fabric.
func newBenchServerCommand() *cobra.Command {
	var natsURL string
	cmd := &cobra.Command{
		Use: "server", Short: "The server side of a benchmark", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if natsURL != "" {
				return benchNATSServer(cmd, natsURL)
			}
			return benchHTTPServer(cmd)
		},
	}
	cmd.Flags().StringVar(&natsURL, "nats", "", "serve over NATS at this URL")
	return cmd
}

type echoArgs struct {
	Text string `json:"text"`
}

func benchSDKServer() http.Handler {
	s := mcp.NewServer(&mcp.Implementation{Name: "bench", Version: "1.0.0"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "echo"}, func(_ context.Context, _ *mcp.CallToolRequest, a echoArgs) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: a.Text}}}, nil, nil
	})
	return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, nil)
}

const bareInit = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bare","version":"1.0.0"}}`

// bareAnswer is the least an echo server can do with a message; nil = accepted.
func bareAnswer(m *jsonrpc.Message) []byte {
	switch {
	case m.Kind != jsonrpc.Request:
		return nil
	case m.Method == "initialize":
		return jsonrpc.NewResult(m.ID, []byte(bareInit))
	case m.Method != "tools/call":
		return jsonrpc.NewError(m.ID, jsonrpc.CodeMethodNotFound, "method not found", nil)
	}
	var p struct{ Arguments echoArgs }
	if err := json.Unmarshal(m.Params, &p); err != nil {
		return jsonrpc.NewError(m.ID, jsonrpc.CodeInvalidParams, err.Error(), nil)
	}
	return jsonrpc.NewResult(m.ID, []byte(`{"content":[{"type":"text","text":`+jsonrpc.Quote(p.Arguments.Text)+`}]}`))
}

func bareGo(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
	return &router.Reply{Body: bareAnswer(req.Message)}, nil
}

func benchNATSServer(cmd *cobra.Command, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", url, err)
	}
	defer nc.Close()
	_, err = nc.QueueSubscribe(benchRaw, "raw", func(m *nats.Msg) { _ = m.Respond(m.Data) }) // a failure shows as a timeout
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "serving")
	info := router.Info{Name: "bench", Version: "1.0.0", Versions: []string{router.Version20251125}, Capabilities: []byte(`{"tools":{}}`)}
	return agent.Run(cmd.Context(), agent.RunOptions{
		Connection: agent.Connection{URLs: url, Name: "bench", Logger: quietLogger()},
		Server:     benchGo, Transport: "go", Backend: agent.Func(info, bareGo), Software: buildVersion(),
	})
}
