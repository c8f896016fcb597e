package keep_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/session"
	"ripstop/router/session/keep"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// registry is what instances there are, by hand.
type registry struct {
	mu    sync.Mutex
	list  []*kv.Instance
	watch []func(kv.Change)
}

func (r *registry) Instances(server string) []*kv.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	if server != "s" {
		return nil
	}
	return slices.Clone(r.list)
}

func (r *registry) Watch(f func(kv.Change)) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch = append(r.watch, f)
	return func() {}
}

func (r *registry) set(ids ...string) {
	r.mu.Lock()
	r.list = nil
	for _, id := range ids {
		r.list = append(r.list, &kv.Instance{Server: "s", Instance: id, Node: "n1"})
	}
	watch := slices.Clone(r.watch)
	r.mu.Unlock()
	for _, f := range watch {
		f(kv.Change{})
	}
}

// pick takes the first that is not to be avoided.
func (r *registry) pick(server, avoid string) *kv.Instance {
	for _, i := range r.Instances(server) {
		if i.Instance != avoid {
			return i
		}
	}
	return nil
}

type lab struct {
	*keep.Keep
	node  *fabric.Node
	store *sessions.Store
	reg   *registry
	up    bool // whether other nodes are
	write bool
	hung  sync.Map // instances that do
}

func newLab(t testing.TB) *lab { return newLabWith(t, func(*keep.Options) {}) }

