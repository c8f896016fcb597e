package edge_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router/edge"
)

type text struct {
	Text string `json:"text"`
}

// demo is a server with a tool for everything that crosses the edge.
func demo(started, cancelled chan<- struct{}) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "demo", Version: "1"}, nil)
	say := func(s string) *mcp.CallToolResult {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo"}, func(_ context.Context, _ *mcp.CallToolRequest, in text) (*mcp.CallToolResult, any, error) {
		return say(in.Text), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "count"}, func(ctx context.Context, req *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		for i := range 3 {
			p := &mcp.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Progress: float64(i + 1), Total: 3}
			if err := req.Session.NotifyProgress(ctx, p); err != nil {
				return nil, nil, err
			}
		}
		return say("3"), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask"}, func(_ context.Context, req *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		if got, ok := req.Params.InputResponses["name"].(*mcp.ElicitResult); ok {
			name, _ := got.Content["name"].(string)
			return say("hello " + name), nil, nil
		}
		return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{"name": &mcp.ElicitParams{Message: "Your name?",
			RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}}}}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "hang"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		close(started)
		<-ctx.Done()
		close(cancelled)
		return nil, nil, ctx.Err()
	})
	return s
}

// TestSDKClient runs a go-sdk client of each era against the edge.
func TestSDKClient(t *testing.T) {
	for _, version := range []string{"2025-06-18", "2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			started, cancelled := make(chan struct{}), make(chan struct{})
			server := demo(started, cancelled)
			h := newSDKServer(t, server)
			e := edge.New(edge.Options{Handler: h, Token: func() string { return "secret" }})
			srv := live(t, e)
			defer h.close()
			defer func() {
				if err := e.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			}()

			progress, changed := make(chan float64, 10), make(chan struct{}, 10)
			client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
				ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) { progress <- r.Params.Progress },
				ToolListChangedHandler:      func(context.Context, *mcp.ToolListChangedRequest) { changed <- struct{}{} },
				ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ada"}}, nil
				},
			})
			cs, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: srv.URL + "/mcp/demo", HTTPClient: &http.Client{Transport: withToken{}}},
				&mcp.ClientSessionOptions{ProtocolVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer cs.Close()
			if got := cs.InitializeResult().ProtocolVersion; got != version {
				t.Errorf("negotiated %s, want %s", got, version)
			}
			if legacy := version < "2026"; legacy != (cs.ID() != "") {
				t.Errorf("session %q", cs.ID())
			}
			if tools, err := cs.ListTools(ctx, nil); err != nil || len(tools.Tools) != 4 {
				t.Errorf("tools: %v, %v", tools, err)
			}
			wantCall(t, ctx, cs, "echo", "hi", text{"hi"})
			wantCall(t, ctx, cs, "count", "3", nil)
			for want := 1.0; want <= 3; want++ {
				if got := receive(t, ctx, progress); got != want {
					t.Errorf("progress %v, want %v", got, want)
				}
			}
			wantCall(t, ctx, cs, "ask", "hello Ada", nil)
			if _, err := cs.ReadResource(ctx, &mcp.ReadResourceParams{URI: "demo:///none"}); err == nil {
				t.Error("a resource that does not exist was read")
			}

			if version < "2026" {
				receive(t, ctx, h.opened) // or nobody would hear of the change
			}
			mcp.AddTool(server, &mcp.Tool{Name: "later"}, func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, any, error) {
				return nil, nil, nil
			})
			receive(t, ctx, changed)

			hung, stop := context.WithCancel(ctx)
			go func() {
				<-started
				stop()
			}()
			if _, err := cs.CallTool(hung, &mcp.CallToolParams{Name: "hang"}); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled call: %v", err)
			}
			receive(t, ctx, cancelled)
			wantCall(t, ctx, cs, "echo", "still here", text{"still here"})
		})
	}
}

type withToken struct{}

func (withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer secret")
	return http.DefaultTransport.RoundTrip(r)
}

func wantCall(t *testing.T, ctx context.Context, cs *mcp.ClientSession, tool, want string, args any) {
	t.Helper()
	params := &mcp.CallToolParams{Name: tool, Arguments: args}
	params.SetProgressToken("p1")
	res, err := cs.CallTool(ctx, params)
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	if res.IsError || len(res.Content) != 1 || res.Content[0].(*mcp.TextContent).Text != want {
		t.Errorf("%s: %+v, want %q", tool, res, want)
	}
}

func receive[T any](t *testing.T, ctx context.Context, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-ctx.Done():
		t.Fatal("nothing came in time")
		panic("unreachable")
	}
}
