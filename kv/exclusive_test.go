package kv_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
)

func (n *node) exclusive(server, id string) kv.Instance {
	i := n.instance(server, id)
	i.Exclusive, i.Standby = true, true
	return i
}

// waiter plays an agent that stands by: it registers when told.
func (n *node) waiter(t testing.TB, i kv.Instance) (got <-chan time.Time) {
	t.Helper()
	won := make(chan time.Time, 1)
	again := make(chan struct{}, 1)
	sub, err := n.client.OnCensus(i.Instance, func() {
		select {
		case again <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Put(t.Context(), i); !errors.Is(err, kv.ErrAlreadyRegistered) {
		t.Fatalf("%s is not refused: %v", i.Instance, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-t.Context().Done():
				return
			case <-again:
			}
			if _, err := n.client.Put(t.Context(), i); err == nil {
				won <- time.Now()
				return
			}
		}
	})
	t.Cleanup(func() {
		_ = sub.Unsubscribe() // the connection may be gone
		wg.Wait()
	})
	return won
}

func wantHeld(t testing.TB, err error, instance, node string) {
	t.Helper()
	var held *kv.HeldError
	if !errors.As(err, &held) || !errors.Is(err, kv.ErrAlreadyRegistered) || held.Instance != instance || held.Node != node {
		t.Errorf("got %v, want: held by %s on %s", err, instance, node)
		return
	}
	if text := err.Error(); !strings.Contains(text, "already registered") || !strings.Contains(text, instance) || !strings.Contains(text, node) {
		t.Errorf("the error does not say who: %s", text)
	}
}

func TestExclusiveHasOneHolder(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.node(t, "n1"), l.node(t, "n2"), l.node(t, "n3")}
	for round := range 20 {
		server := fmt.Sprintf("s%d", round)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []string
		var refusals []error
		for k := range 9 {
			wg.Go(func() {
				n := nodes[k%3]
				i := n.exclusive(server, fmt.Sprintf("i%d", k))
				_, err := n.client.Put(t.Context(), i)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners = append(winners, i.Instance)
				} else {
					refusals = append(refusals, err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("winners %v, refusals %v", winners, refusals)
		}
		for _, err := range refusals {
			if !errors.Is(err, kv.ErrAlreadyRegistered) {
				t.Errorf("refused with %v", err)
			}
		}
		for _, n := range nodes {
			n.shows(t, server, winners[0])
		}
	}
}

func TestExclusiveNamesItsHolder(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	holder := a.exclusive("ledger", "one")
	a.put(t, holder)
	a.put(t, holder) // again, as after a census
	b.shows(t, "ledger", "one")
	for _, n := range []*node{a, b} {
		_, err := n.client.Put(t.Context(), n.exclusive("ledger", "two"))
		wantHeld(t, err, "one", "n1")
		_, err = n.client.Put(t.Context(), n.instance("ledger", "three")) // nor may one share it that does not mind
		wantHeld(t, err, "one", "n1")
	}
	b.put(t, b.instance("demo", "shared"))
	a.shows(t, "demo", "shared")
	_, err := a.client.Put(t.Context(), a.exclusive("demo", "four")) // nor take what others share
	wantHeld(t, err, "shared", "n2")

	// The holder's agent moves and keeps the name.
	moved := holder
	moved.Conn, moved.Seq = b.instance("", "").Conn, 2
	b.put(t, moved)
	a.hangUp(holder.Conn, false)
	a.stored(t)
	b.stored(t)
	_, err = a.client.Put(t.Context(), a.exclusive("ledger", "two"))
	wantHeld(t, err, "one", "n2")
	b.shows(t, "ledger", "one")
}

func TestStandbyTakesOver(t *testing.T) {
	l := newLab(t)
	a, b, c := l.node(t, "n1"), l.node(t, "n2"), l.node(t, "n3")
	holder := a.exclusive("ledger", "one")
	a.put(t, holder)
	b.shows(t, "ledger", "one")
	second, third := b.exclusive("ledger", "two"), c.exclusive("ledger", "three")
	won2, won3 := b.waiter(t, second), c.waiter(t, third)
	begun := time.Now()
	a.hangUp(holder.Conn, false) // killed
	var winner, waits *node
	var won kv.Instance
	var next <-chan time.Time
	select {
	case <-won2:
		winner, won, waits, next = b, second, c, won3
	case <-won3:
		winner, won, waits, next = c, third, b, won2
	case <-time.After(3 * time.Second):
		t.Fatal("nobody took over")
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("taken over after %s", took)
	}
	a.shows(t, "ledger", won.Instance)
	select {
	case <-next:
		t.Fatal("two hold the name")
	case <-time.After(100 * time.Millisecond):
	}
	// The new holder's node crashes; nothing happens until it is removed.
	winner.crash(t)
	waits.NodeGone(won.Conn.ServerID[:2], "")
	name := strings.ToLower(won.Conn.ServerID[:2])
	a.NodeGone(name, "")
	select {
	case <-next:
		t.Fatal("taken over before the node was removed")
	case <-time.After(100 * time.Millisecond):
	}
	begun = time.Now()
	if removed, err := a.RemoveNode(short(t), name); err != nil || removed != 2 {
		t.Errorf("removed %d, %v", removed, err)
	}
	select {
	case <-next:
	case <-time.After(3 * time.Second):
		t.Fatal("nobody took over from a dead node")
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("taken over after %s", took)
	}
}

// TestStandbyWaitsForSharers: an exclusive instance waits until those that share
// the name are gone.
func TestStandbyWaitsForSharers(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	one := a.instance("demo", "one")
	a.put(t, one)
	b.shows(t, "demo", "one")
	won := b.waiter(t, b.exclusive("demo", "two"))
	if err := a.client.Remove(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	select {
	case <-won:
	case <-time.After(3 * time.Second):
		t.Fatal("not told")
	}
}

// TestLateSharerBows: a sharer that registered where the holder was not known
// yet goes, and is told.
func TestLateSharerBows(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	hear := kv.Deafen(b.Registry)
	a.put(t, a.exclusive("ledger", "one"))
	a.stored(t)
	late := b.instance("ledger", "late")
	told := make(chan struct{}, 5)
	sub, err := b.client.OnCensus("late", func() { told <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	b.put(t, late) // n2 has not heard of the holder
	if err := hear(); err != nil {
		t.Fatal(err)
	}
	b.Resync()
	b.shows(t, "ledger", "one")
	a.shows(t, "ledger", "one")
	select {
	case <-told:
	case <-time.After(3 * time.Second):
		t.Fatal("the late one was not told")
	}
	_, err = b.client.Put(t.Context(), late)
	wantHeld(t, err, "one", "n1")
}

// TestClaimLost: a claim that an operator deleted is taken again; one that is
// another's by then is not.
func TestClaimLost(t *testing.T) {
	l := newLab(t)
	a := l.node(t, "n1")
	a.put(t, a.exclusive("ledger", "one"))
	a.stored(t)
	if err := l.bucket(t).Purge(t.Context(), "_exclusive.ledger"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if !strings.Contains(l.keys(t), "_exclusive.ledger") {
			return l.keys(t)
		}
		return ""
	})
	data, err := kv.Encode(kv.Claim{Schema: 1, Server: "ledger", Instance: "other", Node: "n9", Agent: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.bucket(t).Put(t.Context(), "_exclusive.ledger", data); err != nil {
		t.Fatal(err)
	}
	a.shows(t, "ledger", "")
	_, err = a.client.Put(t.Context(), a.exclusive("ledger", "one"))
	wantHeld(t, err, "other", "n9")
	if removed, err := a.RemoveNode(short(t), "n9"); err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	a.put(t, a.exclusive("ledger", "one"))
}

func TestExclusiveNeedsQuorum(t *testing.T) {
	nc := alone(t)
	l := &lab{region: "local"}
	n := l.nodeWith(t, nodeOptions{name: "n1", fabric: nc, agents: nc})
	_, err := n.client.Put(t.Context(), n.exclusive("ledger", "one"))
	if err == nil || errors.Is(err, kv.ErrAlreadyRegistered) || !strings.Contains(err.Error(), "can't be claimed") {
		t.Errorf("got %v", err)
	}
	n.put(t, n.instance("demo", "one"))
	n.shows(t, "ledger", "")
	n.shows(t, "demo", "one")
}