func newLabWith(t testing.TB, change func(*keep.Options)) *lab {
	t.Helper()
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	store, err := sessions.Open(sessions.Options{Fabric: n.Fabric(), Node: n.Name(), Incarnation: n.Incarnation(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{node: n, store: store, reg: &registry{}, up: true, write: true}
	opts := keep.Options{
		Store: store, Registry: l.reg, Region: "local", Node: n.Name(), Pick: l.reg.pick, Logger: quiet(),
		Silent: func(_ context.Context, _, instance string, _ bool) bool {
			_, hangs := l.hung.Load(instance)
			return hangs
		},
		Writable: func() bool { return l.write }, NodeUp: func(string) bool { return l.up },
	}
	change(&opts)
	l.Keep = keep.New(opts)
	t.Cleanup(func() { l.Close(); store.Close() })
	return l
}

func record(id, instance string) sessions.Record {
	return sessions.Record{ID: id, Server: "s", Instance: instance, Version: "2025-11-25", OnMove: sessions.OnMoveReinitialize, Initialize: []byte(`{"protocolVersion":"2025-11-25"}`)}
}

func (l *lab) open(t testing.TB, id, instance string) sessions.Record {
	t.Helper()
	r, err := l.Open(t.Context(), record(id, instance))
	if err != nil || r.Rev == 0 || r.Epoch != 1 || r.Home != "local" {
		t.Fatalf("opened %+v, %v", r, err)
	}
	return r
}

// TestOneMoverWins: however many find the owner gone, the session moves once.
func TestOneMoverWins(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b", "c")
	l.open(t, "one", "a")
	l.reg.set("b", "c")
	var wg sync.WaitGroup
	got := make(chan sessions.Record, 20)
	for range cap(got) {
		wg.Go(func() {
			r, err := l.Locate(t.Context(), "s", "one", "a", 1)
			if err != nil {
				t.Error(err)
			}
			got <- r
		})
	}
	wg.Wait()
	close(got)
	for r := range got {
		if r.Epoch != 2 || r.Instance != "b" || r.Cause == "" {
			t.Errorf("found with %s under epoch %d, cause %q", r.Instance, r.Epoch, r.Cause)
		}
	}
	if r, err := l.store.Get(t.Context(), "one"); err != nil || r.Epoch != 2 {
		t.Errorf("the bucket has epoch %d, %v", r.Epoch, err)
	}
}

// TestAnOwnerThatHangs stands in the registry, and loses its session all the same;
// one that answers keeps it.
func TestAnOwnerThatHangs(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b", "c")
	l.open(t, "one", "a")
	if r, err := l.Locate(t.Context(), "s", "one", "a", 1); err != nil || r.Instance != "a" || r.Epoch != 1 {
		t.Errorf("its owner answers, and it is at %s under epoch %d, %v", r.Instance, r.Epoch, err)
	}
	l.hung.Store("a", true)
	if r, err := l.Locate(t.Context(), "s", "one", "", 1); err != nil || r.Instance != "a" {
		t.Errorf("nobody has found it silent, and it is at %s, %v", r.Instance, err)
	}
	began := time.Now()
	if r, err := l.Locate(t.Context(), "s", "one", "a", 1); err != nil || r.Instance != "b" || r.Epoch != 2 || r.Cause != "instance hung" {
		t.Errorf("it is at %s under epoch %d, cause %q, %v", r.Instance, r.Epoch, r.Cause, err)
	}
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Errorf("that took %s", took)
	}
	// Where all hang, it waits for one to answer.
	l.hung.Store("b", true)
	l.reg.set("a", "b")
	time.AfterFunc(500*time.Millisecond, func() { l.hung.Delete("b") })
	if r, err := l.Locate(t.Context(), "s", "one", "b", 2); err != nil || r.Instance != "b" || r.Epoch != 2 {
		t.Errorf("it is at %s under epoch %d, %v", r.Instance, r.Epoch, err)
	}
}

// TestAnOwnerThatComesBack keeps its session, within the time that its agent
// needs to connect again.
func TestAnOwnerThatComesBack(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	l.open(t, "one", "a")
	l.up = false
	l.reg.set("b")
	back := time.AfterFunc(50*time.Millisecond, func() { l.reg.set("a", "b") })
	defer back.Stop()
	began := time.Now()
	r, err := l.Locate(t.Context(), "s", "one", "a", 1)
	if err != nil || r.Instance != "a" || r.Epoch != 1 {
		t.Errorf("with %s under epoch %d, %v", r.Instance, r.Epoch, err)
	}
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("found after %s, though it was back after 50 ms", took)
	}
}

// TestUnreached: an instance that stands in the registry keeps its session,
// though a request did not reach it.
func TestUnreached(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	l.open(t, "one", "a")
	r, err := l.Locate(t.Context(), "s", "one", "a", 1)
	if err != nil || r.Instance != "a" || r.Epoch != 1 {
		t.Errorf("with %s under epoch %d, %v", r.Instance, r.Epoch, err)
	}
}

func TestNoOtherInstance(t *testing.T) {
	l := newLab(t)
	l.reg.set("a")
	l.open(t, "one", "a")
	l.reg.set()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.Locate(ctx, "s", "one", "a", 1); !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("without any instance: %v", err)
	}
	appears := time.AfterFunc(300*time.Millisecond, func() { l.reg.set("z") })
	defer appears.Stop()
	r, err := l.Locate(t.Context(), "s", "one", "a", 1)
	if err != nil || r.Instance != "z" || r.Epoch != 2 {
		t.Errorf("when one has appeared: %s under epoch %d, %v", r.Instance, r.Epoch, err)
	}
}

