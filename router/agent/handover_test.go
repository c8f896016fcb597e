package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/demo"
	"ripstop/router/gosdk"
	"ripstop/router/session"
	"ripstop/router/wire"
)

// sdk attaches a server of the Go SDK from another process, as far as the node
// can tell.
func (l *lab) sdk(t testing.TB, server *mcp.Server) *agent.Agent {
	t.Helper()
	nc := l.dial(t)
	relay, err := wire.NewClient(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	id := router.NewInstanceID()
	b, err := gosdk.New(id, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.Attach(agent.Options{Server: "demo", Instance: id, Transport: "go", Conn: nc, Relay: relay, Logger: quiet(), Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(context.Background()) })
	select {
	case <-a.Registered():
	case <-time.After(5 * time.Second):
		t.Fatal("not registered within 5 s")
	}
	return a
}

// user is a client with a session.
type user struct {
	t       testing.TB
	c       *wire.Client
	session string
}

func (u *user) say(raw string) (*router.Reply, error) {
	return u.c.Serve(u.t.Context(), &router.Request{
		Server: "demo", Session: u.session, Era: router.EraLegacy, Version: "2025-11-25", Message: message(u.t, raw),
	}, router.Discard)
}

func (l *lab) user(t testing.TB) *user {
	t.Helper()
	u := &user{t: t, c: l.client(t)}
	r, err := u.say(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if err != nil || r.Session == "" {
		t.Fatalf("initialize: %v, %v", r, err)
	}
	u.session = r.Session
	if _, err := u.say(`{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil {
		t.Fatal(err)
	}
	return u
}

// call calls a tool and returns the answer.
func (u *user) call(tool, args string) string {
	u.t.Helper()
	r, err := u.say(fmt.Sprintf(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, tool, args))
	if err != nil {
		u.t.Fatalf("%s: %v", tool, err)
	}
	return string(r.Body)
}

func wants(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Fatalf("%q is not in %s", p, text)
		}
	}
}

// TestHandOver: what is remembered in a session outlives its instances, and an
// instance that leaves hands its sessions on, so that nobody waits.
func TestHandOver(t *testing.T) {
	l := newLab(t)
	first := l.sdk(t, demo.New(nil))
	u := l.user(t)
	wants(t, u.call("remember", `{"key":"k","value":"v1"}`), `"replaced":false`)
	wants(t, u.call("remember", `{"key":"k","value":"v2"}`), `"replaced":true`)
	second := l.sdk(t, demo.New(nil))
	slow := make(chan string, 1)
	began := make(chan struct{})
	go func() {
		close(began)
		slow <- u.call("count", `{"to":3,"delay_ms":150}`)
	}()
	<-began
	time.Sleep(100 * time.Millisecond) // until the call is at work: nothing here says so
	closed := make(chan error, 1)
	go func() { closed <- first.Close(t.Context()) }()
	wants(t, <-slow, `"counted":3`)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	wants(t, u.call("recall", `{"key":"k"}`), `"value":"v2"`, `"cause":"drain"`, `"epoch":2`)
	if took := time.Since(since); took > 90*time.Millisecond {
		t.Errorf("the first call after the move took %s: it has waited for the instance that left", took)
	}
	wants(t, u.call("remember", `{"key":"k2","value":"w"}`), `"k2"`)
	if err := second.Close(t.Context()); err != nil { // nobody is left
		t.Fatal(err)
	}
	l.sdk(t, demo.New(nil))
	wants(t, u.call("recall", `{"key":"k2"}`), `"value":"w"`, `"epoch":3`)
	wants(t, u.call("recall", `{"key":"other"}`), `remembered: k, k2`)
	wants(t, u.call("remember", `{"key":"`+strings.Repeat("x", 200)+`","value":"long"}`), `"replaced":false`)
	wants(t, u.call("recall", `{"key":"`+strings.Repeat("x", 200)+`"}`), `"value":"long"`)
}

// TestDataOfServer: a server's handler reaches its session's data, fenced.
func TestDataOfServer(t *testing.T) {
	l := newLab(t)
	got := make(chan *session.Data, 1)
	server := mcp.NewServer(&mcp.Implementation{Name: "s", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "data"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		d, _ := session.DataFrom(ctx)
		got <- d
		return nil, nil, nil
	})
	first := l.sdk(t, server)
	u := l.user(t)
	u.call("data", `{}`)
	d, ctx := <-got, t.Context()
	if d == nil || d.Session() != u.session {
		t.Fatalf("data of session %v, want %s", d, u.session)
	}
	rev, err := d.Put(ctx, "a", []byte{0, 1, 255}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := d.Get(ctx, "a"); err != nil || string(v.Value) != "\x00\x01\xff" || v.Rev != rev {
		t.Errorf("got %+v, %v; want revision %d", v, err, rev)
	}
	for _, base := range []uint64{0, rev + 1} {
		if _, err := d.Put(ctx, "a", nil, base); !errors.Is(err, kv.ErrConflict) {
			t.Errorf("put over %d: %v, want a conflict", base, err)
		}
	}
	if _, err := d.Put(ctx, "a", []byte("2"), rev); err != nil {
		t.Error(err)
	}
	if _, err := d.Put(ctx, "b", make([]byte, sessions.MaxDataValue+1), 0); !errors.Is(err, sessions.ErrLimit) {
		t.Errorf("too large: %v", err)
	}
	if _, err := d.Put(ctx, "b", []byte("x"), sessions.AnyRev); err != nil {
		t.Error(err)
	}
	if list, err := d.List(ctx); err != nil || len(list) != 2 || list[0].Key != "a" || list[1].Size != 1 {
		t.Errorf("list %v, %v", list, err)
	}
	if err := d.Delete(ctx, "b", 0); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("delete what is there as if it were not: %v", err)
	}
	if err := d.Delete(ctx, "b", sessions.AnyRev); err != nil {
		t.Error(err)
	}
	if _, err := d.Get(ctx, "b"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}

	l.sdk(t, server)
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}
	u.call("data", `{}`)
	if later := <-got; later == nil {
		t.Error("no data after the move")
	} else if v, err := later.Get(ctx, "a"); err != nil || string(v.Value) != "2" {
		t.Errorf("after the move: %q, %v", v.Value, err)
	} else if _, err := later.Put(ctx, "a", []byte("3"), v.Rev); err != nil {
		t.Error(err)
	}
	// The one that had it is deposed, whatever it still can reach.
	if _, err := d.Put(ctx, "a", []byte("old"), sessions.AnyRev); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("put by the owner before: %v", err)
	}
	if _, err := d.Get(ctx, "a"); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("get by the owner before: %v", err)
	}
}

// streamed passes on what comes before the reply.
type streamed chan string

func (s streamed) Send(_ context.Context, msg []byte) error {
	if len(msg) > 0 {
		s <- string(msg)
	}
	return nil
}

// TestHandOverWaitsForAnswers: a call that waits for its client's answer gets it
// while its instance leaves.
func TestHandOverWaitsForAnswers(t *testing.T) {
	l := newLab(t)
	first := l.sdk(t, demo.New(nil))
	l.sdk(t, demo.New(nil))
	u := &user{t: t, c: l.client(t)}
	for {
		r, err := u.say(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"t","version":"1"}}}`)
		if err != nil {
			t.Fatal(err)
		}
		if u.session = r.Session; strings.HasPrefix(r.Session, first.Instance()) {
			break
		}
		u.session = ""
	}
	asked, done := make(streamed, 8), make(chan string, 1)
	go func() {
		r, err := u.c.Serve(t.Context(), &router.Request{
			Server: "demo", Session: u.session, Era: router.EraLegacy, Version: "2025-11-25",
			Message: message(t, `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"ask","arguments":{"question":"what?"}}}`),
		}, asked)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(r.Body)
	}()
	q := message(t, <-asked)
	if q.Method != "elicitation/create" {
		t.Fatalf("asked %s", q.Raw)
	}
	closed := make(chan error, 1)
	go func() { closed <- first.Close(t.Context()) }()
	select {
	case err := <-closed:
		t.Fatalf("closed with a call in flight: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if _, err := u.say(`{"jsonrpc":"2.0","id":` + string(q.ID) + `,"result":{"action":"accept","content":{"answer":"yes"}}}`); err != nil {
		t.Fatal(err)
	}
	wants(t, <-done, "yes")
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	wants(t, u.call("echo", `{"text":"hi"}`), `"cause":"drain"`)
}
