package raft_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric/addrtest"
	"ripstop/fabric/raft"
)

const bucket = "registry"

// serverConf is one clustered server; it travels to child processes as JSON.
type serverConf struct {
	Name, Dir string
	Port      int
	Routes    []string
	Relay     bool // JetStream off
}

func (c serverConf) start() (*server.Server, error) {
	o := &server.Options{}
	err := o.ProcessConfigString(`
		system_account: SYS
		accounts: {
			SYS: {users: [{user: sys, password: sys}]}
			FABRIC: {jetstream: enabled, users: [{user: fabric, password: fabric}]}
		}`)
	if err != nil {
		return nil, err
	}
	o.ServerName, o.Host, o.Port = c.Name, "127.0.0.1", server.RANDOM_PORT
	o.NoSigs, o.NoLog = true, true
	o.JetStream, o.StoreDir, o.SyncAlways = !c.Relay, c.Dir, true
	o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "test", "127.0.0.1", c.Port
	for _, r := range c.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: r})
	}
	timing.Configure(o)
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	go srv.Start() // Shutdown and WaitForShutdown end it
	if !srv.ReadyForConnections(20 * time.Second) {
		return nil, fmt.Errorf("server %s did not start", c.Name)
	}
	return srv, nil
}

// child is a server in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	once  sync.Once
}

func startChild(t testing.TB, c serverConf) *child {
	t.Helper()
	conf, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &child{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(conf))
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *child) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (p *child) kill() {
	p.once.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		_ = p.stdin.Close()
	})
}

// cluster is a set of voters, some of them child processes, with a bucket of three
// replicas.
type cluster struct {
	confs    map[string]serverConf
	servers  map[string]*server.Server // in this process
	children map[string]*child
}

// startCluster starts a server for each name, those in children as processes, and
// waits until the bucket exists and all are current.
func startCluster(t testing.TB, names, children []string) *cluster {
	t.Helper()
	c := &cluster{confs: map[string]serverConf{}, servers: map[string]*server.Server{}, children: map[string]*child{}}
	ports := freePorts(t, len(names))
	var routes []string
	for _, p := range ports {
		routes = append(routes, fmt.Sprintf("127.0.0.1:%d", p))
	}
	for i, name := range names {
		conf := serverConf{Name: name, Dir: t.TempDir(), Port: ports[i], Routes: routes}
		c.confs[name] = conf
		if slices.Contains(children, name) {
			c.children[name] = startChild(t, conf)
		} else {
			c.serve(t, conf)
		}
	}
	c.createBucket(t)
	for _, name := range names {
		c.waitCurrent(t, name)
	}
	return c
}

func (c *cluster) serve(t testing.TB, conf serverConf) *server.Server {
	t.Helper()
	srv, err := conf.start()
	if err != nil {
		t.Fatal(err)
	}
	c.servers[conf.Name] = srv
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	return srv
}

func (c *cluster) createBucket(t testing.TB) {
	t.Helper()
	js, err := jetstream.New(c.connect(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	var last error
	waitFor(t, 20*time.Second, "the bucket", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, last = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, Replicas: 3})
		return last == nil
	}, func() any { return last })
}

