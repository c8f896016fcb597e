package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/bridge/bridgetest"
	"ripstop/router/jsonrpc"
)

func demo(t testing.TB, legacyOnly bool) *bridgetest.Fabric {
	servers := map[string]*mcp.Server{"demo": bridgetest.Demo()}
	if legacyOnly {
		return bridgetest.NewLegacy(t, servers)
	}
	return bridgetest.New(t, servers)
}

// TestSDKClient runs a go-sdk client over the pipes, in both eras.
func TestSDKClient(t *testing.T) {
	for _, legacyOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacyOnly=%v", legacyOnly), func(t *testing.T) {
			f := demo(t, legacyOnly)
			unblocked := make(chan struct{})
			c := start(t, router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				if req.Message != nil && req.Message.Name == "block" {
					defer close(unblocked)
				}
				return f.Serve(ctx, req, out)
			}), 0)
			var progress atomic.Int32
			counted := make(chan struct{})
			sdk := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "v1"}, &mcp.ClientOptions{
				ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) {
					if progress.Add(1) == 3 {
						close(counted)
					}
				},
				ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": "Ann"}}, nil
				},
			})
			s, err := sdk.Connect(t.Context(), &mcp.IOTransport{Reader: c.outEnd, Writer: c.in}, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := router.Version20260728
			if legacyOnly {
				want = router.Version20251125
			}
			if got := s.InitializeResult().ProtocolVersion; got != want {
				t.Errorf("version %s, want %s", got, want)
			}
			call := func(tool string, args map[string]any) string {
				p := &mcp.CallToolParams{Name: tool, Arguments: args}
				p.SetProgressToken("p")
				res, err := s.CallTool(t.Context(), p)
				if err != nil {
					t.Fatalf("call %s: %v", tool, err)
				}
				return bridgetest.Text(t, res)
			}
			if got := call("echo", map[string]any{"text": "hi"}); got != "hi" {
				t.Errorf("echo: %s", got)
			}
			if got := call("count", map[string]any{"to": 3}); got != "counted to 3" {
				t.Errorf("count: %s", got)
			}
			<-counted
			if got := call("ask", nil); !strings.HasPrefix(got, "hello Ann, green") {
				t.Errorf("ask: %s", got)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "block"}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("block: %v", err)
			}
			<-unblocked // the SDK cancels behind its caller's back
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := <-c.done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`

const initialized = `{"jsonrpc":"2.0","method":"notifications/initialized"}`

// open makes the client initialize, and waits for the session's stream.
func open(c *client, f *bridgetest.Fabric) {
	c.t.Helper()
	listening := make(chan struct{}, 100)
	f.Fault(func(req *router.Request) error {
		if req.Op == router.OpListen {
			listening <- struct{}{}
		}
		return nil
	})
	c.send(initialize)
	c.line()
	c.send(initialized)
	<-listening
	f.Fault(nil)
}

func callEcho(id int) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}`, id)
}

func TestLostSessionIsOpenedAgain(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, 0)
	open(c, f)
	c.send(`{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"error"}}`)
	c.want(result(2, "{}"))
	c.send(`{"jsonrpc":"2.0","id":3,"method":"resources/subscribe","params":{"uri":"demo://r"}}`)
	c.want(result(3, "{}"))
	// The stream stays broken, so that it is the request that finds the loss.
	f.Fault(func(req *router.Request) error {
		if req.Op == router.OpListen {
			return router.Errorf(router.ErrUnavailable, "not now")
		}
		return nil
	})
	before := len(f.Seen())
	f.Lose()
	c.send(callEcho(4))
	line := c.line()
	if !strings.Contains(line, `"text":"hi"`) || !strings.Contains(line, `"ripstop/reinitialized":{"cause":`) || !strings.Contains(line, `"id":4`) {
		t.Errorf("got %s", line)
	}
	got := slices.DeleteFunc(f.Seen()[before:], func(s string) bool { return s == "listen" })
	want := []string{"tools/call", "initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe", "tools/call"}
	if !slices.Equal(got, want) {
		t.Errorf("replayed %v\n    want %v", got, want)
	}
	c.send(callEcho(5))
	if line := c.line(); strings.Contains(line, "reinitialized") {
		t.Errorf("said twice: %s", line)
	}
	f.Fault(nil)
	c.end()
}

