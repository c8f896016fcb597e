package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// oneEra is a server that speaks one era only and asks its client's name.
func oneEra(t testing.TB, versions ...string) string {
	s := mcp.NewServer(&mcp.Implementation{Name: "one-era", Version: "1"}, &mcp.ServerOptions{SupportedProtocolVersions: versions})
	question := mcp.InputRequestMap{"name": &mcp.ElicitParams{Message: "Name?", RequestedSchema: map[string]any{
		"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}}}}}
	type args struct{}
	mcp.AddTool(s, &mcp.Tool{Name: "greet"}, func(_ context.Context, req *mcp.CallToolRequest, _ args) (*mcp.CallToolResult, any, error) {
		answer, ok := req.Params.InputResponses["name"].(*mcp.ElicitResult)
		if !ok {
			return &mcp.CallToolResult{InputRequests: question}, nil, nil
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: fmt.Sprint("hello ", answer.Content["name"])}}}, nil, nil
	})
	stateless := slices.Contains(versions, "2026-07-28")
	h := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s },
		&mcp.StreamableHTTPOptions{Stateless: stateless, PropagateRequestCancellation: stateless}))
	t.Cleanup(h.Close)
	return h.URL
}

// TestEras: clients of each era are asked by servers of the other, through the
// HTTP edge, with two instances of each server.
func TestEras(t *testing.T) {
	n := startNode(t)
	legacy, modern := "2025-11-25", "2026-07-28"
	for range 2 {
		n.attach(t, "old", "--url", oneEra(t, legacy))
		n.attach(t, "new", "--url", oneEra(t, modern))
	}
	for _, c := range []struct{ path, tool, version string }{
		{"/mcp/old", "greet", modern}, {"/mcp/old", "greet", legacy},
		{"/mcp/new", "greet", legacy}, {"/mcp/new", "greet", modern},
		{"/mcp", "old__greet", modern}, {"/mcp", "new__greet", legacy},
	} {
		t.Run(c.version+" client of "+c.path+" "+c.tool, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, &mcp.ClientOptions{
				ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
				},
			})
			s, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: n.http + c.path}, &mcp.ClientSessionOptions{ProtocolVersion: c.version})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got := s.InitializeResult().ProtocolVersion; got != c.version {
				t.Errorf("negotiated %s", got)
			}
			for i := range 10 { // either instance may get the call, and must get its retry
				r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: c.tool})
				if err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
				if got := r.Content[0].(*mcp.TextContent).Text; got != "hello Ada" {
					t.Errorf("call %d: %q", i, got)
				}
			}
		})
	}
}
