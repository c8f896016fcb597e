package kv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/addrtest"
	"ripstop/fabric/raft"
	"ripstop/kv"
)

// timing is slow enough for the race detector on a busy machine.
var timing = raft.LAN().Scale(2)

func TestMain(m *testing.M) {
	if err := timing.Apply(); err != nil { // before any server starts
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// cluster is three voters and a relay, started and stopped one by one.
type cluster struct {
	t     testing.TB
	addrs []string
	dirs  []string
	nodes [4]*member
}

// member is one node of a cluster with its registry.
type member struct {
	*lab
	*node
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t}
	for range 4 {
		c.addrs = append(c.addrs, addrtest.Reserve(t))
		c.dirs = append(c.dirs, t.TempDir())
	}
	return c
}

func (c *cluster) start(i int) *member {
	c.t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	n, err := fabric.Open(c.t.Context(), fabric.Options{
		Name: name, Addr: "127.0.0.1:0", DataDir: c.dirs[i], Logger: logger(),
		Cluster: &fabric.Cluster{Addr: c.addrs[i], Peers: c.addrs[:3], Voters: []string{"n1", "n2", "n3"}, Secret: "shared among the nodes", Timing: timing},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { n.Server().Shutdown(); n.Close() })
	l := &lab{n, "local"}
	begun := time.Now()
	m := &member{l, l.nodeWith(c.t, nodeOptions{
		name: name, incarnation: n.Incarnation(), file: filepath.Join(c.dirs[i], "index.db"), replicas: 3,
		fabric: n.Fabric(), agents: n.MCP(), every: 30 * time.Second,
	})}
	if took := time.Since(begun); took > time.Second {
		c.t.Errorf("opening the registry of %s took %s", name, took)
	}
	c.nodes[i] = m
	return m
}

// kill ends a node with no word to anyone.
func (c *cluster) kill(i int) {
	c.t.Helper()
	m := c.nodes[i]
	c.nodes[i] = nil
	m.Server().Shutdown()
	m.crash(c.t)
	if err := m.lab.Node.Close(); err != nil {
		c.t.Error(err)
	}
}

// show waits until every living node shows these instances of demo.
func (c *cluster) show(want string) {
	c.t.Helper()
	for _, m := range c.nodes {
		if m != nil {
			within(c.t, 30*time.Second, func() string {
				if got := ids(m.node, "demo"); got != want {
					return m.Name() + " shows " + got + ", want " + want
				}
				return ""
			})
		}
	}
}

// leader is the index of the node that leads the registry's stream.
func (c *cluster) leader() int {
	c.t.Helper()
	name := ""
	var js jetstream.JetStream
	for _, m := range c.nodes {
		if m != nil {
			var err error
			if js, err = jetstream.New(m.Fabric()); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	eventually(c.t, func() string {
		s, err := js.Stream(c.t.Context(), "KV_registry_local_g1")
		if err == nil {
			name = s.CachedInfo().Cluster.Leader
		}
		return text(err)
	})
	for i, m := range c.nodes {
		if m != nil && m.Name() == name {
			return i
		}
	}
	c.t.Fatalf("the leader is %q", name)
	return 0
}

func (m *member) attach(t testing.TB, id string) {
	t.Helper()
	m.put(t, m.instance("demo", id))
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts four nodes, several times")
	}
	c := newCluster(t)
	// One of three, on its own: nothing blocks, and its own instances count.
	n1 := c.start(0)
	n1.attach(t, "a")
	c.show("a")
	if !n1.Stale() || n1.registrar.Pending() == 0 {
		t.Errorf("alone: stale %t, pending %d", n1.Stale(), n1.registrar.Pending())
	}
	c.start(1)
	c.start(2)
	relay := c.start(3)
	c.show("a")
	n1.stored(t)
	relay.attach(t, "r")
	c.nodes[2].attach(t, "c")
	c.show("a c r")
	for _, m := range c.nodes {
		m.synced(t)
		if m.Stale() || m.Age() > time.Minute {
			t.Errorf("%s: stale %t, age %s", m.Name(), m.Stale(), m.Age())
		}
	}
	info, err := c.nodes[1].bucket(t).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := info.(*jetstream.KeyValueBucketStatus).StreamInfo().Config.Replicas; r != 3 {
		t.Errorf("%d replicas", r)
	}
	t.Run("leader killed", c.leaderKilled)
	t.Run("minority", c.minority)
	t.Run("relay alone", c.relayAlone)
}

// leaderKilled kills the stream's leader while another node registers without a
// pause: nothing is missed, no gap is left.
func (c *cluster) leaderKilled(t *testing.T) {
	at := c.leader()
	var others []*member
	for i, m := range c.nodes {
		if i != at {
			others = append(others, m)
		}
	}
	writer := others[0]
	stop, count := make(chan struct{}), atomic.Int64{}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				k := count.Add(1)
				if _, err := writer.client.Put(t.Context(), writer.instance("load", fmt.Sprintf("i%d", k))); err != nil {
					t.Error(err)
				}
			}
		}
	})
	eventually(t, func() string {
		if n := len(others[1].Instances("load")); n < 50 {
			return fmt.Sprint(n, " instances")
		}
		return ""
	})
	dead := c.nodes[at].Name()
	c.kill(at)
	killed := time.Now()
	before := count.Load()
	for _, m := range others {
		within(t, 20*time.Second, func() string {
			if n := len(m.Instances("load")); n < int(before)+50 {
				return fmt.Sprintf("%s: %d of %d", m.Name(), n, before)
			}
			return ""
		})
	}
	t.Logf("all nodes show registrations made after the kill within %s", time.Since(killed))
	close(stop)
	wg.Wait()
	for _, m := range others {
		m.NodeGone(dead, "")
		within(t, 20*time.Second, func() string {
			if n := len(m.Instances("load")); n != int(count.Load()) {
				return fmt.Sprintf("%s: %d of %d", m.Name(), n, count.Load())
			}
			return ""
		})
		for _, i := range m.Instances("demo") {
			if i.Node == dead {
				t.Errorf("%s still shows %s of %s", m.Name(), i.Instance, dead)
			}
		}
	}
	if _, err := others[1].RemoveNode(short(t), dead); err != nil {
		t.Error(err)
	}
	// It comes back, as an empty node.
	m := c.start(at)
	for _, o := range others {
		o.NodeBack(dead)
	}
	within(t, 30*time.Second, func() string {
		if n := len(m.Instances("load")); n != int(count.Load()) || m.Stale() {
			return fmt.Sprintf("%s: %d of %d, stale %t", m.Name(), n, count.Load(), m.Stale())
		}
		return ""
	})
	for _, i := range writer.Instances("load") {
		if err := writer.client.Remove(t.Context(), *i); err != nil {
			t.Fatal(err)
		}
	}
	writer.stored(t)
	for _, m := range c.nodes {
		m.shows(t, "load", "")
	}
}

