// Package bridgetest is a fabric in memory, for tests of what sits on a
// router.Handler: go-sdk servers that answer in both eras, and faults.
package bridgetest

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Fabric is a router.Handler with go-sdk servers behind it.
type Fabric struct {
	legacyOnly bool

	mu       sync.Mutex
	servers  map[string]*mcp.Server
	sessions map[string]*link
	fault    func(*router.Request) error
	seen     []string
}

var _ router.Handler = (*Fabric)(nil)

// New returns a fabric of servers by name. It is closed when the test ends,
// which fails if a session is left.
func New(t testing.TB, servers map[string]*mcp.Server) *Fabric {
	f := &Fabric{servers: servers, sessions: map[string]*link{}}
	t.Cleanup(func() {
		if n := f.Sessions(); n > 0 {
			t.Errorf("%d sessions were not ended", n)
		}
		f.Lose()
	})
	return f
}

// NewLegacy is New for servers that know no MCP 2026-07-28.
func NewLegacy(t testing.TB, servers map[string]*mcp.Server) *Fabric {
	f := New(t, servers)
	f.legacyOnly = true
	return f
}

// Fault makes every request ask fn first; an error is its answer.
func (f *Fabric) Fault(fn func(*router.Request) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fn
}

// Lose forgets all sessions, as the loss of their instance does.
func (f *Fabric) Lose() {
	f.mu.Lock()
	lost := slices.Collect(maps.Values(f.sessions))
	clear(f.sessions)
	f.mu.Unlock()
	for _, l := range lost {
		l.close()
	}
}

// Sessions counts the legacy sessions.
func (f *Fabric) Sessions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

// Seen lists what was asked: methods, "listen" and "end", in order.
func (f *Fabric) Seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

// Serve answers req.
func (f *Fabric) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	f.mu.Lock()
	what := [...]string{router.OpMessage: req.Method(), router.OpListen: "listen", router.OpEnd: "end"}[req.Op]
	f.seen = append(f.seen, what)
	fault, server, l := f.fault, f.servers[req.Server], f.sessions[req.Session]
	f.mu.Unlock()
	if fault != nil {
		if err := fault(req); err != nil {
			return nil, err
		}
	}
	switch {
	case server == nil:
		return nil, router.Errorf(router.ErrServerNotFound, "no server %q", req.Server)
	case req.Era == router.EraModern:
		return f.modern(ctx, server, req, out)
	case req.Method() == "initialize":
		return f.initialize(ctx, server, req, out)
	case l == nil:
		return nil, router.Errorf(router.ErrSessionNotFound, "no session %q", req.Session)
	case req.Op == router.OpListen:
		return l.listen(ctx, out)
	case req.Op == router.OpEnd:
		f.mu.Lock()
		delete(f.sessions, req.Session)
		f.mu.Unlock()
		l.close()
		return &router.Reply{}, nil
	}
	return l.call(ctx, req.Message, out)
}

func (f *Fabric) modern(ctx context.Context, server *mcp.Server, req *router.Request, out router.Stream) (*router.Reply, error) {
	if f.legacyOnly {
		return nil, router.UnsupportedVersion(req.Version, router.LegacyVersions)
	}
	l, err := open(server)
	if err != nil {
		return nil, err
	}
	defer l.close()
	return l.call(ctx, req.Message, out)
}

func (f *Fabric) initialize(ctx context.Context, server *mcp.Server, req *router.Request, out router.Stream) (*router.Reply, error) {
	l, err := open(server)
	if err != nil {
		return nil, err
	}
	reply, err := l.call(ctx, req.Message, out)
	if err != nil {
		l.close()
		return nil, err
	}
	reply.Session = router.NewSessionID(router.NewInstanceID())
	f.mu.Lock()
	f.sessions[reply.Session] = l
	f.mu.Unlock()
	return reply, nil
}

// Refuse405 is what a server without a stream of its own answers to OpListen.
var Refuse405 = &router.Error{Code: -32000, Status: http.StatusMethodNotAllowed, Text: "no stream here"}

// Text returns the text of a tool result's first content.
func Text(t testing.TB, res *mcp.CallToolResult) string {
	t.Helper()
	if len(res.Content) == 0 {
		t.Fatal("the result has no content")
	}
	text, ok := res.Content[0].(*mcp.TextContent)
	if !ok {
		t.Fatalf("content is a %T", res.Content[0])
	}
	return text.Text
}

// Parse parses a message that must be one.
func Parse(t testing.TB, raw string) *jsonrpc.Message {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(raw))
	if err != nil {
		t.Fatalf("parse %s: %v", raw, err)
	}
	return m
}
