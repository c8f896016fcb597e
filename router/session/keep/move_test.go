package keep_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/session/keep"
)

// told collects events.
type told struct {
	mu   sync.Mutex
	list []keep.Event
}

func (o *told) tell(e keep.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, e)
}

func (o *told) all() []keep.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.list
}

// client is an agent in another process.
func (l *lab) client(t testing.TB) keep.Client {
	t.Helper()
	s, err := l.Serve(l.node.MCP(), l.node.Server().ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return keep.Client{Server: "s", Conn: l.node.MCP}
}

// TestHand: what an owner has released goes to another instance, once, and the
// world hears of it.
func TestHand(t *testing.T) {
	o := &told{}
	l := newLabWith(t, func(opts *keep.Options) { opts.Tell = o.tell })
	c := l.client(t)
	ctx := t.Context()
	l.reg.set("a", "b")
	l.open(t, "one", "a")
	l.reg.set("b")
	r, err := c.Hand(ctx, "s", "one", "a", 1, "drain")
	if err != nil || r.Instance != "b" || r.Epoch != 2 || r.Cause != "drain" || r.Rev == 0 {
		t.Fatalf("handed on: %+v, %v", r, err)
	}
	if again, err := c.Hand(ctx, "s", "one", "a", 1, "drain"); err != nil || again.Epoch != 2 {
		t.Errorf("handed on twice: %+v, %v", again, err)
	}
	if _, err := c.Hand(ctx, "s", "one", "b", 2, "made up"); !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("there is nobody else: %v", err)
	}
	l.reg.set("b", "c")
	if r, err = c.Hand(ctx, "s", "one", "b", 2, "made up"); err != nil || r.Instance != "c" || r.Cause != "released" {
		t.Errorf("handed on: %+v, %v", r, err)
	}
	if _, err := c.Hand(ctx, "other", "one", "c", 3, "drain"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("by another server's agent: %v", err)
	}
	list := o.all()
	if len(list) != 2 {
		t.Fatalf("events %+v", list)
	}
	if e := list[0]; e.Kind != keep.EventMoved || e.Session != "one" || e.From != "a" || e.To != "b" || e.Epoch != 2 || e.Cause != "drain" || e.At.IsZero() {
		t.Errorf("event %+v", e)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(l.Collector())
	l.reg.set("b")
	want := `
# HELP ripstop_session_moves_total Sessions this node has moved to another instance, by cause.
# TYPE ripstop_session_moves_total counter
ripstop_session_moves_total{cause="drain"} 1
ripstop_session_moves_total{cause="released"} 1
# HELP ripstop_sessions Sessions that this node knows, by state: active, their instance is there; waiting, it is gone.
# TYPE ripstop_sessions gauge
ripstop_sessions{state="active"} 0
ripstop_sessions{state="waiting"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ripstop_session_moves_total", "ripstop_sessions"); err != nil {
		t.Error(err)
	}
}

// TestEventsAreBounded: however many sessions move, few events are told, and the
// next one says how many were not.
func TestEventsAreBounded(t *testing.T) {
	o := &told{}
	l := newLabWith(t, func(opts *keep.Options) { opts.Tell = o.tell })
	l.reg.set("a", "b")
	const many = 150
	for i := range many {
		id := fmt.Sprintf("s%d", i)
		l.open(t, id, "a")
		if _, err := l.Move(t.Context(), id, "b", "operator"); err != nil {
			t.Fatal(err)
		}
	}
	list := o.all()
	if len(list) < 100 || len(list) == many {
		t.Errorf("%d events of %d moves", len(list), many)
	}
}

// TestDataByServer: an agent reaches the data of its own server's sessions only.
func TestDataByServer(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	l.reg.set("a")
	l.open(t, "one", "a")
	ctx := t.Context()
	rev, err := c.PutData(ctx, "s", "one", 1, "k", []byte("v"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.GetData(ctx, "s", "one", 1, "k"); err != nil || string(d.Value) != "v" || d.Rev != rev {
		t.Errorf("got %+v, %v", d, err)
	}
	for name, err := range map[string]error{
		"get":    second(c.GetData(ctx, "other", "one", 1, "k")),
		"list":   second(c.ListData(ctx, "other", "one", 1)),
		"put":    second(c.PutData(ctx, "other", "one", 1, "k", nil, sessions.AnyRev)),
		"delete": c.DeleteData(ctx, "other", "one", 1, "k", sessions.AnyRev),
		"none":   second(c.PutData(ctx, "s", "none", 1, "k", nil, sessions.AnyRev)),
	} {
		if !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
	if _, err := c.PutData(ctx, "s", "one", 1, strings.Repeat("x", 200), nil, 0); !errors.Is(err, sessions.ErrLimit) {
		t.Errorf("long key: %v", err)
	}
	if _, err := l.Move(ctx, "one", "b", "operator"); err == nil {
		t.Error("moved to an instance that is not there")
	}
	l.reg.set("a", "b")
	if _, err := l.Move(ctx, "one", "b", "operator"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutData(ctx, "s", "one", 1, "k", []byte("old"), sessions.AnyRev); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("put by the owner before: %v", err)
	}
	if list, err := c.ListData(ctx, "s", "one", 2); err != nil || len(list) != 1 || list[0].Key != "k" {
		t.Errorf("list %v, %v", list, err)
	}
}

func second[T any](_ T, err error) error { return err }
