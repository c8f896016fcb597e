package session_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
)

func TestOpenServeEnd(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	if router.SessionInstance(id) != here {
		t.Errorf("session id %s does not name the instance", id)
	}
	rec, _ := f.k.record(id)
	if rec.Instance != here || rec.Node != "n1" || rec.Epoch != 1 || rec.Version != legacy || rec.OnMove != sessions.OnMoveReinitialize {
		t.Errorf("record: %+v", rec)
	}
	contains(t, string(rec.Initialize), `"clientInfo":{"name":"c","version":"1"}`)
	f.say(f.l, id, initialized)
	contains(t, f.say(f.l, id, call), `"by":"b1"`)
	if rec, _ := f.k.record(id); !rec.Initialized {
		t.Error("initialized is not recorded")
	}
	finds, writes := f.k.counts()
	for range 10 {
		f.say(f.l, id, call)
	}
	if n, w := f.k.counts(); n != finds || w != writes {
		t.Errorf("ordinary calls cost %d reads and %d writes of the record", n-finds, w-writes)
	}
	if _, err := f.l.Serve(t.Context(), &router.Request{Op: router.OpEnd, Server: server, Session: id}, nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.k.record(id); ok || len(f.b.live()) != 0 || len(f.l.Sessions()) != 0 {
		t.Errorf("left after its end: record %v, backend %v, layer %v", ok, f.b.live(), f.l.Sessions())
	}
	f.fails(f.l, id, call, router.ErrSessionNotFound)
	if n := len(f.l.Sessions()); n != 0 {
		t.Errorf("%d sessions held for an unknown id", n)
	}
}

func TestWithoutSession(t *testing.T) {
	f := setup(t, nil)
	r, err := f.l.Serve(t.Context(), &router.Request{Server: server, Era: router.EraModern, Message: parse(t, call)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(r.Body), "sessionless")
	stateless := router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25"}`))}, nil
	})
	l := f.another(plain{stateless}, nil)
	if r, err = l.Serve(t.Context(), request(t, "", initialize), nil); err != nil || r.Session != "" {
		t.Errorf("stateless server: session %q, %v", r.Session, err)
	}
	if _, writes := f.k.counts(); writes != 0 {
		t.Errorf("%d records written", writes)
	}
}

// plain is a backend of nothing but a handler.
type plain struct{ router.Handler }

func (plain) Probe(context.Context) (router.Info, error) { return router.Info{}, nil }
func (plain) Close() error                               { return nil }

func TestKeeperRefuses(t *testing.T) {
	f := setup(t, nil)
	f.k.full = router.Errorf(router.ErrOverloaded, "too many sessions in this region")
	_, err := f.l.Serve(t.Context(), request(t, "", initialize), nil)
	if !errors.Is(err, router.ErrOverloaded) || !strings.Contains(err.Error(), "region") {
		t.Errorf("got %v", err)
	}
	eventually(t, "the backend session ends", func() bool { return len(f.b.live()) == 0 })
}

func TestLimit(t *testing.T) {
	f := setup(t, func(o *session.Options) { o.MaxSessions = 2 })
	f.open()
	f.open()
	f.fails(f.l, "", initialize, router.ErrOverloaded)
}

