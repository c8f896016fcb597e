package sdkclient_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/bridge/bridgetest"
	"ripstop/router/sdkclient"
)

func TestBothEras(t *testing.T) {
	for _, legacyOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacyOnly=%v", legacyOnly), func(t *testing.T) {
			servers := map[string]*mcp.Server{"demo": bridgetest.Demo()}
			f := bridgetest.New(t, servers)
			if legacyOnly {
				f = bridgetest.NewLegacy(t, servers)
			}
			changed := make(chan struct{}, 10)
			client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "v1"}, &mcp.ClientOptions{
				ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					return &mcp.ElicitResult{Action: "decline"}, nil
				},
				ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) { changed <- struct{}{} },
			})
			s, err := client.Connect(t.Context(), sdkclient.Transport(f, "demo"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if hasID := s.ID() != ""; hasID != legacyOnly {
				t.Errorf("session id %q", s.ID())
			}
			tools, err := s.ListTools(t.Context(), nil)
			if err != nil || len(tools.Tools) < 5 {
				t.Errorf("list tools: %v, %v", tools, err)
			}
			res, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "ask"})
			if err != nil || bridgetest.Text(t, res) != "you chose to decline" {
				t.Errorf("ask: %v, %v", res, err)
			}
			if !legacyOnly { // a legacy stream opens in its own time; bridge tests it
				mcp.AddTool(servers["demo"], &mcp.Tool{Name: "new"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
					return nil, nil, nil
				})
				<-changed
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if n := f.Sessions(); n > 0 {
				t.Errorf("%d sessions left by Close", n)
			}
		})
	}
}

func TestUnknownServer(t *testing.T) {
	f := bridgetest.New(t, nil)
	_, err := mcp.NewClient(&mcp.Implementation{Name: "t"}, nil).Connect(t.Context(), sdkclient.Transport(f, "nix"), nil)
	var rpc *jsonrpc.Error
	if !errors.As(err, &rpc) || rpc.Code != router.CodeServerNotFound || !strings.Contains(rpc.Message, "nix") {
		t.Errorf("Connect = %v, want error %d that names the server", err, router.CodeServerNotFound)
	}
}

// TestCancelReachesServer wants the handler to end when the caller gives up.
func TestCancelReachesServer(t *testing.T) {
	f := bridgetest.New(t, map[string]*mcp.Server{"demo": bridgetest.Demo()})
	started, ended := make(chan struct{}), make(chan struct{})
	h := router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if req.Method() == "tools/call" {
			close(started)
			defer close(ended)
		}
		return f.Serve(ctx, req, out)
	})
	s, err := mcp.NewClient(&mcp.Implementation{Name: "t"}, nil).Connect(t.Context(), sdkclient.Transport(h, "demo"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "block"})
		done <- err
	}()
	<-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("CallTool = %v", err)
	}
	<-ended
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseCancels closes a connection under a request and wants nothing left.
func TestCloseCancels(t *testing.T) {
	started := make(chan struct{})
	running := true
	h := router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		close(started)
		<-ctx.Done()
		running = false
		return nil, ctx.Err()
	})
	conn, err := sdkclient.Transport(h, "demo").Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	msg, err := jsonrpc.DecodeMessage([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Write(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	<-started
	for range 2 {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if running {
		t.Error("the request outlived Close")
	}
	if _, err := conn.Read(t.Context()); err != io.EOF {
		t.Errorf("Read = %v, want EOF", err)
	}
	if err := conn.Write(t.Context(), msg); err == nil {
		t.Error("Write after Close succeeded")
	}
}