// minority takes the quorum away: what is registered counts where it is, and
// goes everywhere when the quorum is back.
func (c *cluster) minority(t *testing.T) {
	c.kill(1)
	c.kill(2)
	n1 := c.nodes[0]
	n1.attach(t, "minority")
	if got := ids(n1.node, "demo"); !strings.Contains(got, "minority") {
		t.Errorf("shows %q", got)
	}
	within(t, 20*time.Second, func() string {
		n1.Resync()
		if !n1.Stale() {
			return "does not say that it is stale"
		}
		return ""
	})
	if n1.registrar.Pending() == 0 {
		t.Error("claims that the bucket has it")
	}
	c.start(1)
	c.start(2)
	for _, m := range c.nodes {
		within(t, 30*time.Second, func() string {
			if got := ids(m.node, "demo"); !strings.Contains(got, "minority") || m.Stale() {
				return fmt.Sprintf("%s shows %q, stale %t", m.Name(), got, m.Stale())
			}
			return ""
		})
	}
}

// relayAlone starts a relay that reaches nobody.
func (c *cluster) relayAlone(t *testing.T) {
	c.nodes[1].attach(t, "kept")
	within(t, 10*time.Second, func() string {
		if got := ids(c.nodes[3].node, "demo"); !strings.Contains(got, "kept") {
			return got
		}
		return ""
	})
	if err := kv.Flush(c.nodes[3].Registry); err != nil {
		t.Fatal(err)
	}
	for i := 3; i >= 0; i-- {
		c.kill(i)
	}
	r := c.start(3)
	if got := ids(r.node, "demo"); !strings.Contains(got, "kept") || !r.Stale() || r.Age() > time.Minute {
		t.Errorf("the relay shows %q, stale %t, age %s", got, r.Stale(), r.Age())
	}
}
