package kv_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv"
)

func TestRegistration(t *testing.T) {
	l := newLab(t)
	n, far := l.node(t, "n1"), l.node(t, "n2")
	i := n.instance("demo", "a")
	n.put(t, i)
	if got := ids(n, "demo"); got != "a" { // at once
		t.Errorf("own node shows %q", got)
	}
	far.shows(t, "demo", "a")
	n.stored(t)
	if stored, err := n.client.Put(t.Context(), i); err != nil || !stored {
		t.Errorf("registered again: stored %t, %v", stored, err)
	}
	e, err := l.bucket(t).Get(t.Context(), "demo.a")
	if err != nil || e.Revision() != 1 {
		t.Fatalf("written again for nothing: %v, %v", e, err)
	}
	got, err := kv.Decode[kv.Instance](e.Value())
	if err != nil || got.Node != "n1" || got.Schema != 1 || got.Scope != "global" || got.Mutation != (kv.Mutation{Node: "n1", Incarnation: 1, N: 1}) {
		t.Errorf("record %+v, %v", got, err)
	}
	i.Seq, i.Problem = 2, "down"
	n.put(t, i)
	eventually(t, func() string {
		if far.Instances("demo")[0].Problem != "down" {
			return "the change is not seen"
		}
		return ""
	})
	if err := n.client.Remove(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	far.shows(t, "demo", "")
	l.holds(t, "")
}

func TestBadRegistrations(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	for want, change := range map[string]func(*kv.Instance){
		"server \"\"":          func(i *kv.Instance) { i.Server = "" },
		"server \"a.b\"":       func(i *kv.Instance) { i.Server = "a.b" },
		"server \"_exclusive":  func(i *kv.Instance) { i.Server = "_exclusive" },
		"instance \"x y\"":     func(i *kv.Instance) { i.Instance = "x y" },
		"scope \"moon\"":       func(i *kv.Instance) { i.Scope = "moon" },
		"concerns the whole":   func(i *kv.Instance) { i.Scope, i.Exclusive = kv.ScopeLocal, true },
		"stand by":             func(i *kv.Instance) { i.Standby = true },
		"has ended":            func(i *kv.Instance) { n.hangUp(i.Conn, true) },
		"register with the no": func(i *kv.Instance) { i.Agent = "other" },
	} {
		i := n.instance("demo", "a")
		change(&i)
		data, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		if i.Agent == "other" {
			i.Conn.ServerID = "ELSEWHERE"
			data, _ = json.Marshal(i)
		}
		msg, err := l.MCP().Request("ripstop.v1.agent."+n.id+".put", data, time.Second)
		if err != nil || !strings.Contains(string(msg.Data), strings.ReplaceAll(want, `"`, `\"`)) {
			t.Errorf("want %q, got %s, %v", want, msg.Data, err)
		}
	}
	data, err := json.Marshal(n.instance("demo", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := l.MCP().Request("ripstop.v1.agent."+n.id+".put.b", data, time.Second); err != nil || !strings.Contains(string(msg.Data), `\"b\"`) {
		t.Errorf("a record of another server than the subject's: %v, %v", msg, err)
	}
	msg, err := l.MCP().Request("ripstop.v1.agent."+n.id+".put", []byte("{"), time.Second)
	if err != nil || !strings.Contains(string(msg.Data), "does not decode") {
		t.Errorf("junk: %s, %v", msg.Data, err)
	}
	if n.Len() != 0 {
		t.Errorf("%d instances", n.Len())
	}
}

func TestDisconnected(t *testing.T) {
	l := newLab(t)
	n, far := l.node(t, "n1"), l.node(t, "n2")
	told, missed, stays := n.instance("demo", "a"), n.instance("demo", "b"), n.instance("demo", "c")
	for _, i := range []kv.Instance{told, missed, stays} {
		n.put(t, i)
	}
	far.shows(t, "demo", "a b c")
	n.hangUp(told.Conn, false)
	if got := ids(n, "demo"); got != "b c" {
		t.Errorf("own node shows %q", got)
	}
	far.shows(t, "demo", "b c")
	n.hangUp(missed.Conn, true) // the sweep finds it
	far.shows(t, "demo", "c")
	l.holds(t, "demo.c")
}

func TestLeftoversOfAnEarlierRun(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	kept := n.instance("demo", "kept")
	n.put(t, n.instance("demo", "old"))
	n.put(t, kept)
	x := n.instance("only", "held")
	x.Exclusive = true
	n.put(t, x)
	far := l.node(t, "n2")
	far.put(t, far.instance("demo", "far"))
	n.stored(t)
	far.shows(t, "demo", "far kept old")
	n.crash(t)
	l.holds(t, "_exclusive.only demo.far demo.kept demo.old only.held")
	n = l.nodeWith(t, nodeOptions{name: "n1", incarnation: 2})
	kept.Conn, kept.Seq = n.instance("", "").Conn, 2
	n.put(t, kept)
	far.shows(t, "demo", "far kept")
	far.shows(t, "only", "")
	n.stored(t)
	eventually(t, func() string {
		if got := l.keys(t); strings.Contains(got, "old") || strings.Contains(got, "only") || !strings.Contains(got, "demo.kept") {
			return "bucket: " + got
		}
		return ""
	})
}

// TestOperatorMeddles: the bucket is made to follow again.
func TestOperatorMeddles(t *testing.T) {
	l := newLab(t)
	n := l.node(t, "n1")
	i := n.instance("demo", "a")
	n.put(t, i)
	n.stored(t)
	b := l.bucket(t)
	if err := b.Purge(t.Context(), "demo.a"); err != nil {
		t.Fatal(err)
	}
	l.holds(t, "demo.a")
	fake := foreign("demo", "b") // says it is this node's
	fake.Node = "n1"
	l.write(t, fake)
	l.holds(t, "demo.a")
	n.shows(t, "demo", "a")
}

func TestLocalScope(t *testing.T) {
	l := newLab(t)
	n, far := l.node(t, "n1"), l.node(t, "n2")
	i := n.instance("demo", "here")
	i.Scope = kv.ScopeLocal
	n.put(t, i)
	n.put(t, n.instance("demo", "all"))
	n.shows(t, "demo", "all here")
	far.shows(t, "demo", "all")
	l.holds(t, "demo.all")
	// It becomes global, and local again.
	i.Scope, i.Seq = kv.ScopeGlobal, 2
	n.put(t, i)
	far.shows(t, "demo", "all here")
	i.Scope, i.Seq = kv.ScopeLocal, 3
	n.put(t, i)
	far.shows(t, "demo", "all")
	l.holds(t, "demo.all")
	n.shows(t, "demo", "all here")
}

// TestAgentMoves: whatever the order in which the nodes hear of it, and whatever
// their clocks say, the newest registration stands.
func TestAgentMoves(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	first := a.instance("demo", "x")
	first.Started = time.Now().Add(time.Hour)
	a.put(t, first)
	b.shows(t, "demo", "x")
	second := first
	second.Conn, second.Seq = b.instance("", "").Conn, 2
	b.put(t, second) // n1 still thinks that it has it
	at := func(node string) {
		t.Helper()
		for _, n := range []*node_{{"n1", a}, {"n2", b}} {
			eventually(t, func() string {
				list := n.Instances("demo")
				if len(list) != 1 || list[0].Node != node {
					return fmt.Sprintf("%s shows %v, want it on %s", n.name, list, node)
				}
				return ""
			})
		}
	}
	at("n2")
	a.hangUp(first.Conn, false) // and hears late that it has not
	a.stored(t)
	at("n2")
	if _, err := a.client.Put(t.Context(), first); err == nil {
		t.Error("a registration that was overtaken is taken")
	}
	third := second
	third.Conn, third.Seq = a.instance("", "").Conn, 3
	b.hangUp(second.Conn, false) // gone before it comes back
	a.put(t, third)
	at("n1")
	a.stored(t)
	b.stored(t)
	l.holds(t, "demo.x")
	at("n1")
}

type node_ struct {
	name string
	*node
}

// TestTwoWithOneID: nobody fights for ever.
func TestTwoWithOneID(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	one, two := a.instance("demo", "x"), b.instance("demo", "x")
	two.Run = "another"
	a.put(t, one)
	a.stored(t)
	b.shows(t, "demo", "x")
	b.put(t, two)
	for _, n := range []*node{a, b} {
		eventually(t, func() string {
			if list := n.Instances("demo"); len(list) != 1 || list[0].Run != "another" {
				return fmt.Sprint(list)
			}
			return ""
		})
		n.stored(t)
	}
	info, err := l.bucket(t).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last := info.(*jetstream.KeyValueBucketStatus).StreamInfo().State.LastSeq; last > 4 {
		t.Errorf("%d writes", last)
	}
}

func TestNodeGone(t *testing.T) {
	l := newLab(t)
	a, b, c := l.node(t, "n1"), l.node(t, "n2"), l.node(t, "n3")
	moved := a.instance("demo", "moved")
	a.put(t, a.instance("demo", "a"))
	a.put(t, moved)
	b.put(t, b.instance("demo", "b"))
	for _, n := range []*node{a, b, c} {
		n.shows(t, "demo", "a b moved")
	}
	a.stored(t)
	gone := 0
	stop := b.Watch(func(ch kv.Change) {
		if ch.Gone {
			gone++
		}
	})
	b.NodeGone("n1", "")
	b.NodeGone("n1", "")
	stop()
	if got := ids(b, "demo"); got != "b" || gone != 2 {
		t.Errorf("hidden: %q, %d changes", got, gone)
	}
	moved.Conn, moved.Seq = b.instance("", "").Conn, 2
	b.put(t, moved) // its agent found another node
	if got := ids(b, "demo"); got != "b moved" {
		t.Errorf("after the move: %q", got)
	}
	b.NodeBack("n1")
	if got := ids(b, "demo"); got != "a b moved" {
		t.Errorf("back: %q", got)
	}
	if _, err := b.RemoveNode(short(t), "n2"); err == nil {
		t.Error("a node removed itself")
	}
	b.stored(t)
	c.NodeGone("n1", "")
	a.crash(t)
	removed, err := c.RemoveNode(short(t), "n1")
	if err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	b.shows(t, "demo", "b moved")
	if removed, err = c.RemoveNode(short(t), "n1"); err != nil || removed != 0 {
		t.Errorf("removed again: %d, %v", removed, err)
	}
	// The node returns, before anyone says so, and after.
	a = l.nodeWith(t, nodeOptions{name: "n1", incarnation: 2})
	a.put(t, a.instance("demo", "new"))
	b.shows(t, "demo", "b moved new")
	a.stored(t)
	c.NodeBack("n1")
	c.shows(t, "demo", "b moved new")
}

// TestLateWordOfANode: the word that a node is down comes after the news of what
// its next run has registered, or the word that it is back later than that.
func TestLateWordOfANode(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	first := a.instance("demo", "first")
	a.put(t, first)
	b.shows(t, "demo", "first")
	a.stored(t)
	a.crash(t)
	a = l.nodeWith(t, nodeOptions{name: "n1", incarnation: 2, id: "N1AGAIN"})
	a.put(t, a.instance("demo", "second"))
	b.shows(t, "demo", "second") // the registrar clears up what its earlier run has left
	lost := 0
	stop := b.Watch(func(ch kv.Change) {
		if ch.Gone {
			lost++
		}
	})
	b.NodeGone("n1", first.Conn.ServerID)
	a.put(t, a.instance("demo", "third"))
	b.shows(t, "demo", "second third")
	a.stored(t)
	if removed, err := b.RemoveNode(short(t), "n1"); err != nil || removed != 0 {
		t.Errorf("of the run that has begun: removed %d, %v", removed, err)
	}
	b.NodeBack("n1")
	stop()
	if got := ids(b, "demo"); got != "second third" || lost != 0 {
		t.Errorf("shows %q, lost %d", got, lost)
	}
	b.NodeGone("n1", "N1AGAIN")
	if got := ids(b, "demo"); got != "" {
		t.Errorf("of a run that is gone: %q", got)
	}
}

// TestRemovedByMistake: a node that lives puts its own back.
func TestRemovedByMistake(t *testing.T) {
	l := newLab(t)
	a, b := l.node(t, "n1"), l.node(t, "n2")
	a.put(t, a.instance("demo", "a"))
	a.stored(t)
	b.shows(t, "demo", "a")
	if removed, err := b.RemoveNode(short(t), "n1"); err != nil || removed != 1 {
		t.Fatalf("removed %d, %v", removed, err)
	}
	l.holds(t, "demo.a")
	b.shows(t, "demo", "a")
	a.shows(t, "demo", "a")
}

func TestListAndCensus(t *testing.T) {
	l := newLab(t)
	n, far := l.node(t, "n1"), l.node(t, "n2")
	i := n.instance("demo", "here")
	i.Scope = kv.ScopeLocal
	n.put(t, i)
	far.put(t, far.instance("demo", "far"))
	n.shows(t, "demo", "far here")
	for id, want := range map[string]int{n.id: 2, far.id: 1} {
		msg, err := l.MCP().Request("ripstop.v1.registry.list."+id, nil, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Instances []kv.Instance
			AsOf      time.Time `json:"as_of"`
			Stale     bool
		}
		if err := json.Unmarshal(msg.Data, &a); err != nil || len(a.Instances) != want || time.Since(a.AsOf) > time.Minute || a.Stale {
			t.Errorf("%s: %s, %v", id, msg.Data, err)
		}
	}
	list, err := kv.RegistryClient{Conn: l.MCP()}.List(t.Context()) // its server is no node of the test
	if err != nil || len(list) == 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	called := make(chan string, 10)
	for _, id := range []string{"one", "two"} {
		sub, err := kv.RegistryClient{Conn: l.MCP()}.OnCensus(id, func() { called <- id })
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
	}
	for _, body := range []string{`{"instance":"two"}`, `{"server_id":"ELSEWHERE"}`, `{"server_id":"` + l.Server().ID() + `","instance":"one"}`, ``} {
		if err := l.MCP().Publish("ripstop.v1.registry.census", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for range 4 {
		select {
		case id := <-called:
			got = append(got, id)
		case <-time.After(time.Second):
			t.Fatalf("called %v", got)
		}
	}
	if n := strings.Count(strings.Join(got, " "), "two"); n != 2 || len(called) != 0 {
		t.Errorf("called %v and %d more", got, len(called))
	}
	_, err = kv.RegistryClient{Conn: l.MCP()}.Put(t.Context(), kv.Instance{Server: "x", Instance: "y"})
	if err == nil || errors.Is(err, kv.ErrAlreadyRegistered) {
		t.Errorf("registered without a connection: %v", err)
	}
}
