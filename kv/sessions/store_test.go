package sessions_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
)

func TestRecordsComeAndGoEverywhere(t *testing.T) {
	l := newLab(t)
	a, b := open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2")
	var changes []string
	stop := b.Watch(func(c sessions.Change) {
		changes = append(changes, fmt.Sprint(c.Record.ID, " ", c.Record.Epoch, " ", c.Gone))
	})
	r := create(t, a, "s-1")
	if r.Rev == 0 || r.Mutation.Node != "n1" || r.Created.IsZero() {
		t.Errorf("stored: %+v", r)
	}
	if got, ok := a.Lookup("s-1"); !ok || got.Rev != r.Rev {
		t.Errorf("its own node knows %+v, %t right after", got, ok)
	}
	shows(t, b, "s-1", r.Rev)
	got, err := b.Get(t.Context(), "s-1")
	if err != nil || got.Rev != r.Rev || string(got.Initialize) != string(r.Initialize) || got.Mutation != r.Mutation {
		t.Errorf("the leader has %+v, %v", got, err)
	}
	r.Epoch, r.Instance, r.Cause = 2, "demo-2", "instance gone"
	r.Subscriptions = map[string]json.RawMessage{"file:///a": json.RawMessage(`{"uri":"file:///a"}`)}
	moved, err := b.Update(t.Context(), r)
	if err != nil || moved.Rev <= r.Rev {
		t.Fatal(moved, err)
	}
	shows(t, a, "s-1", moved.Rev)
	if got, _ := a.Lookup("s-1"); got.Instance != "demo-2" || len(got.Subscriptions) != 1 || moved.Token().Compare(r.Token()) <= 0 {
		t.Errorf("moved: %+v", got)
	}
	if _, err := a.Update(t.Context(), r); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("an update of an old revision: %v", err)
	}
	if err := a.End(t.Context(), "s-1", r.Rev); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("the end of an old revision: %v", err)
	}
	if err := a.End(t.Context(), "s-1", moved.Rev); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.Lookup("s-1"); ok {
		t.Error("its own node knows it after its end")
	}
	shows(t, b, "s-1", 0)
	if err := b.End(t.Context(), "s-1", moved.Rev); err != nil {
		t.Errorf("ended again: %v", err)
	}
	if _, err := b.Get(t.Context(), "s-1"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("the leader, after the end: %v", err)
	}
	if _, err := a.Create(t.Context(), record("s-1")); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("an id used again: %v", err)
	}
	stop()
	if got, want := fmt.Sprint(changes), "[s-1 1 false s-1 2 false s-1 2 true]"; got != want {
		t.Errorf("changes: got %s, want %s", got, want)
	}
	for _, id := range []string{"", "a.b", "a/data", "a>", "ä"} {
		if _, err := a.Create(t.Context(), record(id)); err == nil {
			t.Errorf("created %q", id)
		}
	}
}

func TestIndexOnDisk(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "sessions.db")
	a := open(t, l.Fabric(), "n1", func(o *sessions.Options) { o.File = file })
	for i := range 100 {
		create(t, a, fmt.Sprint("s-", i))
	}
	if _, err := a.PutData(t.Context(), "s-1", 1, "k", []byte("v"), 0); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	l.Close()                       // nobody answers any more
	alone := newCluster(t).start(0) // one of three has no JetStream to compare with
	s := openOnly(t, alone.Fabric(), "n1", func(o *sessions.Options) { o.File = file })
	if r, ok := s.Lookup("s-99"); !ok || r.Server != "demo" || s.AsOf().IsZero() {
		t.Errorf("from the disk: %+v, %t", r, ok)
	}
}

