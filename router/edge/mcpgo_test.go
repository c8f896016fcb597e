package edge_test

import (
	"context"
	"testing"
	"time"

	mcpclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"

	"ripstop/router/edge"
)

// TestMCPGoClient runs a client that shares no code with the server.
func TestMCPGoClient(t *testing.T) {
	for _, version := range []string{"2025-03-26", mcp.LATEST_PROTOCOL_VERSION} {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			h := newSDKServer(t, demo(make(chan struct{}), make(chan struct{})))
			e := edge.New(edge.Options{Handler: h, AllServers: "demo"})
			srv := live(t, e)
			defer h.close()
			defer func() {
				if err := e.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			}()
			c, err := mcpclient.NewStreamableHttpClient(srv.URL + "/mcp")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			init := mcp.InitializeRequest{}
			init.Params.ProtocolVersion = version
			init.Params.ClientInfo = mcp.Implementation{Name: "mcp-go", Version: "1"}
			if _, err := c.Initialize(ctx, init); err != nil {
				t.Fatal(err)
			}
			tools, err := c.ListTools(ctx, mcp.ListToolsRequest{})
			if err != nil || len(tools.Tools) != 4 {
				t.Errorf("tools: %v, %v", tools, err)
			}
			call := mcp.CallToolRequest{}
			call.Params.Name = "echo"
			call.Params.Arguments = map[string]any{"text": "hi"}
			res, err := c.CallTool(ctx, call)
			if err != nil || len(res.Content) != 1 {
				t.Fatalf("echo: %+v, %v", res, err)
			}
			if got, ok := res.Content[0].(mcp.TextContent); !ok || got.Text != "hi" {
				t.Errorf("echo: %+v", res.Content[0])
			}
		})
	}
}