// A session that this instance has never seen, but whose record names it.
func TestAdopt(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	for _, raw := range []string{initialized, setLevel, subscribe} {
		f.say(f.l, id, raw)
	}
	b2 := newBackend()
	b2.name = "c"
	l2 := f.another(b2, func(o *session.Options) { o.Instance = there })
	err := f.fails(l2, id, call, router.ErrMoved)
	if got := movedTo(t, err); got != here+" 1" {
		t.Errorf("moved to %s", got)
	}
	epoch := f.k.move(id, there)

	out := newStream()
	r, err := l2.Serve(t.Context(), request(t, id, call), out)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(r.Body), `"by":"c1"`, `"ripstop/reinitialized":{"cause":"node n1 is down","epoch":2}`)
	contains(t, strings.Join(out.messages(), "\n"), `"logger":"ripstop"`, `"level":"warning"`)
	want := []string{"initialize", "c1 notifications/initialized", "c1 logging/setLevel", "c1 resources/subscribe", "c1 tools/call"}
	if got := b2.heard(); !slices.Equal(got, want) {
		t.Errorf("the new backend heard %q, want %q", got, want)
	}
	if s := b2.get("c1"); !strings.Contains(s.params, `"elicitation":{}`) {
		t.Errorf("initialize had params %s", s.params)
	}
	if again := f.say(l2, id, call); strings.Contains(again, "reinitialized") {
		t.Errorf("said twice: %s", again)
	}

	// The owner it had hears of it with the next request that knows.
	req := request(t, id, call)
	req.Epoch = epoch
	if _, err := f.l.Serve(t.Context(), req, nil); !errors.Is(err, router.ErrMoved) {
		t.Errorf("deposed owner: %v", err)
	}
	eventually(t, "the old backend session ends", func() bool { return len(f.b.live()) == 0 })
	if _, ok := f.k.record(id); !ok {
		t.Error("the deposed owner ended the record")
	}
}

func TestMovedAwayAndBack(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.k.move(id, there)
	req := request(t, id, call)
	req.Epoch = f.k.move(id, here)
	r, err := f.l.Serve(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(r.Body), `"by":"b2"`, `"epoch":3`)
	eventually(t, "only the new backend session is left", func() bool { return slices.Equal(f.b.live(), []string{"b2"}) })
}

func TestBackendForgets(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.b.crash()
	var wg sync.WaitGroup
	bodies := make([]string, 20)
	for i := range bodies {
		wg.Go(func() { bodies[i] = f.say(f.l, id, call) })
	}
	wg.Wait()
	marked := 0
	for _, body := range bodies {
		contains(t, body, `"by":"b2"`)
		marked += strings.Count(body, "ripstop/reinitialized")
	}
	if marked != 1 {
		t.Errorf("%d results say that the session was reinitialized, want 1", marked)
	}
	if f.b.inits != 2 {
		t.Errorf("%d initializes, want 2", f.b.inits)
	}
	f.b.crash()
	f.b.set(func() { f.b.failInit = router.Errorf(router.ErrBackend, "it does not start") })
	err := f.fails(f.l, id, call, router.ErrUnavailable)
	contains(t, err.Error(), "it does not start", "nothing was executed")
	f.b.set(func() { f.b.failInit = nil })
	contains(t, f.say(f.l, id, call), `"by":"b3"`, "reinitialized")
}

func TestOnMoveEnd(t *testing.T) {
	f := setup(t, func(o *session.Options) { o.OnMove = sessions.OnMoveEnd })
	id := f.open()
	f.say(f.l, id, call)
	f.b.crash()
	f.fails(f.l, id, call, router.ErrSessionNotFound)
	if _, ok := f.k.record(id); ok {
		t.Error("the record is left")
	}
	id = f.open()
	if err := f.l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.k.record(id); ok {
		t.Error("the record is left after Close")
	}
}

func TestCloseLeavesRecords(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	if err := f.l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.k.record(id); !ok {
		t.Error("the record is gone: nobody can take the session over")
	}
	if !f.b.closed || len(f.b.live()) != 0 {
		t.Error("the backend is not closed")
	}
	f.fails(f.l, id, call, router.ErrUnavailable)
	f.fails(f.l, "", initialize, router.ErrUnavailable)
}

func TestServerRefusesReplay(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.say(f.l, id, subscribe)
	f.b.crash()
	f.b.set(func() { f.b.refuse["resources/subscribe"] = "no such resource any more" })
	contains(t, f.say(f.l, id, call), `"by":"b2"`, "reinitialized")
}

