package kv_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
)

// TestStorm registers and removes on two nodes while the third loses its feed
// again and again, and passes run all the time. At the end everyone agrees, on
// disk too.
func TestStorm(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	file := filepath.Join(t.TempDir(), "index.db")
	deaf := l.nodeWith(t, nodeOptions{name: "n3", file: file, every: 10 * time.Millisecond})
	deaf.synced(t)
	end := time.Now().Add(1500 * time.Millisecond)
	var wg sync.WaitGroup
	for k, n := range []*node{a, b} {
		wg.Go(func() {
			var live []kv.Instance
			for i := 0; time.Now().Before(end); i++ {
				if len(live) > 30 || len(live) > 0 && rand.N(2) == 0 {
					at := rand.N(len(live))
					if err := n.client.Remove(t.Context(), live[at]); err != nil {
						t.Error(err)
					}
					live = append(live[:at], live[at+1:]...)
					continue
				}
				in := n.instance(fmt.Sprintf("s%d", rand.N(5)), fmt.Sprintf("i%d-%d", k, i%50))
				in.Run = fmt.Sprint("run", i)
				if _, err := n.client.Put(t.Context(), in); err != nil {
					t.Error(err)
				}
				live = append(live, in)
			}
		})
	}
	for time.Now().Before(end) {
		hear := kv.Deafen(deaf.Registry)
		time.Sleep(time.Duration(rand.N(30)) * time.Millisecond) // how long the fault lasts
		if err := hear(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.N(10)) * time.Millisecond)
	}
	wg.Wait()
	a.stored(t)
	b.stored(t)
	want := ""
	for _, key := range strings.Fields(l.keys(t)) {
		e, err := l.bucket(t).Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		want += fmt.Sprintf("%s@%d ", key, e.Revision())
	}
	for _, n := range []*node{a, b, deaf} {
		eventually(t, func() string {
			revs, got := kv.Revisions(n.Registry), ""
			for _, key := range strings.Fields(l.keys(t)) {
				got += fmt.Sprintf("%s@%d ", key, revs[key])
			}
			if got != want || len(revs) != len(strings.Fields(want)) {
				return fmt.Sprintf("index  %v\nbucket %s", revs, want)
			}
			return ""
		})
		if n.Len() != len(strings.Fields(want)) {
			t.Errorf("shows %d of %d", n.Len(), len(strings.Fields(want)))
		}
	}
	t.Logf("%d gaps, %d keys", deaf.Gaps(), len(strings.Fields(want)))
	shown := fmt.Sprint(deaf.All())
	deaf.stop(t)
	nc := alone(t)
	disk := l.nodeWith(t, nodeOptions{name: "n3", file: file, fabric: nc, agents: nc})
	if got := fmt.Sprint(disk.All()); got != shown {
		t.Errorf("on disk %s\nshown   %s", got, shown)
	}
}

// TestSequenceWentBack: the bucket lost its newest revisions, as after a history
// that was forced. The index believes it only when it is said again and again.
func TestSequenceWentBack(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	l.write(t, foreign("demo", "a"))
	n.shows(t, "demo", "a")
	kv.Ahead(n.Registry, 100)
	if err := n.Sync(short(t)); err == nil || !strings.Contains(err.Error(), "went back") {
		t.Errorf("the first time: %v", err)
	}
	if !n.Stale() {
		t.Error("not stale")
	}
	n.synced(t)
	if got := kv.LastSeq(n.Registry); got != 1 {
		t.Errorf("sequence %d, want the bucket's, 1", got)
	}
	l.write(t, foreign("demo", "b"))
	n.shows(t, "demo", "a b")
}
