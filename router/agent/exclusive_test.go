package agent_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/agent"
)

// probed is a backend that counts how often it is asked what it is, which may
// start a process.
type probed struct {
	router.Backend
	times atomic.Int64
}

func (p *probed) Probe(ctx context.Context) (router.Info, error) {
	p.times.Add(1)
	return p.Backend.Probe(ctx)
}

func backend() *probed { return &probed{Backend: agent.Func(router.Info{Name: "x"}, echo)} }

func (l *lab) exclusive(t testing.TB, server string, standby bool) (*agent.Agent, *nats.Conn, *probed) {
	t.Helper()
	nc, b := l.dial(t), backend()
	a, err := agent.Attach(agent.Options{Server: server, Conn: nc, Logger: quiet(), Backend: b, Exclusive: true, Standby: standby})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(context.Background()) })
	return a, nc, b
}

func wait[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(15 * time.Second):
		t.Fatalf("%s: not within 15 s", what)
	}
	return v
}

func TestExclusive(t *testing.T) {
	l := newLab(t)
	one, nc, _ := l.exclusive(t, "ledger", false)
	wait(t, "first attached", one.Registered())
	caller := l.dial(t)
	who := func() string {
		msg, err := caller.Request("mcp.v1.req.ledger.tools.call.echo", []byte(callEcho), time.Second)
		if err != nil {
			return err.Error()
		}
		return msg.Header.Get("Mcp-Instance")
	}
	if got := who(); got != one.Instance() {
		t.Errorf("%s answers, want %s", got, one.Instance())
	}

	// A second is refused, and takes no calls.
	two, _, probe2 := l.exclusive(t, "ledger", false)
	err := wait(t, "second refused", two.Refused())
	if !errors.Is(err, kv.ErrAlreadyRegistered) || !strings.Contains(err.Error(), one.Instance()) {
		t.Errorf("refused with %v, which does not name %s", err, one.Instance())
	}
	shared := l.dial(t)
	three, err := agent.Attach(agent.Options{Server: "ledger", Conn: shared, Logger: quiet(), Backend: backend()})
	if err != nil {
		t.Fatal(err)
	}
	defer three.Close(context.Background())
	if err := wait(t, "sharer refused", three.Refused()); !errors.Is(err, kv.ErrAlreadyRegistered) {
		t.Errorf("refused with %v", err)
	}
	standby, _, probe4 := l.exclusive(t, "ledger", true)
	for range 20 {
		if got := who(); got != one.Instance() {
			t.Fatalf("%s answers, want %s only", got, one.Instance())
		}
	}
	if _, err := standby.Serve(t.Context(), &router.Request{Server: "ledger", Message: message(t, callEcho)}, router.Discard); !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("one that stands by answers in process: %v", err)
	}
	if err := two.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := three.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := probe2.times.Load() + probe4.times.Load(); n != 0 {
		t.Errorf("%d probes of servers that may not run", n)
	}

	// The holder is killed.
	begun := time.Now()
	nc.Close()
	wait(t, "standby attached", standby.Registered())
	if took := time.Since(begun); took > time.Second {
		t.Errorf("taken over after %s", took)
	}
	if got := who(); got != standby.Instance() {
		t.Errorf("%s answers, want %s", got, standby.Instance())
	}
	waitCount(t, l.reg, "ledger", 1)
}

// TestExclusiveLost: a holder whose name went to another while it was away takes
// no more calls.
func TestExclusiveLost(t *testing.T) {
	l := newLab(t)
	one, _, _ := l.exclusive(t, "ledger", true)
	wait(t, "first attached", one.Registered())
	two, nc2, _ := l.exclusive(t, "ledger", true)
	rec := *l.reg.Instances("ledger")[0]
	for end := time.Now().Add(15 * time.Second); rec.Info.Name == ""; rec = *l.reg.Instances("ledger")[0] {
		if time.Now().After(end) { // else it might register what its server says, and so win the name back
			t.Fatal("the first does not say what its server is")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	// The node thinks the connection ended, the agent does not know yet.
	l.registrar.Disconnected(rec.Conn)
	wait(t, "second attached", two.Registered())
	one.Reconnected()
	deadline := time.Now().Add(15 * time.Second) // a standby asks again every 5 s by itself
	for {
		_, err := one.Serve(t.Context(), &router.Request{Server: "ledger", Message: message(t, callEcho)}, router.Discard)
		if errors.Is(err, router.ErrUnavailable) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the one that lost the name still answers")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	// And takes it back when the other goes.
	nc2.Close()
	for {
		if list := l.reg.Instances("ledger"); len(list) == 1 && list[0].Instance == one.Instance() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not taken back: %v", l.reg.Instances("ledger"))
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRunEndsWhenRefused(t *testing.T) {
	l := newLab(t)
	one, _, _ := l.exclusive(t, "ledger", false)
	wait(t, "first attached", one.Registered())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(t.Context(), agent.RunOptions{
			Connection: agent.Connection{URLs: l.node.ClientURL(), Logger: quiet()}, Server: "ledger", Backend: backend(), Exclusive: true,
		})
	}()
	if err := wait(t, "run ended", done); !errors.Is(err, kv.ErrAlreadyRegistered) {
		t.Errorf("ended with %v", err)
	}
}

func TestLocalScope(t *testing.T) {
	l := newLab(t)
	a, err := agent.Attach(agent.Options{Server: "demo", Conn: l.dial(t), Logger: quiet(), Backend: backend(), Scope: kv.ScopeLocal})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close(context.Background())
	wait(t, "attached", a.Registered())
	waitCount(t, l.reg, "demo", 1)
	if got := l.reg.Instances("demo")[0].Scope; got != kv.ScopeLocal {
		t.Errorf("scope %q", got)
	}
	if n := l.registrar.Pending(); n != 0 {
		t.Errorf("%d keys wait for the bucket", n)
	}
}