// TestManyRequestsOneRestore loses a session under concurrent requests.
func TestManyRequestsOneRestore(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, 0)
	open(c, f)
	f.Lose()
	before := len(f.Seen())
	for i := range 50 {
		c.send(callEcho(10 + i))
	}
	for range 50 {
		if line := c.line(); !strings.Contains(line, `"text":"hi"`) {
			t.Fatalf("got %s", line)
		}
	}
	inits := 0
	for _, what := range f.Seen()[before:] {
		if what == "initialize" {
			inits++
		}
	}
	if inits != 1 {
		t.Errorf("initialized %d times, want once", inits)
	}
	c.end()
}

// TestListenerRestoresIdleClient loses the session of a client that says
// nothing, and wants its subscription to live on.
func TestListenerRestoresIdleClient(t *testing.T) {
	server := bridgetest.Demo()
	f := bridgetest.NewLegacy(t, map[string]*mcp.Server{"demo": server})
	c := start(t, f, 0)
	open(c, f)
	c.send(`{"jsonrpc":"2.0","id":3,"method":"resources/subscribe","params":{"uri":"demo://r"}}`)
	c.want(result(3, "{}"))
	subscribed, listening := make(chan struct{}), make(chan struct{}, 100)
	f.Fault(func(req *router.Request) error {
		switch {
		case req.Method() == "ping":
			close(subscribed)
		case req.Op == router.OpListen && req.Session != "":
			listening <- struct{}{}
		}
		return nil
	})
	f.Lose()
	<-listening // finds the old session lost
	<-listening // and opens the new one's stream
	c.send(request(4, "ping"))
	<-subscribed
	c.want(result(4, "{}"))
	if err := server.ResourceUpdated(t.Context(), &mcp.ResourceUpdatedNotificationParams{URI: "demo://r"}); err != nil {
		t.Fatal(err)
	}
	if line := c.line(); !strings.Contains(line, "notifications/resources/updated") {
		t.Errorf("got %s", line)
	}
	c.end()
}

func TestLostSessionThatCantBeOpened(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, -1)
	open(c, f)
	f.Lose()
	f.Fault(func(req *router.Request) error {
		if req.Method() == "initialize" {
			return router.Errorf(router.ErrUnavailable, "nobody")
		}
		return nil
	})
	c.send(callEcho(4))
	c.wantError("4", router.CodeUnavailable)
	f.Fault(nil)
	c.end()
}

func TestNeverInitialized(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, 0)
	c.send(callEcho(4))
	c.wantError("4", router.CodeSessionNotFound)
	c.end()
}

// TestInitializeIsNotHealed wants a failed initialize answered as it is: there
// is nothing to restore, and the client asked for a new session.
func TestInitializeIsNotHealed(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, 0)
	open(c, f)
	asked := 0
	f.Fault(func(req *router.Request) error {
		if req.Method() != "initialize" {
			return nil
		}
		asked++
		return router.Errorf(router.ErrSessionNotFound, "odd")
	})
	c.send(initialize)
	c.wantError("1", router.CodeSessionNotFound)
	f.Fault(nil)
	if asked != 1 {
		t.Errorf("initialize was sent %d times", asked)
	}
	c.end()
}

func TestInitializeAgainEndsTheOldSession(t *testing.T) {
	f := demo(t, true)
	c := start(t, f, 0)
	open(c, f)
	open(c, f)
	c.send(callEcho(9))
	c.line()
	c.end()
	if n := f.Sessions(); n != 0 { // before the fabric's own check, to see it here
		t.Errorf("%d sessions left", n)
	}
}

