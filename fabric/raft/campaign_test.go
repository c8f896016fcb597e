package raft_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric/raft"
)

// writer puts into the bucket all the time and remembers the longest wait between
// two acknowledgements.
type writer struct {
	mu   sync.Mutex
	last time.Time
	gap  time.Duration
	acks int
}

// startWriter writes through nc until the test ends.
func startWriter(t testing.TB, nc *nats.Conn) *writer {
	w := &writer{last: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		retry := time.NewTicker(10 * time.Millisecond)
		defer retry.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			if put(ctx, nc, i) {
				w.ack()
			}
			select {
			case <-retry.C:
			case <-ctx.Done():
			}
		}
	})
	return w
}

func put(ctx context.Context, nc *nats.Conn, i int) bool {
	ctx, cancel := context.WithTimeout(ctx, scaled(60*time.Millisecond))
	defer cancel()
	m, err := nc.RequestWithContext(ctx, "$KV."+bucket+".key", fmt.Append(nil, i))
	return err == nil && !strings.Contains(string(m.Data), `"error"`)
}

func (w *writer) ack() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.gap = max(w.gap, now.Sub(w.last))
	w.last = now
	w.acks++
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acks
}

// reset begins a measurement.
func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gap = 0
}

// settle waits for writes after a fault and returns the longest wait since reset.
func (w *writer) settle(t testing.TB) time.Duration {
	t.Helper()
	before := w.count()
	waitFor(t, 20*time.Second, "writes to go on", func() bool { return w.count() > before+20 })
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gap
}

// TestLeaderFaults breaks the leader of a bucket and of the meta group in every way,
// on one cluster: a and b are here, c is the process that suffers.
func TestLeaderFaults(t *testing.T) {
	c := startCluster(t, []string{"a", "b", "c"}, []string{"c"})
	w := startWriter(t, c.connect(t, "b"))
	restart := func(t *testing.T) {
		c.children["c"].kill()
		// Until another leads, both would still name the dead one.
		waitFor(t, 20*time.Second, "another leader than c", func() bool { return c.leadHere(true) && c.leadHere(false) })
		c.children["c"] = startChild(t, c.confs["c"])
		c.waitCurrent(t, "c")
		c.lead(t, "c")
		w.settle(t)
		w.reset()
	}

	for i := range 3 {
		t.Run(fmt.Sprintf("killed %d", i), func(t *testing.T) {
			restart(t)
			a, b := c.watch(t, "a", true), c.watch(t, "b", true)
			a.waitLocated(t, "c")
			b.waitLocated(t, "c")
			killed := time.Now()
			c.children["c"].kill()
			gap := w.settle(t)
			e := a.next(t, raft.Down, "c")
			t.Logf("KV write gap %s, seen after %s", gap.Round(time.Millisecond), e.At.Sub(killed).Round(time.Millisecond))
			if !e.Dead {
				t.Errorf("got Dead = false (%s), want true", e.Reason)
			}
			if limit := scaled(slack * 250 * time.Millisecond); gap > limit {
				t.Errorf("got a write gap of %s, want at most %s", gap, limit)
			}
			if got := a.campaigner.Count(); got < 2 {
				t.Errorf("the first survivor campaigned in %d groups, want 2", got)
			}
		})
	}

	t.Run("killed, first survivor does nothing", func(t *testing.T) {
		restart(t)
		b := c.watch(t, "b", true)
		b.waitLocated(t, "c")
		c.children["c"].kill()
		gap := w.settle(t)
		t.Logf("KV write gap %s", gap.Round(time.Millisecond))
		if limit := slack * timing.ElectionMax; gap > limit {
			t.Errorf("got a write gap of %s, want at most %s", gap, limit)
		}
		if gap < timing.CampaignStagger {
			t.Errorf("got a write gap of %s: the second survivor did not wait its turn (%s)", gap, timing.CampaignStagger)
		}
	})

	t.Run("killed, no campaigners", func(t *testing.T) {
		restart(t)
		c.children["c"].kill()
		gap := w.settle(t)
		t.Logf("KV write gap %s", gap.Round(time.Millisecond))
		if low, high := timing.ElectionMin-2*timing.Heartbeat, slack*timing.ElectionMax; gap < low || gap > high {
			t.Errorf("got a write gap of %s, want %s to %s: the timing is not in force", gap, low, high)
		}
	})

	t.Run("stopped", func(t *testing.T) {
		restart(t)
		a, b := c.watch(t, "a", true), c.watch(t, "b", true)
		a.waitLocated(t, "c")
		b.waitLocated(t, "c")
		stopped := time.Now()
		c.children["c"].signal(t, syscall.SIGSTOP)
		gap := w.settle(t)
		e := a.next(t, raft.Down, "c")
		t.Logf("KV write gap %s, routes closed after %s: %s", gap.Round(time.Millisecond), e.At.Sub(stopped).Round(time.Millisecond), e.Reason)
		if e.Dead {
			t.Errorf("got Dead = true (%s), want false: it is only stopped", e.Reason)
		}
		if got := a.campaigner.Count() + b.campaigner.Count(); got != 0 {
			t.Errorf("campaigned %d times against a live leader, want 0", got)
		}
		if high := slack * timing.ElectionMax; gap > high {
			t.Errorf("got a write gap of %s, want at most %s", gap, high)
		}
	})
}

// A follower that has lost everyone must not raise its term, though all are dead.
func TestNoCampaignWithoutQuorum(t *testing.T) {
	c := startCluster(t, []string{"a", "b", "c"}, []string{"b", "c"})
	a := c.watch(t, "a", true)
	a.waitLocated(t, "b")
	a.waitLocated(t, "c")
	c.children["b"].kill()
	if e := a.next(t, raft.Down, "b"); !e.Dead {
		t.Errorf("got Dead = false (%s), want true", e.Reason)
	}
	c.lead(t, "c") // a or c leads, b is dead
	before := a.campaigner.Count()
	c.children["c"].kill()
	if e := a.next(t, raft.Down, "c"); !e.Dead {
		t.Errorf("got Dead = false (%s), want true", e.Reason)
	}
	waitFor(t, 10*time.Second, "a to miss the quorum", func() bool {
		g, ok := c.group("a", false)
		return ok && !g.Quorum
	})
	if got := a.campaigner.Count() - before; got != 0 {
		t.Errorf("campaigned in %d groups without a quorum, want 0", got)
	}
}
