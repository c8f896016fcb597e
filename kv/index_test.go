package kv_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv"
)

// foreign is a record of a node that no test plays.
func foreign(server, id string) kv.Instance {
	return kv.Instance{Server: server, Instance: id, Node: "far", Scope: kv.ScopeGlobal, Schema: 1, Run: "run-" + id, Seq: 1, Mutation: kv.Mutation{Node: "far", Incarnation: 1, N: connections.Add(1)}}
}

func TestIndexFollowsTheBucket(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	var changes []string
	stop := n.Watch(func(c kv.Change) { changes = append(changes, fmt.Sprint(c.Instance.Instance, " ", c.Gone)) })
	l.write(t, foreign("demo", "b"))
	l.write(t, foreign("demo", "a"))
	n.shows(t, "demo", "a b")
	if err := l.bucket(t).Delete(t.Context(), "demo.b"); err != nil {
		t.Fatal(err)
	}
	n.shows(t, "demo", "a")
	if err := l.bucket(t).Purge(t.Context(), "demo.a"); err != nil {
		t.Fatal(err)
	}
	n.shows(t, "demo", "")
	stop()
	if got, want := fmt.Sprint(changes), "[b false a false b true a true]"; got != want {
		t.Errorf("changes: got %s, want %s", got, want)
	}
	if n.Len() != 0 || len(n.Servers()) != 0 || kv.Keys(n.Registry) != 0 {
		t.Errorf("left: %d instances, servers %v, %d keys", n.Len(), n.Servers(), kv.Keys(n.Registry))
	}
	if n.Stale() || n.Age() > time.Minute {
		t.Errorf("stale %t, age %s", n.Stale(), n.Age())
	}
}

func TestIndexStartsWithWhatIsThere(t *testing.T) {
	l := newLab(t)
	first := l.node(t, "n1")
	for i := range 2500 { // more than one batch of direct get
		first.put(t, first.instance("demo", fmt.Sprintf("i%04d", i)))
	}
	first.stored(t)
	n := l.node(t, "n2")
	eventually(t, func() string {
		if n.Len() != 2500 {
			return fmt.Sprintf("%d instances", n.Len())
		}
		return ""
	})
}

// TestGap misses updates and hears a later one: the sequence tells.
func TestGap(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	l.write(t, foreign("demo", "a"))
	l.write(t, foreign("demo", "b"))
	n.shows(t, "demo", "a b")
	hear := kv.Deafen(n.Registry)
	l.write(t, foreign("demo", "c"))
	if err := l.bucket(t).Purge(t.Context(), "demo.a"); err != nil {
		t.Fatal(err)
	}
	if err := hear(); err != nil {
		t.Fatal(err)
	}
	if got := ids(n, "demo"); got != "a b" {
		t.Fatalf("the fault was not made: %s", got)
	}
	begun := time.Now()
	l.write(t, foreign("demo", "d"))
	n.shows(t, "demo", "b c d")
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the gap was filled after %s", took)
	}
	if n.Gaps() != 1 {
		t.Errorf("%d gaps, want 1", n.Gaps())
	}
}