// TestListen checks when the session's stream is opened again, and when never.
func TestListen(t *testing.T) {
	for _, tt := range []struct {
		name     string
		answer   func(n int) (*router.Reply, error)
		min, max int // streams opened in a minute
	}{
		{"405 as error", func(int) (*router.Reply, error) { return nil, bridgetest.Refuse405 }, 1, 1},
		{"405 as reply", func(int) (*router.Reply, error) { return router.ErrorReply(nil, bridgetest.Refuse405), nil }, 1, 1},
		{"ends", func(int) (*router.Reply, error) { return &router.Reply{}, nil }, 25, 60},
		{"fails, then 405", func(n int) (*router.Reply, error) {
			if n < 5 {
				return nil, errors.New("broken")
			}
			return nil, bridgetest.Refuse405
		}, 5, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
					switch {
					case req.Op == router.OpListen:
						if req.Session != "s1" || req.Version != "2025-11-25" {
							t.Errorf("listen for %q %q", req.Session, req.Version)
						}
						n++
						return tt.answer(n)
					case req.Op == router.OpEnd:
						return &router.Reply{}, nil
					case req.Message.Kind != jsonrpc.Request:
						return &router.Reply{Status: 202}, nil
					}
					reply, err := ok(req, `{"protocolVersion":"2025-11-25"}`)
					reply.Session = "s1"
					return reply, err
				}), 0)
				c.send(initialize)
				c.line()
				c.send(initialized, initialized)
				time.Sleep(time.Minute)
				c.end()
				if n < tt.min || n > tt.max {
					t.Errorf("opened %d streams, want %d to %d", n, tt.min, tt.max)
				}
			})
		})
	}
}

// TestServerAsksClient sends a server's request down the session's own stream
// and the answer up, with a session lost in between: the answer must not go to
// the new one.
func TestServerAsksClient(t *testing.T) {
	var session atomic.Int32
	answered := make(chan string, 10)
	c := start(t, router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		switch now := fmt.Sprintf("s%d", session.Load()); {
		case req.Op == router.OpEnd:
			return &router.Reply{}, nil
		case req.Method() == "initialize":
			reply, err := ok(req, `{"protocolVersion":"2025-11-25"}`)
			reply.Session = fmt.Sprintf("s%d", session.Add(1))
			return reply, err
		case req.Op == router.OpListen && req.Session == now:
			if err := out.Send(ctx, nil); err != nil { // the stream is open
				return nil, err
			}
			if err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`)); err != nil {
				return nil, err
			}
			<-ctx.Done()
			return nil, ctx.Err()
		case req.Session != now:
			return router.ErrorReply(req.ID(), router.Errorf(router.ErrSessionNotFound, "gone")), nil
		case req.Message.Kind == jsonrpc.Response:
			answered <- string(req.Message.Result)
		}
		return &router.Reply{Status: 202}, nil
	}), 0)
	c.send(initialize)
	c.line()
	c.send(initialized)
	c.want(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`)
	c.send(result(1, `{"n":1}`))
	if got := <-answered; got != `{"n":1}` {
		t.Errorf("answer %s", got)
	}
	session.Store(99) // s1 is gone
	c.send(result(1, `{"n":2}`))
	c.want(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`) // of s100
	c.send(result(1, `{"n":3}`))
	if got := <-answered; got != `{"n":3}` {
		t.Errorf("answer %s", got)
	}
	c.end()
}

func TestReplyIsPassedUnchanged(t *testing.T) {
	f := demo(t, false)
	c := start(t, f, 0)
	c.send(`{"jsonrpc":"2.0","id":"x","method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`)
	var m struct {
		ID     string
		Result struct{ SupportedVersions []string }
	}
	if err := json.Unmarshal([]byte(c.line()), &m); err != nil || m.ID != "x" || !slices.Contains(m.Result.SupportedVersions, "2026-07-28") {
		t.Errorf("discover: %+v, %v", m, err)
	}
	c.end()
}
