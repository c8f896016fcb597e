package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	mark3labs "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mark3 "github.com/mark3labs/mcp-go/mcp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	legacyVersion = "2025-11-25"
	modernVersion = "2026-07-28"
)

// sdkSaid is what a client has got: the version it speaks, the tools, and what
// the tool said that asks for a name.
type sdkSaid struct {
	version string
	tools   []string
	answer  string
}

// sdks are clients of four SDKs, of each era that they speak. Each answers "yes"
// when it is asked.
var sdks = []struct {
	name, version string
	use           func(t *testing.T, ctx context.Context, url, version string) sdkSaid
}{
	{"go-sdk", legacyVersion, useGoSDK},
	{"go-sdk", modernVersion, useGoSDK},
	{"mcp-go", legacyVersion, useMark3Labs},
	{"mcp-go", modernVersion, useMark3Labs},
	{"typescript sdk", legacyVersion, useTypeScript("legacy", "auto")},
	{"typescript client", legacyVersion, useTypeScript("modern", "legacy")},
	{"typescript client", modernVersion, useTypeScript("modern", "auto")},
}

// TestSDKs: clients of four SDKs, of each era, list, call and are asked by
// servers that speak one era only, through any node of a cluster.
func TestSDKs(t *testing.T) {
	peers(t)
	file := serversFile(t, fmt.Sprintf(`{"mcpServers":{"old":{"url":%q},"new":{"url":%q}}}`, oneEra(t, legacyVersion), oneEra(t, modernVersion)))
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"}, servers: func(string) string { return file }})
	for _, m := range c.members {
		m.node().probed(t, "old")
		m.node().probed(t, "new")
	}
	front := startBalancer(t, c)
	for _, server := range []string{"old", "new"} {
		for _, sdk := range sdks {
			t.Run(fmt.Sprintf("%s %s with %s", sdk.name, sdk.version, server), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				got := sdk.use(t, ctx, front+"/mcp/"+server, sdk.version)
				if got.version != sdk.version || !slices.Equal(got.tools, []string{"greet"}) || got.answer != "hello yes" {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

func useGoSDK(t *testing.T, ctx context.Context, url, version string) sdkSaid {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "yes"}}, nil
		},
	})
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, err := s.ListTools(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "greet"})
	if err != nil || len(r.Content) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	said := sdkSaid{version: s.InitializeResult().ProtocolVersion, answer: r.Content[0].(*mcp.TextContent).Text}
	for _, tool := range list.Tools {
		said.tools = append(said.tools, tool.Name)
	}
	return said
}

// sayYes answers what mcp-go's client is asked.
type sayYes struct{}

func (sayYes) Elicit(context.Context, mark3.ElicitationRequest) (*mark3.ElicitationResult, error) {
	return &mark3.ElicitationResult{ElicitationResponse: mark3.ElicitationResponse{
		Action: mark3.ElicitationResponseActionAccept, Content: map[string]any{"name": "yes"}}}, nil
}

func useMark3Labs(t *testing.T, ctx context.Context, url, version string) sdkSaid {
	t.Helper()
	tr, err := transport.NewStreamableHTTP(url)
	if err != nil {
		t.Fatal(err)
	}
	c := mark3labs.NewClient(tr, mark3labs.WithProtocolVersion(version), mark3labs.WithElicitationHandler(sayYes{}))
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello, err := c.Initialize(ctx, mark3.InitializeRequest{Params: mark3.InitializeParams{
		ProtocolVersion: version, ClientInfo: mark3.Implementation{Name: "e2e", Version: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTools(ctx, mark3.ListToolsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	req := mark3.CallToolRequest{}
	req.Params.Name = "greet"
	r, err := c.CallTool(ctx, req)
	if err != nil || len(r.Content) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	said := sdkSaid{version: hello.ProtocolVersion, answer: r.Content[0].(mark3.TextContent).Text}
	for _, tool := range list.Tools {
		said.tools = append(said.tools, tool.Name)
	}
	return said
}

func useTypeScript(generation, mode string) func(t *testing.T, ctx context.Context, url, version string) sdkSaid {
	return func(t *testing.T, _ context.Context, url, _ string) sdkSaid {
		t.Helper()
		dir, nodejs := peers(t)
		r := run(t, 30*time.Second, "", nodejs, filepath.Join(dir, "client.mjs"), generation, url, "greet", "{}", mode).ok(t)
		got := decode[struct {
			Tools   []string
			Version string
			Result  struct{ Content []struct{ Text string } }
		}](t, r.out)
		if len(got.Result.Content) != 1 {
			t.Fatalf("%s", r.out)
		}
		return sdkSaid{got.Version, got.Tools, got.Result.Content[0].Text}
	}
}
