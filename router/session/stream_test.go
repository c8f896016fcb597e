package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
)

// listener is a GET under way.
type listener struct {
	*stream
	cancel context.CancelFunc
	done   chan error
	reply  *router.Reply
}

func (f *fixture) listen(l *session.Layer, id, last string) *listener {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	g := &listener{stream: newStream(), cancel: cancel, done: make(chan error, 1)}
	go func() {
		var err error
		g.reply, err = l.Serve(ctx, &router.Request{Op: router.OpListen, Server: server, Session: id, Version: legacy, LastEventID: last}, g.stream)
		g.done <- err
	}()
	f.t.Cleanup(cancel)
	return g
}

func (g *listener) leave(t testing.TB) {
	t.Helper()
	g.cancel()
	if err := g.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("listener ended with %v", err)
	}
}

func (g *listener) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-g.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the listener does not end")
		return nil
	}
}

func note(n int) []byte {
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%d}}`, n)
}

// A client that changes edges over and over gets every message once, in order.
func TestResumeOwnStream(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	const total = 1000
	var got []string
	last := ""
	var b *backendSession
	for round := range 6 {
		g := f.listen(f.l, id, last)
		if prime := g.opened(t); round == 0 && prime != "g1.0" {
			t.Errorf("prime event %q", prime)
		}
		if b == nil {
			b = f.b.get("b1")
			go func() {
				for n := range total {
					b.out <- note(n)
				}
			}()
		}
		for range 100 {
			got = append(got, g.wait(t))
		}
		if round < 5 {
			g.leave(t) // what came after is with a client that is gone
			g.mu.Lock()
			last = g.ids[slices.Index(g.msgs, got[len(got)-1])]
			g.mu.Unlock()
			continue
		}
		for len(got) < total {
			got = append(got, g.wait(t))
		}
		g.leave(t)
	}
	for n, m := range got {
		if m != string(note(n)) {
			t.Fatalf("message %d is %s", n, m)
		}
	}
}

func TestWithoutLastEventID(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	g := f.listen(f.l, id, "")
	g.opened(t)
	f.b.get("b1").out <- note(1)
	g.wait(t)
	g.leave(t)
	f.b.get("b1").out <- note(2) // held while nobody listens
	g = f.listen(f.l, id, "")
	if m := g.wait(t); m != string(note(2)) {
		t.Errorf("got %s", m)
	}
	second := f.listen(f.l, id, "")
	second.opened(t)
	if err := g.end(t); err != nil || g.reply.Status != 200 {
		t.Errorf("taken over: %v", err)
	}
	f.b.get("b1").out <- note(3)
	if m := second.wait(t); m != string(note(3)) {
		t.Errorf("got %s", m)
	}
	if _, err := f.l.Serve(t.Context(), &router.Request{Op: router.OpEnd, Server: server, Session: id}, nil); err != nil {
		t.Fatal(err)
	}
	if err := second.end(t); err != nil {
		t.Errorf("the session ended: %v", err)
	}
}

func TestNoStream(t *testing.T) {
	f := setup(t, nil)
	f.b.listens = false
	id := f.open()
	g := f.listen(f.l, id, "")
	var e *router.Error
	if err := g.end(t); !errors.As(err, &e) || e.Status != 405 {
		t.Errorf("got %v, want 405", err)
	}
	if n := len(g.messages()); n != 0 {
		t.Errorf("%d messages before it", n)
	}
}

// A listener whose session moves is told so, and goes on at the new owner with
// what the old one had not delivered.
func TestListenerFollows(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.say(f.l, id, subscribe)
	g := f.listen(f.l, id, "")
	g.opened(t)
	for n := range 3 {
		f.b.get("b1").out <- note(n)
		g.wait(t)
	}
	last := "g1.1" // the client saw only the first
	b2 := newBackend()
	b2.name = "c"
	l2 := f.another(b2, func(o *session.Options) { o.Instance = there })
	epoch := f.k.move(id, there)
	req := request(t, id, list)
	req.Epoch = epoch
	if _, err := f.l.Serve(t.Context(), req, nil); !errors.Is(err, router.ErrMoved) {
		t.Fatal(err)
	}
	if err := g.end(t); !errors.Is(err, router.ErrMoved) {
		t.Errorf("listener at the old owner: %v", err)
	}
	g2 := f.listen(l2, id, last)
	var got []string
	for range 5 {
		got = append(got, g2.wait(t))
	}
	want := []string{string(note(1)), string(note(2)),
		`{"jsonrpc":"2.0","method":"notifications/resources/list_changed"}`,
		`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`,
		`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"demo://x"}}`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if !strings.HasPrefix(g2.last(), "g2.") {
		t.Errorf("event id %s, want one of the second epoch", g2.last())
	}
	b2.get("c1").out <- note(9)
	if m := g2.wait(t); m != string(note(9)) {
		t.Errorf("got %s", m)
	}
}

// A client that only listens gets its subscriptions back when the server is
// started anew.
func TestListenerSurvivesBackend(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.say(f.l, id, subscribe)
	g := f.listen(f.l, id, "")
	g.opened(t)
	f.b.crash()
	for range 3 {
		g.wait(t) // what may have changed
	}
	f.b.get("b2").out <- note(1)
	if m := g.wait(t); m != string(note(1)) {
		t.Errorf("got %s", m)
	}
}

// A client that reads nothing holds up its own server session, and no memory.
func TestSlowListener(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	g := f.listen(f.l, id, "")
	g.opened(t)
	hold := make(chan struct{})
	g.mu.Lock()
	g.hold = hold
	g.mu.Unlock()
	const total = 3000
	b := f.b.get("b1")
	go func() {
		for n := range total {
			b.out <- note(n)
		}
	}()
	f.say(f.l, id, call) // others are not held up
	close(hold)
	for n := range total {
		if m := g.wait(t); m != string(note(n)) {
			t.Fatalf("message %d: %s", n, m)
		}
	}
}

// A client that comes back is not kept waiting by its dead connection.
func TestTakeOverStuckListener(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	g := f.listen(f.l, id, "")
	g.opened(t)
	stuck := make(chan struct{})
	g.mu.Lock()
	g.hold, g.deaf = stuck, true
	g.mu.Unlock()
	f.b.get("b1").out <- note(1)
	f.b.get("b1").out <- note(2)
	second := f.listen(f.l, id, "g1.0")
	for n := range 2 {
		if m := second.wait(t); m != string(note(n+1)) {
			t.Errorf("got %s", m)
		}
	}
	close(stuck)
	if err := g.end(t); err != nil {
		t.Errorf("the stuck listener ended with %v", err)
	}
	f.b.get("b1").out <- note(3)
	if m := second.wait(t); m != string(note(3)) {
		t.Errorf("got %s", m)
	}
}

// What nobody takes is dropped, oldest first, and a server that asked something
// is not left waiting.
func TestNobodyListens(t *testing.T) {
	f := setup(t, func(o *session.Options) { o.Events = nil })
	id := f.open()
	g := f.listen(f.l, id, "")
	g.opened(t)
	g.leave(t)
	b := f.b.get("b1")
	b.out <- []byte(`{"jsonrpc":"2.0","id":"q","method":"roots/list"}`)
	for n := range 1500 {
		b.out <- note(n)
	}
	eventually(t, "the server's request is refused", func() bool { return slices.Contains(f.b.heard(), `b1 _response "q"`) })
	eventually(t, "all is taken from the server", func() bool { return len(b.out) == 0 })
	g = f.listen(f.l, id, "")
	first := g.wait(t)
	n := 1
	for m := first; m != string(note(1499)); n++ {
		m = g.wait(t)
	}
	if n != 1024 {
		t.Errorf("%d messages were kept, want 1024", n)
	}
}

// Answers reach the backend session that asked, and no other.
func TestAnswers(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	answer := func(raw string) *router.Reply {
		t.Helper()
		r, err := f.l.Serve(t.Context(), request(t, id, raw), nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := answer(`{"jsonrpc":"2.0","id":1,"result":{}}`); r.Status >= 300 {
		t.Errorf("status %d", r.Status)
	}
	if !slices.Contains(f.b.heard(), "b1 _response 1") {
		t.Errorf("the server heard %q", f.b.heard())
	}
	f.say(f.l, id, initialized)
	g := f.listen(f.l, id, "")
	g.opened(t)
	f.b.crash()
	f.say(f.l, id, call)
	for range 2 {
		g.wait(t) // list_changed
	}
	if r := answer(`{"jsonrpc":"2.0","id":1,"result":{}}`); r.Status != 400 || !strings.Contains(string(r.Body), "made anew") {
		t.Errorf("stale answer: %d %s", r.Status, r.Body)
	}
	for _, own := range []string{`1`, `"a\"b"`} {
		f.b.get("b2").out <- []byte(`{"jsonrpc":"2.0","id":` + own + `,"method":"roots/list"}`)
		asked := parse(t, g.wait(t))
		if r := answer(string(jsonrpc.NewResult(asked.ID, []byte("{}")))); r.Status >= 300 {
			t.Errorf("answer %s: %d %s", asked.ID, r.Status, r.Body)
		}
		if !slices.Contains(f.b.heard(), "b2 _response "+own) {
			t.Errorf("the server heard %q", f.b.heard())
		}
	}
	f.b.get("b2").out <- []byte(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	contains(t, g.wait(t), `"requestId":"ripstop.`)
}
