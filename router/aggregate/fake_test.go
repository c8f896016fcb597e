package aggregate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

// net is a set of fake members, and the router.Handler that reaches them.
type net struct {
	mu      sync.Mutex
	servers map[string]router.Handler
	changed func()
	watched chan struct{} // closed when changed is set
}

func newNet() *net { return &net{servers: map[string]router.Handler{}, watched: make(chan struct{})} }

func (n *net) add(name string, h router.Handler) {
	n.mu.Lock()
	n.servers[name] = h
	changed := n.changed
	n.mu.Unlock()
	if changed != nil {
		changed()
	}
}

func (n *net) remove(name string) {
	n.mu.Lock()
	delete(n.servers, name)
	changed := n.changed
	n.mu.Unlock()
	changed()
}

func (n *net) names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.servers))
}

func (n *net) watch(ctx context.Context, changed func()) {
	n.mu.Lock()
	n.changed = changed
	n.mu.Unlock()
	close(n.watched)
	<-ctx.Done()
}

func (n *net) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	n.mu.Lock()
	h := n.servers[req.Server]
	n.mu.Unlock()
	if h == nil {
		return nil, router.Errorf(router.ErrServerNotFound, "no server %q", req.Server)
	}
	return h.Serve(ctx, req, out)
}

// start returns a backend over n that is closed with the test.
func start(t testing.TB, n *net, change ...func(*aggregate.Options)) *aggregate.Backend {
	t.Helper()
	opts := aggregate.Options{
		Instance: "abcdefghij", Handler: n, Servers: n.names, Watch: n.watch, Version: "1.2.3",
	}
	for _, c := range change {
		c(&opts)
	}
	b := aggregate.New(opts)
	<-n.watched
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// fake is a member server. The zero value speaks no era.
type fake struct {
	legacy, modern bool
	stateless      bool   // legacy without session ids
	caps           string // ttlMs and cacheScope of modern lists, as raw members

	tools, prompts, resources, templates []string // raw elements
	perPage                              int      // 0 = all

	delay   time.Duration // of everything
	fail    error         // instead of everything
	onCall  func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error)
	noGET   int    // status of OpListen, if it offers none
	granted string // raw notifications of the acknowledgement; "" = as asked

	mu       sync.Mutex
	seen     []*router.Request
	sessions map[string]bool
	streams  map[string]router.Stream // of OpListen by session, of subscriptions/listen by raw id
	cut      map[string]context.CancelFunc
	opened   int
}

func tool(name string) string {
	return `{"name":"` + name + `","inputSchema":{"type":"object"},"x-unknown":{"kept":[1,2.50]}}`
}

func (f *fake) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	f.mu.Lock()
	f.seen = append(f.seen, req)
	delay, fail := f.delay, f.fail
	f.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	switch req.Era {
	case router.EraModern:
		return f.serveModern(ctx, req, out)
	case router.EraBare:
		return f.answer(ctx, req, out)
	}
	return f.serveLegacy(ctx, req, out)
}

func (f *fake) serveLegacy(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if !f.legacy {
		return router.ErrorReply(req.ID(), router.UnsupportedVersion(req.Version, []string{router.Version20260728})), nil
	}
	if req.Method() == "initialize" {
		return f.initialize(req)
	}
	f.mu.Lock()
	ok := f.stateless || f.sessions[req.Session]
	f.mu.Unlock()
	switch {
	case !ok:
		return nil, router.Errorf(router.ErrSessionNotFound, "no session %q", req.Session)
	case req.Op == router.OpEnd:
		f.mu.Lock()
		delete(f.sessions, req.Session)
		f.mu.Unlock()
		return &router.Reply{}, nil
	case req.Op == router.OpListen && f.noGET != 0:
		return &router.Reply{Status: f.noGET}, nil
	case req.Op == router.OpListen:
		return f.hold(ctx, req.Session, out)
	case req.Message.Kind != jsonrpc.Request:
		return &router.Reply{}, nil
	}
	return f.answer(ctx, req, out)
}

func (f *fake) initialize(req *router.Request) (*router.Reply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened++
	reply := &router.Reply{Body: jsonrpc.NewResult(req.ID(),
		[]byte(`{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"fake","version":"9"},"instructions":"Be kind."}`))}
	if !f.stateless {
		reply.Session = "s" + strconv.Itoa(f.opened)
		if f.sessions == nil {
			f.sessions = map[string]bool{}
		}
		f.sessions[reply.Session] = true
	}
	return reply, nil
}

