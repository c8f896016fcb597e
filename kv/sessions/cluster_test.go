package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
)

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes, and kills leaders")
	}
	c := startedCluster(t)
	var stores []*sessions.Store
	for i := range c.nodes {
		stores = append(stores, open(t, c.nodes[i].Fabric(), name(i), r3))
	}
	t.Run("race", func(t *testing.T) { race(t, stores, 6) })
	t.Run("fence", func(t *testing.T) { fenced(t, c.nodes[0].Fabric(), c.nodes[1].Fabric(), r3) })
	t.Run("fence race", func(t *testing.T) { fenceRace(t, stores) })
	t.Run("validate", func(t *testing.T) {
		if found, err := stores[1].Validate(t.Context(), false); err != nil || len(found) != 0 {
			t.Errorf("found %+v, %v", found, err)
		}
	})
	t.Run("leader killed", func(t *testing.T) { leaderKilled(t, c) })
	t.Run("events", func(t *testing.T) { eventsThroughFailover(t, c, c.alive()) })
}

// alive is a node that runs.
func (c *cluster) alive() int {
	for i, n := range c.nodes {
		if n != nil {
			return i
		}
	}
	c.t.Fatal("none is alive")
	return 0
}

// leaderKilled creates, changes and ends sessions and their data on two nodes,
// while the leader is killed: every call ends with a known outcome, and what it
// says is what the bucket has.
func leaderKilled(t *testing.T, c *cluster) {
	at := c.leader(0, "KV_sessions_local_g1")
	var others []*sessions.Store
	for i, n := range c.nodes {
		if i != at {
			others = append(others, open(t, n.Fabric(), "writer-"+name(i), r3))
		}
	}
	var mu sync.Mutex
	want := map[string]sessions.Record{} // acknowledged
	data := map[string]uint64{}          // acknowledged revision of key k
	var worst time.Duration
	stop := make(chan struct{})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(want)
	}
	var wg sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer finish()
	for w, s := range others {
		for k := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					id := fmt.Sprintf("kill-%d-%d-%d", w, k, i)
					begun := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					r, err := s.Create(ctx, record(id))
					var rev uint64
					if err == nil {
						rev, err = s.PutData(ctx, id, 1, "k", []byte("v"), 0)
					}
					if err == nil {
						r.Epoch++
						r, err = s.Update(ctx, r)
					}
					if err == nil && i%4 == 0 {
						err = s.End(ctx, id, r.Rev)
						r.Rev = 0
					}
					cancel()
					if err != nil {
						t.Errorf("session %s: %v", id, err)
						return
					}
					mu.Lock()
					want[id], data[id] = r, rev
					worst = max(worst, time.Since(begun))
					mu.Unlock()
				}
			})
		}
	}
	more := func(n int) {
		t.Helper()
		from := count()
		within(t, 20*time.Second, func() string {
			if count() < from+n {
				return "nothing is written"
			}
			return ""
		})
	}
	more(50)
	c.kill(at)
	more(200)
	finish()
	t.Logf("%d sessions; the slowest took %s through the kill", len(want), worst.Round(time.Millisecond))
	for id, r := range want {
		got, err := others[0].Get(t.Context(), id)
		if r.Rev == 0 && !errors.Is(err, kv.ErrNotFound) || r.Rev != 0 && (err != nil || got.Rev != r.Rev || got.Epoch != 2) {
			t.Errorf("session %s: the bucket has revision %d, epoch %d, %v; acknowledged was %d", id, got.Rev, got.Epoch, err, r.Rev)
		}
		if d, err := others[1].GetData(t.Context(), id, 2, "k"); r.Rev != 0 && (err != nil || d.Rev != data[id]) {
			t.Errorf("data of session %s: %+v, %v", id, d, err)
		}
	}
	for _, s := range others {
		synced(t, s)
		for id, r := range want {
			if got, ok := s.Lookup(id); ok != (r.Rev != 0) || got.Rev != r.Rev {
				t.Errorf("an index has revision %d of session %s (%t), want %d", got.Rev, id, ok, r.Rev)
			}
		}
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}
	c.start(at)
	within(t, 30*time.Second, func() string { // the one that came back has all of it again
		found, err := others[0].Validate(t.Context(), false)
		if len(found) > 0 {
			return fmt.Sprintf("found %+v", found)
		}
		return text(err)
	})
}