// TestTailGap misses the last updates: nothing but a comparison can tell.
func TestTailGap(t *testing.T) {
	l := newLab(t)
	asked, regular := l.node(t, "n1"), l.nodeWith(t, nodeOptions{name: "n2", every: 200 * time.Millisecond})
	regular.synced(t)
	l.write(t, foreign("demo", "a"))
	asked.shows(t, "demo", "a")
	regular.shows(t, "demo", "a")
	hear, hear2 := kv.Deafen(asked.Registry), kv.Deafen(regular.Registry)
	l.write(t, foreign("demo", "b"))
	if err := l.bucket(t).Purge(t.Context(), "demo.a"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(hear(), hear2()); err != nil {
		t.Fatal(err)
	}
	regular.shows(t, "demo", "b")
	if got := ids(asked, "demo"); got != "a" {
		t.Fatalf("the fault was not made: %s", got)
	}
	if err := asked.Sync(short(t)); err != nil {
		t.Fatal(err)
	}
	if got := ids(asked, "demo"); got != "b" {
		t.Errorf("after Sync: %s", got)
	}
}

// TestLeaderElected: a new leader makes the index compare by itself.
func TestLeaderElected(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	l.write(t, foreign("demo", "a"))
	n.shows(t, "demo", "a")
	hear := kv.Deafen(n.Registry)
	l.write(t, foreign("demo", "b"))
	if err := hear(); err != nil {
		t.Fatal(err)
	}
	if err := l.Fabric().Publish("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.KV_registry_local_g1", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	n.shows(t, "demo", "a b")
}

func TestCorruptValuesAreIgnored(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	l.write(t, foreign("demo", "a"))
	n.shows(t, "demo", "a")
	b := l.bucket(t)
	other, err := kv.Encode(foreign("demo", "z"))
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"demo.a":          `{"server":"demo","instance":"a","node":"evil","checksum":"00"}`,
		"demo.b":          `junk`,
		"demo.c":          ``,
		"demo.d":          string(other), // another's record
		"_exclusive.demo": `{}`,
	} {
		if _, err := b.Put(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	l.write(t, foreign("demo", "e")) // comes after all of them
	n.shows(t, "demo", "a e")
	if got := n.Instances("demo")[0].Node; got != "far" {
		t.Errorf("node %q, want the one of the last good record", got)
	}
	// A rotten record of this node's own is written anew, and its claim is no
	// obstacle.
	n.put(t, n.instance("demo", "b"))
	n.shows(t, "demo", "a b e")
	n.stored(t)
	if e, err := b.Get(t.Context(), "demo.b"); err != nil || len(e.Value()) < 100 {
		t.Errorf("demo.b in the bucket: %v, %v", e, err)
	}
}

func TestStreamMadeAnew(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	for _, id := range []string{"a", "b", "c"} {
		l.write(t, foreign("demo", id))
	}
	n.put(t, n.instance("demo", "own"))
	n.shows(t, "demo", "a b c own")
	n.stored(t)
	js, err := jetstream.New(l.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "KV_registry_local_g1")
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l.write(t, foreign("demo", "d")) // sequence 1 again
	n.shows(t, "demo", "d own")
	n.stored(t)
	l.holds(t, "demo.d demo.own")
	l.write(t, foreign("demo", "e"))
	n.shows(t, "demo", "d e own")
}

func TestStreamDeleted(t *testing.T) {
	l := newLab(t)
	n := l.nodeWith(t, nodeOptions{name: "n1", every: 100 * time.Millisecond})
	n.put(t, n.instance("demo", "own"))
	n.stored(t)
	js, err := jetstream.New(l.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	l.bucket(t)
	if err := js.DeleteStream(t.Context(), "KV_registry_local_g1"); err != nil {
		t.Fatal(err)
	}
	l.holds(t, "demo.own") // created again, and filled
	n.shows(t, "demo", "own")
}

// TestPurgedBehindTheFeed removes messages without a new sequence.
func TestPurgedBehindTheFeed(t *testing.T) {
	l := newLab(t)
	n := l.nodeWith(t, nodeOptions{name: "n1", every: 20 * time.Millisecond}) // every 20th pass is full
	l.write(t, foreign("demo", "a"))
	l.write(t, foreign("demo", "b"))
	n.shows(t, "demo", "a b")
	js, err := jetstream.New(l.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "KV_registry_local_g1")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.shows(t, "demo", "")
	l.write(t, foreign("demo", "c"))
	n.shows(t, "demo", "c")
}

func TestValues(t *testing.T) {
	data, err := kv.Encode(foreign("demo", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := kv.Decode[kv.Instance](data); err != nil || v.Key() != "demo.a" {
		t.Errorf("decoded %v, %v", v, err)
	}
	for at := range data {
		bad := append([]byte(nil), data...)
		bad[at] ^= 1
		if _, err := kv.Decode[kv.Instance](bad); !errors.Is(err, kv.ErrCorrupt) {
			t.Fatalf("bit flipped at %d: %v", at, err)
		}
		if _, err := kv.Decode[kv.Instance](data[:at]); !errors.Is(err, kv.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
	if _, err := kv.Encode([]int{1}); err == nil {
		t.Error("encoded a list")
	}
}