func (f *fake) serveModern(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	switch {
	case !f.modern:
		return router.ErrorReply(req.ID(), &router.Error{Code: -32600, Status: 400, Text: "what?"}), nil
	case req.Message.Version != router.Version20260728:
		return router.ErrorReply(req.ID(), router.UnsupportedVersion(req.Message.Version, []string{router.Version20260728})), nil
	case req.Method() == "server/discover":
		return result(req, `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{},"instructions":"Be modern.","ttlMs":5000,"cacheScope":"public"}`), nil
	case req.Method() == "subscriptions/listen":
		return f.subscribed(ctx, req, out)
	}
	return f.answer(ctx, req, out)
}

func (f *fake) subscribed(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	granted := f.granted
	if granted == "" {
		granted = string(field(req.Message.Params, "notifications"))
	}
	if err := out.Send(ctx, nil); err != nil {
		return nil, err
	}
	ack := `{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":` +
		string(req.ID()) + `},"notifications":` + granted + `}}`
	if err := out.Send(ctx, []byte(ack)); err != nil {
		return nil, err
	}
	return f.hold(ctx, "sub", out)
}

// hold keeps a stream open until it is cut or ctx ends.
func (f *fake) hold(ctx context.Context, key string, out router.Stream) (*router.Reply, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	if f.streams == nil {
		f.streams, f.cut = map[string]router.Stream{}, map[string]context.CancelFunc{}
	}
	f.streams[key], f.cut[key] = out, cancel
	f.mu.Unlock()
	if err := out.Send(ctx, nil); err != nil {
		return nil, err
	}
	<-inner.Done()
	f.mu.Lock()
	delete(f.streams, key)
	f.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &router.Reply{}, nil
}

func (f *fake) answer(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	switch req.Method() {
	case "tools/list":
		return f.page(req, "tools", f.tools), nil
	case "prompts/list":
		return f.page(req, "prompts", f.prompts), nil
	case "resources/list":
		return f.page(req, "resources", f.resources), nil
	case "resources/templates/list":
		return f.page(req, "resourceTemplates", f.templates), nil
	case "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		return result(req, `{}`), nil
	}
	if f.onCall != nil {
		return f.onCall(ctx, req, out)
	}
	return result(req, `{"content":[{"type":"text","text":`+jsonrpc.Quote(req.Message.Name)+`}]}`), nil
}

func (f *fake) page(req *router.Request, key string, items []string) *router.Reply {
	if items == nil {
		return router.ErrorReply(req.ID(), &router.Error{Code: jsonrpc.CodeMethodNotFound, Status: 200, Text: "no " + key})
	}
	from, _ := strconv.Atoi(strings.Trim(string(field(req.Message.Params, "cursor")), `"c`))
	to := len(items)
	next := ""
	if f.perPage > 0 && from+f.perPage < to {
		to = from + f.perPage
		next = fmt.Sprintf(`,"nextCursor":"c%d"`, to)
	}
	extra := ""
	if req.Era == router.EraModern {
		extra = `,"resultType":"complete"` + f.caps
	}
	return result(req, `{"`+key+`": [ `+strings.Join(items[from:to], " , ")+` ]`+next+extra+`}`)
}

func result(req *router.Request, raw string) *router.Reply {
	return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(raw))}
}

// requests returns what the member was asked by that method.
func (f *fake) requests(method string) []*router.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*router.Request
	for _, r := range f.seen {
		if r.Method() == method {
			out = append(out, r)
		}
	}
	return out
}

func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// lose forgets all sessions, as a restarted process does.
func (f *fake) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions = map[string]bool{}
	for _, cut := range f.cut {
		cut()
	}
}

func (f *fake) open() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.sessions))
}

// push sends on the member's stream for key.
func (f *fake) push(t testing.TB, key, msg string) {
	t.Helper()
	f.mu.Lock()
	out := f.streams[key]
	f.mu.Unlock()
	if out == nil {
		t.Fatalf("member has no stream %q", key)
	}
	if err := out.Send(t.Context(), []byte(msg)); err != nil {
		t.Errorf("push %s: %v", msg, err)
	}
}

// field returns a member of a raw object, or nil.
func field(raw []byte, path ...string) json.RawMessage {
	for _, key := range path {
		var m map[string]json.RawMessage
		if json.Unmarshal(raw, &m) != nil {
			return nil
		}
		raw = m[key]
	}
	return raw
}