// TestRace has many writers on several nodes change one record: each revision
// has one winner, nothing is lost.
func TestRace(t *testing.T) {
	l := newLab(t)
	race(t, []*sessions.Store{open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2"), open(t, l.Fabric(), "n3")}, 8)
}

func race(t *testing.T, stores []*sessions.Store, writers int) {
	create(t, stores[0], "contended")
	var wins, lost atomic.Int64
	var mu sync.Mutex
	winner := map[uint64]int{} // by epoch
	var wg sync.WaitGroup
	for w := range writers {
		s := stores[w%len(stores)]
		wg.Go(func() {
			for range 25 {
				r, err := s.Get(t.Context(), "contended")
				if err != nil {
					t.Error(err)
					return
				}
				r.Epoch++
				switch _, err := s.Update(t.Context(), r); {
				case err == nil:
					wins.Add(1)
					mu.Lock()
					winner[r.Epoch]++
					mu.Unlock()
				case errors.Is(err, kv.ErrConflict):
					lost.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r, err := stores[0].Get(t.Context(), "contended")
	if err != nil || r.Epoch != uint64(wins.Load())+1 {
		t.Errorf("epoch %d after %d wins (%d lost), %v", r.Epoch, wins.Load(), lost.Load(), err)
	}
	for epoch, n := range winner {
		if n != 1 {
			t.Errorf("epoch %d has %d winners", epoch, n)
		}
	}
	for _, s := range stores {
		shows(t, s, "contended", r.Rev)
	}
	t.Logf("%d won, %d lost", wins.Load(), lost.Load())
}

// TestCreateLater keeps records while there is no JetStream, and stores them
// when there is.
func TestCreateLater(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(0) // one of three: nothing can be written
	s := openOnly(t, n1.Fabric(), "n1", r3)
	var told []string
	s.Watch(func(c sessions.Change) { told = append(told, fmt.Sprint(c.Record.ID, c.Record.Rev != 0, c.Gone)) })
	var records []sessions.Record
	for i := range 300 {
		r, err := s.CreateLater(record(fmt.Sprint("s-", i)))
		if err != nil || r.Rev != 0 || r.Mutation.N == 0 {
			t.Fatal(r, err)
		}
		records = append(records, r)
	}
	if got, ok := s.Lookup("s-7"); !ok || got.Rev != 0 || s.Pending() != 300 || s.Len() != 300 || len(s.All(nil)) != 300 {
		t.Errorf("shown: %+v %t, %d pending, %d in all", got, ok, s.Pending(), s.Len())
	}
	changed := records[7]
	changed.LogLevel = json.RawMessage(`{"level":"debug"}`)
	if _, err := s.Update(t.Context(), changed); err != nil {
		t.Error(err)
	}
	if _, err := s.Update(t.Context(), changed); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("changed twice from one state: %v", err)
	}
	if err := s.End(t.Context(), "s-8", 0); err != nil {
		t.Error(err)
	}
	if _, ok := s.Lookup("s-8"); ok || s.Len() != 299 {
		t.Error("ended, and there")
	}
	if !s.Stale() {
		t.Error("not stale")
	}
	c.start(1)
	c.start(2)
	within(t, 30*time.Second, func() string {
		if n := s.Pending(); n > 0 {
			return fmt.Sprint(n, " pending")
		}
		return ""
	})
	far := open(t, c.nodes[2].Fabric(), "n3", r3)
	if s.Len() != 299 || far.Len() != 299 {
		t.Errorf("%d sessions here, %d elsewhere", s.Len(), far.Len())
	}
	if got, ok := far.Lookup("s-7"); !ok || string(got.LogLevel) != `{"level":"debug"}` || got.Rev == 0 {
		t.Errorf("elsewhere: %+v, %t", got, ok)
	}
	if _, ok := far.Lookup("s-8"); ok {
		t.Error("what ended was stored")
	}
	if got, _ := s.Lookup("s-7"); got.Rev == 0 || len(told) < 300 {
		t.Errorf("revision %d, %d changes told", got.Rev, len(told))
	}
}

// TestLostAnswer: a write that was applied, and whose answer was lost, is
// recognised.
func TestLostAnswer(t *testing.T) {
	l := newLab(t)
	s := open(t, l.Fabric(), "n1")
	r, err := sessions.Unanswered(t.Context(), s, record("s-1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.CreateLater(r)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if s.Pending() > 0 {
			return "pending"
		}
		return ""
	})
	if got, ok := s.Lookup("s-1"); !ok || got.Rev == 0 || got.Mutation != r.Mutation {
		t.Errorf("got %+v, %t", got, ok)
	}
	if h, err := raw(t, l.Fabric()).History(t.Context(), "s-1"); err != nil || len(h) != 1 || h[0].Revision() != 1 {
		t.Errorf("written again: %v %v (%v)", h, err, got.Rev)
	}
	// Ended before it was known to be stored.
	r, err = sessions.Unanswered(t.Context(), s, record("s-2"))
	if err != nil {
		t.Fatal(err)
	}
	sessions.Forget(s, "s-2")
	if got, err = s.CreateLater(r); err != nil {
		t.Fatal(err)
	}
	if err := s.End(t.Context(), "s-2", got.Rev); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, err := s.Get(t.Context(), "s-2"); !errors.Is(err, kv.ErrNotFound) || s.Pending() > 0 {
			return fmt.Sprint(err, s.Pending())
		}
		return ""
	})
}

func TestLookupDoesNotAllocate(t *testing.T) {
	s := open(t, newLab(t).Fabric(), "n1")
	create(t, s, "s-1")
	if n := testing.AllocsPerRun(100, func() { s.Lookup("s-1") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIdle(t *testing.T) {
	s := open(t, newLab(t).Fabric(), "n1")
	create(t, s, "s-1")
	r := record("s-2")
	r.Instance = "demo-2"
	if _, err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	there := func(i string) bool { return i == "demo-2" }
	if got := s.Idle(time.Now().Add(time.Hour), there); len(got) != 1 || got[0].ID != "s-1" {
		t.Errorf("idle: %v", got)
	}
	if got := s.Idle(time.Now().Add(-time.Hour), there); len(got) != 0 {
		t.Errorf("idle an hour ago: %v", got)
	}
}
