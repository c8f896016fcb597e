package upstream_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/demo"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
	"ripstop/router/upstream"
)

// front is the least edge that a real client can speak to.
type front struct{ next router.Handler }

func (f front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := &router.Request{Session: r.Header.Get("Mcp-Session-Id"), Version: r.Header.Get("Mcp-Protocol-Version")}
	out := &frontStream{w: w}
	switch r.Method {
	case http.MethodGet:
		req.Op = router.OpListen
	case http.MethodDelete:
		req.Op = router.OpEnd
	default:
		body, _ := io.ReadAll(r.Body)
		m, err := jsonrpc.Parse(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		req.Message = m
	}
	if req.Version >= modern {
		req.Era = router.EraModern
	}
	reply, err := f.next.Serve(r.Context(), req, out)
	if err != nil {
		reply = router.ErrorReply(req.ID(), err)
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.began {
		if reply.Body != nil {
			fmt.Fprintf(w, "data: %s\n\n", reply.Body)
		}
		return
	}
	if reply.Session != "" {
		w.Header().Set("Mcp-Session-Id", reply.Session)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(max(reply.Status, http.StatusOK))
	w.Write(reply.Body)
}

type frontStream struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	began bool
}

func (s *frontStream) Send(_ context.Context, msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w.Header().Set("Content-Type", "text/event-stream")
	s.began = true
	if len(msg) > 0 {
		fmt.Fprintf(s.w, "data: %s\n\n", msg)
	}
	return http.NewResponseController(s.w).Flush()
}

// TestRealClientAndServer puts the backend between a client and a server of the
// Go SDK, in both eras.
func TestRealClientAndServer(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		for _, version := range []string{legacy, modern} {
			t.Run(version, func(t *testing.T) {
				t.Parallel() // mostly waiting for the clock
				b := over(t, transport, gosdk.Handler(demo.New(nil), nil), upstream.Options{})
				s := httptest.NewServer(front{b})
				t.Cleanup(s.Close)
				realClient(t, s, version)
			})
		}
	})
}

func realClient(t *testing.T, s *httptest.Server, version string) {
	progress, updated := make(chan float64, 100), make(chan string, 100)
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(_ context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"answer": "re: " + r.Params.Message}}, nil
		},
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) { progress <- r.Params.Progress },
		ResourceUpdatedHandler: func(_ context.Context, r *mcp.ResourceUpdatedNotificationRequest) {
			updated <- r.Params.URI
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cs, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: s.URL, HTTPClient: s.Client()}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Close()
	call := func(ctx context.Context, tool string, args map[string]any) string {
		p := &mcp.CallToolParams{Name: tool, Arguments: args}
		p.SetProgressToken("tok")
		res, err := cs.CallTool(ctx, p)
		if err != nil {
			return err.Error()
		}
		return res.Content[0].(*mcp.TextContent).Text
	}
	if err := cs.Subscribe(ctx, &mcp.SubscribeParams{URI: "demo://clock"}); err != nil {
		t.Fatal(err)
	}
	remembered := map[string]string{legacy: `{"key":"k","replaced":false}`, modern: "there is no session"}[version]
	for _, tt := range []struct {
		tool string
		args map[string]any
		want string
	}{
		{"echo", map[string]any{"text": "☃"}, "☃"},
		{"ask", map[string]any{"question": "q"}, `{"action":"accept","answer":"re: q"}`},
		{"count", map[string]any{"to": 5, "delay_ms": 1}, `{"counted":5}`},
		{"remember", map[string]any{"key": "k", "value": "v"}, remembered},
		{"nothing", nil, "unknown tool"},
	} {
		if got := call(ctx, tt.tool, tt.args); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %s, want %s", tt.tool, got, tt.want)
		}
	}
	for want := 1.0; want <= 5; want++ {
		if got := wait(t, progress); got != want {
			t.Errorf("progress %v, want %v", got, want)
		}
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if got := call(short, "count", map[string]any{"to": 1000, "delay_ms": 10}); !strings.Contains(got, "deadline") {
		t.Errorf("cancelled count: %s", got)
	}
	if uri := wait(t, updated); uri != "demo://clock" {
		t.Errorf("update of %s", uri)
	}
}