func TestEndsWithItsInstance(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	r := record("one", "a")
	r.OnMove = sessions.OnMoveEnd
	if _, err := l.Open(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	l.reg.set("b")
	for range 2 {
		if _, err := l.Locate(t.Context(), "s", "one", "a", 1); !errors.Is(err, router.ErrSessionNotFound) {
			t.Errorf("located: %v", err)
		}
	}
	if _, err := l.Find(t.Context(), "s", "one"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("found: %v", err)
	}
}

func TestChange(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	l.open(t, "one", "a")
	change := func(c session.Change) error {
		c.Server, c.ID = "s", "one"
		_, err := l.Change(t.Context(), c)
		return err
	}
	var wg sync.WaitGroup
	for i := range 5 { // each sees the others' conflicts
		wg.Go(func() {
			uri := fmt.Sprint("file:///", i)
			if err := change(session.Change{Instance: "a", Epoch: 1, URI: uri, Subscribe: []byte(`{"uri":"` + uri + `"}`)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range []session.Change{
		{Instance: "a", Epoch: 1, Initialized: true},
		{Instance: "a", Epoch: 1, LogLevel: []byte(`{"level":"error"}`)},
		{Instance: "a", Epoch: 1, URI: "file:///1", Unsubscribe: true},
	} {
		if err := change(c); err != nil {
			t.Error(err)
		}
	}
	r, err := l.Find(t.Context(), "s", "one")
	if err != nil || !r.Initialized || string(r.LogLevel) != `{"level":"error"}` || len(r.Subscriptions) != 4 || r.Subscriptions["file:///1"] != nil {
		t.Errorf("record %+v, %v", r, err)
	}
	rev := r.Rev
	if err := change(session.Change{Instance: "a", Epoch: 1, Initialized: true}); err != nil {
		t.Error(err)
	}
	if r, _ = l.Find(t.Context(), "s", "one"); r.Rev != rev {
		t.Error("what changes nothing was written")
	}
	l.reg.set("b")
	if _, err := l.Locate(t.Context(), "s", "one", "a", 1); err != nil {
		t.Fatal(err)
	}
	if err := change(session.Change{Instance: "a", Epoch: 1, Initialized: true}); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("a deposed owner: %v", err)
	}
	if err := l.End(t.Context(), "s", "one", 1); err != nil {
		t.Errorf("its end, by a deposed owner: %v", err)
	}
	if _, err := l.Find(t.Context(), "s", "one"); err != nil {
		t.Errorf("a deposed owner has ended the session: %v", err)
	}
	if err := l.End(t.Context(), "s", "one", 2); err != nil {
		t.Error(err)
	}
	if _, err := l.Find(t.Context(), "s", "one"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := l.Find(t.Context(), "other", "one"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("as another server's: %v", err)
	}
}

// TestOpenedInAMinority: a session is opened though nothing can be written, and
// its record follows.
func TestOpenedInAMinority(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	l.write = false
	r, err := l.Open(t.Context(), record("one", "a"))
	if err != nil || r.Rev != 0 || r.Epoch != 1 {
		t.Fatalf("opened %+v, %v", r, err)
	}
	if _, err := l.Find(t.Context(), "s", "one"); err != nil {
		t.Errorf("not known to its own node: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); l.store.Pending() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the record is not written")
		}
	}
	if _, err := l.store.Get(t.Context(), "one"); err != nil {
		t.Error(err)
	}
}

func TestClean(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	l.open(t, "stays", "a")
	l.open(t, "orphan", "b")
	l.reg.set("a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Clean(ctx, keep.CleanOptions{Every: 10 * time.Millisecond, Idle: 200 * time.Millisecond, Leads: func() bool { return true }})
	}()
	begun := time.Now()
	for end := begun.Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := l.store.Get(t.Context(), "orphan"); errors.Is(err, kv.ErrNotFound) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the orphan is still there")
		}
	}
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("ended after %s, though its client had 200 ms", took)
	}
	cancel()
	<-done
	if _, err := l.store.Get(t.Context(), "stays"); err != nil {
		t.Errorf("a session whose instance is there: %v", err)
	}
}

// TestOverNATS: agents elsewhere get the same answers, and errors.
func TestOverNATS(t *testing.T) {
	l := newLab(t)
	l.reg.set("a", "b")
	nc := l.node.MCP()
	c := keep.Client{Server: "s", Conn: func() *nats.Conn { return nc }}
	if r, err := c.Open(t.Context(), record("one", "a")); err != nil || r.Rev != 0 || r.Epoch != 1 {
		t.Errorf("with a node that keeps no sessions: %+v, %v", r, err)
	}
	if _, err := c.Find(t.Context(), "s", "one"); !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("with a node that keeps no sessions: %v", err)
	}
	events, err := sessions.OpenEventLog(sessions.EventOptions{Fabric: l.node.Fabric(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	s, err := l.Serve(nc, l.node.Server().ID(), events)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := c.Open(t.Context(), record("one", "a"))
	if err != nil || r.Rev == 0 || r.Instance != "a" || string(r.Initialize) == "" {
		t.Fatalf("opened %+v, %v", r, err)
	}
	if _, err := c.Open(t.Context(), record("one", "a")); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("opened twice: %v", err)
	}
	if r, err = c.Change(t.Context(), session.Change{Server: "s", ID: "one", Instance: "a", Epoch: 1, Initialized: true}); err != nil || !r.Initialized {
		t.Errorf("changed: %+v, %v", r, err)
	}
	if r, err := c.Change(t.Context(), session.Change{Server: "s", ID: "one", Instance: "b", Epoch: 1, Initialized: true}); !errors.Is(err, sessions.ErrDeposed) || r.Instance != "a" {
		t.Errorf("changed by another: %+v, %v", r, err)
	}
	l.reg.set("b")
	if r, err = c.Locate(t.Context(), "s", "one", "a", 1); err != nil || r.Instance != "b" || r.Epoch != 2 {
		t.Errorf("located: %+v, %v", r, err)
	}
	if _, err := c.Locate(t.Context(), "s", "none", "", 0); !errors.Is(err, router.ErrSessionNotFound) {
		t.Errorf("one that never was: %v", err)
	}
	if _, err := c.Find(t.Context(), "s", "none"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("one that never was: %v", err)
	}
	for n := uint64(1); n <= 20; n++ {
		c.Append("one", "g1", n, []byte(fmt.Sprint(n)))
	}
	var got []string
	for end := time.Now().Add(10 * time.Second); len(got) < 15 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		got = nil
		if err := c.Load(t.Context(), "one", "g1", 5, func(_ uint64, msg []byte) error { got = append(got, string(msg)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if text := strings.Join(got, " "); text != "6 7 8 9 10 11 12 13 14 15 16 17 18 19 20" {
		t.Errorf("events after 5: %s", text)
	}
	if err := c.End(t.Context(), "s", "one", 2); err != nil {
		t.Error(err)
	}
	if _, err := c.Find(t.Context(), "s", "one"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
}

// TestSubjectAndBodyAgree: rights hang on the server in the subject.
func TestSubjectAndBodyAgree(t *testing.T) {
	l := newLab(t)
	l.reg.set("a")
	s, err := l.Serve(l.node.MCP(), l.node.Server().ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l.open(t, "one", "a")
	ask := func(verb, server, body string) string {
		msg, err := l.node.MCP().Request("ripstop.v1.session."+l.node.Server().ID()+"."+verb+"."+server, []byte(body), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return string(msg.Data)
	}
	for _, tt := range []struct{ verb, server, body string }{
		{"open", "other", `{"record":{"id":"x","server":"s","instance":"a"}}`},
		{"change", "other", `{"change":{"id":"one","server":"s","instance":"a","epoch":1,"initialized":true}}`},
		{"find", "other", `{"id":"one"}`},
		{"locate", "other", `{"id":"one"}`},
		{"load", "other", `{"id":"one","stream":"g1"}`},
		{"open", "s", `junk`},
		{"open", "s", `{}`},
		{"nonsense", "s", `{}`},
	} {
		if got := ask(tt.verb, tt.server, tt.body); !strings.Contains(got, `"error"`) && got != "{}" || strings.Contains(got, `"initialize"`) {
			t.Errorf("%s.%s %s: %s", tt.verb, tt.server, tt.body, got)
		}
	}
	ask("end", "other", `{"id":"one","epoch":9}`)
	if r, err := l.Find(t.Context(), "s", "one"); err != nil || r.Initialized {
		t.Errorf("another server's agent has changed the session: %+v, %v", r, err)
	}
}