func TestChanges(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.say(f.l, id, subscribe)
	f.say(f.l, id, setLevel)
	rec, _ := f.k.record(id)
	if string(rec.Subscriptions["demo://x"]) != `{"uri":"demo://x"}` || string(rec.LogLevel) != `{"level":"info"}` {
		t.Errorf("recorded: %s, %s", rec.Subscriptions, rec.LogLevel)
	}
	f.b.set(func() { f.b.refuse["resources/unsubscribe"] = "no" })
	f.say(f.l, id, unsubscribe)
	if rec, _ := f.k.record(id); len(rec.Subscriptions) != 1 {
		t.Error("what the server refused was recorded")
	}
	f.k.move(id, there)
	err := f.fails(f.l, id, setLevel, router.ErrMoved)
	if got := movedTo(t, err); got != there+" 2" {
		t.Errorf("moved to %s", got)
	}
}

// While the record can't be written, the session goes on, and what its client
// changed is neither lost nor refused.
func TestChangesWaitForTheRecord(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.k.break_(router.Errorf(router.ErrUnavailable, "no quorum"))
	f.say(f.l, id, subscribe)
	f.say(f.l, id, setLevel)
	contains(t, f.say(f.l, id, call), `"by":"b1"`)
	f.k.break_(nil)
	eventually(t, "the changes are recorded", func() bool {
		rec, _ := f.k.record(id)
		return len(rec.Subscriptions) == 1 && rec.LogLevel != nil
	})
}

func TestKeeperOutOfReach(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	f.b.crash()
	f.k.break_(errors.New("connection lost"))
	f.fails(f.l, id, call, router.ErrUnavailable)
	f.k.break_(nil)
	contains(t, f.say(f.l, id, call), `"by":"b2"`)
	f.k.break_(kv.ErrNotFound)
	f.b.crash()
	f.fails(f.l, id, call, router.ErrSessionNotFound)
}

func TestIdle(t *testing.T) {
	f := setup(t, func(o *session.Options) { o.Idle = 100 * time.Millisecond })
	id := f.open()
	ctx, cancel := context.WithCancel(t.Context())
	listening := f.open()
	out := newStream()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.l.Serve(ctx, &router.Request{Op: router.OpListen, Server: server, Session: listening}, out)
	}()
	out.opened(t)
	eventually(t, "the idle session ends", func() bool { _, ok := f.k.record(id); return !ok })
	if _, ok := f.k.record(listening); !ok {
		t.Error("a session with a listener ended")
	}
	cancel()
	<-done
	eventually(t, "the other ends too", func() bool { return len(f.b.live()) == 0 && len(f.l.Sessions()) == 0 })
}

func TestRelease(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	started, finish := make(chan struct{}), make(chan struct{})
	f.b.set(func() {
		f.b.work = func(context.Context, *backendSession, *jsonrpc.Message, router.Stream) ([]byte, error) {
			close(started)
			<-finish
			return []byte(`{"done":true}`), nil
		}
	})
	replies := make(chan string, 1)
	go func() { replies <- f.say(f.l, id, call) }()
	<-started
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := f.l.Release(short, id); err == nil {
		t.Fatal("released with a call in flight")
	}
	f.say(f.l, id, list) // it goes on

	released, held := make(chan error, 1), make(chan error, 1)
	go func() { released <- f.l.Release(t.Context(), id) }()
	eventually(t, "new requests wait", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		_, err := f.l.Serve(ctx, request(t, id, list), nil)
		return errors.Is(err, context.DeadlineExceeded)
	})
	go func() {
		_, err := f.l.Serve(t.Context(), request(t, id, list), nil)
		held <- err
	}()
	close(finish)
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	contains(t, <-replies, `"done":true`)
	if err := <-held; !errors.Is(err, router.ErrMoved) {
		t.Errorf("the request that waited: %v", err)
	}
	f.fails(f.l, id, list, router.ErrMoved) // not taken back before it is moved
	eventually(t, "the backend session ends", func() bool { return len(f.b.live()) == 0 })
	f.k.move(id, here)
	contains(t, f.say(f.l, id, list), `"by":"b2"`)
	if err := f.l.Release(t.Context(), "unknown"); err != nil {
		t.Errorf("not held: %v", err)
	}
}