// connect returns a connection through the named server of this process.
func (c *cluster) connect(t testing.TB, name string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(c.servers[name]), nats.UserInfo("fabric", "fabric"), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// group returns the group of the bucket, or the meta group, as the server sees it.
func (c *cluster) group(name string, meta bool) (raft.Group, bool) {
	for _, g := range raft.Groups(c.servers[name]) {
		if meta && g.Name == raft.MetaGroup || !meta && g.Stream == "KV_"+bucket && g.Consumer == "" {
			return g, true
		}
	}
	return raft.Group{}, false
}

// waitCurrent waits until the peer is current in both groups.
func (c *cluster) waitCurrent(t testing.TB, peer string) {
	t.Helper()
	for _, meta := range []bool{true, false} {
		waitFor(t, 20*time.Second, peer+" to be current", func() bool { return c.current(peer, meta) })
	}
}

// current asks the peer itself, or if it is a process of its own, the leader; of a
// leader in another process it is enough that there is one.
func (c *cluster) current(peer string, meta bool) bool {
	ask := []string{peer}
	if c.servers[peer] == nil {
		ask = slices.Collect(maps.Keys(c.servers))
	}
	for _, name := range ask {
		g, ok := c.group(name, meta)
		if !ok || g.Leader == "" {
			return false
		}
		if c.servers[g.Leader] == nil && name != peer {
			return true
		}
		for _, p := range g.Peers {
			if p.Name == peer && p.Current {
				return true
			}
		}
	}
	return false
}

// leadHere reports whether a server of this process leads the group.
func (c *cluster) leadHere(meta bool) bool {
	for name := range c.servers {
		if g, ok := c.group(name, meta); ok && g.Leads {
			return true
		}
	}
	return false
}

// lead makes the peer the leader of both groups.
func (c *cluster) lead(t testing.TB, peer string) {
	t.Helper()
	for _, meta := range []bool{true, false} {
		var last error
		waitFor(t, 20*time.Second, peer+" to lead", func() bool {
			for name, srv := range c.servers {
				g, ok := c.group(name, meta)
				if ok && g.Leader == peer {
					return true
				}
				if ok && g.Leads {
					last = raft.StepDown(srv, g.Name, peer)
				}
			}
			return false
		}, func() any { return last })
	}
}

func waitFor(t testing.TB, limit time.Duration, what string, ok func() bool, detail ...func() any) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(scaled(limit)); !ok(); <-tick.C {
		if time.Now().After(end) {
			for _, d := range detail {
				t.Log(d())
			}
			t.Fatalf("waited %s for %s", scaled(limit), what)
		}
	}
}

// freePorts returns loopback ports that were free a moment ago: every server's list
// of routes needs them before the first starts.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		ports = append(ports, addrtest.ReservePort(t))
	}
	return ports
}

// node is a server with its watcher and campaigner running.
type node struct {
	watcher    *raft.Watcher
	campaigner *raft.Campaigner // nil if not asked for
	events     *raft.Subscription
	passed     []raft.Event // read by next while it looked for another
}

func (c *cluster) watch(t testing.TB, name string, campaign bool) *node {
	t.Helper()
	return c.watchWith(t, name, campaign, raft.WatchOptions{Timing: timing})
}

func (c *cluster) watchWith(t testing.TB, name string, campaign bool, opts raft.WatchOptions) *node {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	srv := c.servers[name]
	n := &node{watcher: raft.NewWatcher(srv, opts)}
	n.events = n.watcher.Subscribe()
	wg.Go(func() { n.watcher.Run(ctx) })
	if campaign {
		n.campaigner = raft.NewCampaigner(srv, n.watcher, timing, nil)
		wg.Go(func() { n.campaigner.Run(ctx) })
	}
	return n
}

// waitLocated waits until the watcher knows where the peer listens.
func (n *node) waitLocated(t testing.TB, peer string) {
	t.Helper()
	waitFor(t, 10*time.Second, "the address of "+peer, func() bool {
		return slices.ContainsFunc(n.watcher.Peers(), func(p raft.Peer) bool { return p.Name == peer && p.Addr != "" })
	})
}

// next returns the first event of this kind and peer that it has not returned before.
func (n *node) next(t testing.TB, kind raft.Kind, peer string) raft.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scaled(10*time.Second))
	defer cancel()
	wanted := func(e raft.Event) bool { return e.Kind == kind && e.Peer.Name == peer }
	if i := slices.IndexFunc(n.passed, wanted); i >= 0 {
		e := n.passed[i]
		n.passed = slices.Delete(n.passed, i, i+1)
		return e
	}
	for {
		e, err := n.events.Next(ctx)
		if err != nil {
			t.Fatalf("wait for %s %s: %v", peer, kind, err)
		}
		if wanted(e) {
			return e
		}
		n.passed = append(n.passed, e)
	}
}
