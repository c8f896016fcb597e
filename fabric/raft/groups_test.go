package raft_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric/raft"
)

// TestGroups covers inspection, step-down, and a watcher's events of servers that
// stop in order, on one cluster in this process.
func TestGroups(t *testing.T) {
	c := startCluster(t, []string{"a", "b", "c"}, nil)
	js, err := jetstream.New(c.connect(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), scaled(10*time.Second))
	defer cancel()
	if _, err := js.CreateConsumer(ctx, "KV_"+bucket, jetstream.ConsumerConfig{Durable: "reader"}); err != nil {
		t.Fatal(err)
	}

	t.Run("peer ids", func(t *testing.T) {
		for name, srv := range c.servers {
			if got, want := raft.PeerID(name), srv.Node(); got != want {
				t.Errorf("PeerID(%q) = %s, want %s", name, got, want)
			}
		}
	})
	t.Run("inspect", func(t *testing.T) { inspectGroups(t, c) })
	t.Run("step down", func(t *testing.T) { stepDown(t, c) })
	t.Run("watch", func(t *testing.T) { watchStops(t, c) })
}

func inspectGroups(t *testing.T, c *cluster) {
	c.lead(t, "b")
	waitFor(t, 10*time.Second, "everyone to agree", func() bool {
		for name, srv := range c.servers {
			g, ok := c.group(name, false)
			if !ok || g.Leader != "b" || !g.Quorum || raft.MetaLeader(srv) != "b" {
				return false
			}
		}
		return c.current("a", false) && c.current("c", false)
	})
	groups := raft.Groups(c.servers["b"])
	var got []string
	for _, g := range groups {
		got = append(got, g.Account+"/"+g.Stream+"/"+g.Consumer)
		if !g.Member || g.Size != 3 || g.QuorumNeeded != 2 || len(g.Peers) != 3 {
			t.Errorf("%s: got member %v, size %d, quorum %d, peers %v; want true, 3, 2, three", g.Name, g.Member, g.Size, g.QuorumNeeded, g.Peers)
		}
	}
	want := []string{"SYS//", "FABRIC/KV_registry/", "FABRIC/KV_registry/reader"}
	if !slices.Equal(got, want) {
		t.Fatalf("got groups %v, want %v", got, want)
	}
	g := groups[1]
	if !g.Leads || g.State != "leader" || g.Leader != "b" || g.LeaderID != raft.PeerID("b") || g.Term == 0 {
		t.Errorf("got leads %v, state %s, leader %s (%s), term %d; want b to lead", g.Leads, g.State, g.Leader, g.LeaderID, g.Term)
	}
	for i, name := range []string{"a", "b", "c"} {
		p := g.Peers[i]
		if p.Name != name || p.ID != raft.PeerID(name) || p.Self != (name == "b") || !p.Current || p.Lag != 0 {
			t.Errorf("got peer %+v, want %s, current, self only for b", p, name)
		}
		if !p.Self && time.Since(p.LastSeen) > slack*timing.LostQuorum {
			t.Errorf("peer %s was last seen at %s", p.Name, p.LastSeen)
		}
	}
}

func stepDown(t *testing.T, c *cluster) {
	c.lead(t, "b")
	g, _ := c.group("b", false)
	for _, tc := range []struct {
		name, on, group, preferred string
		want                       error
	}{
		{"unknown group", "b", "S-R3F-nothere", "", raft.ErrNoGroup},
		{"follower", "a", g.Name, "", raft.ErrNotLeader},
		{"stranger preferred", "b", g.Name, "zebra", raft.ErrNoSuccessor},
		{"itself preferred", "b", g.Name, "b", raft.ErrNoSuccessor},
	} {
		if err := raft.StepDown(c.servers[tc.on], tc.group, tc.preferred); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := raft.StepDown(c.servers["b"], g.Name, "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 10*time.Second, "a to lead", func() bool {
		g, ok := c.group("c", false)
		return ok && g.Leader == "a"
	})
	if err := raft.StepDown(c.servers["a"], g.Name, ""); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 10*time.Second, "another than a to lead", func() bool {
		g, ok := c.group("a", false)
		return ok && g.Leader != "" && g.Leader != "a"
	})
}

func watchStops(t *testing.T, c *cluster) {
	a := c.watch(t, "a", true)
	for _, peer := range []string{"b", "c"} {
		if e := a.next(t, raft.Up, peer); e.Peer.ServerID != c.servers[peer].ID() || len(e.Peer.Remotes) == 0 {
			t.Errorf("got %+v, want the id of %s and its routes", e, peer)
		}
		a.waitLocated(t, peer)
	}
	for _, p := range a.watcher.Peers() {
		if want := c.servers[p.Name].ClusterAddr().String(); p.Addr != want {
			t.Errorf("located %s at %s, want %s", p.Name, p.Addr, want)
		}
	}
	late := a.watcher.Subscribe()
	defer late.Close()
	for _, peer := range []string{"b", "c"} {
		if e, err := late.Next(t.Context()); err != nil || e.Kind != raft.Up || e.Peer.Name != peer {
			t.Errorf("a late subscriber got %v %s (%v), want up %s", e.Kind, e.Peer.Name, err, peer)
		}
	}

	c.lead(t, "a") // so that nothing is left to campaign for
	c.servers["c"].Shutdown()
	c.servers["c"].WaitForShutdown()
	if e := a.next(t, raft.Down, "c"); !e.Dead || e.At.Before(e.Peer.Since) {
		t.Errorf("got %+v, want a dead c", e)
	}
	first := c.servers["c"].ID()
	c.serve(t, c.confs["c"])
	if e := a.next(t, raft.Up, "c"); e.Peer.ServerID == first {
		t.Errorf("got the server id of the first run, want that of the second")
	}
	a.waitLocated(t, "c")
	if got := a.campaigner.Count(); got != 0 {
		t.Errorf("campaigned %d times, want 0", got)
	}
	if e, err := late.Next(t.Context()); err != nil || e.Kind != raft.Down {
		t.Errorf("a late subscriber got %v (%v), want down", e.Kind, err)
	}
}

// A relay routes, but is in no group and knows no leader.
func TestRelay(t *testing.T) {
	srv, err := serverConf{Name: "relay", Relay: true, Port: freePorts(t, 1)[0], Routes: []string{"127.0.0.1:1"}}.start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	if got := raft.Groups(srv); len(got) != 0 {
		t.Errorf("got groups %v, want none", got)
	}
	if got := raft.MetaLeader(srv); got != "" {
		t.Errorf("got meta leader %q, want none known", got)
	}
	if err := raft.StepDown(srv, raft.MetaGroup, ""); !errors.Is(err, raft.ErrNoGroup) {
		t.Errorf("got %v, want ErrNoGroup", err)
	}
}

// BenchmarkPoll is what a watcher does 50 times a second, BenchmarkGroups what a
// status page asks for.
func BenchmarkPoll(b *testing.B) {
	c := startCluster(b, []string{"a", "b", "c"}, nil)
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			c.servers["a"].NumRoutes()
		}
	})
	b.Run("scan", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.servers["a"].Routez(nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("groups", func(b *testing.B) {
		for b.Loop() {
			raft.Groups(c.servers["a"])
		}
	})
}
