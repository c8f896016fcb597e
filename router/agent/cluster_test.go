package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/fabric/addrtest"
	"ripstop/fabric/raft"
	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
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

// cluster is three nodes, as `ripstop start` makes them, without their edges.
type cluster struct {
	t       testing.TB
	peers   []string
	clients []string // where NATS clients connect
	dirs    []string
	done    *ledger
	nodes   [3]atomic.Pointer[member]
	opened  []*member // all that ever ran
}

// member is one run of a node.
type member struct {
	fabric    *fabric.Node
	reg       *kv.Registry
	registrar *kv.Registrar
	client    *wire.Client
	router    *router.Router
	hosted    *agent.Agent
	idle      *idleNodes

	mu       sync.Mutex
	draining bool
	calls    sync.WaitGroup // of its edge
	stop     context.CancelFunc
	wg       sync.WaitGroup
}

// idleNodes are the nodes that take no new work.
type idleNodes struct{ sync.Map }

func (s *idleNodes) Healthy(name string) bool {
	_, idle := s.Load(name)
	return !idle
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t, done: &ledger{times: map[string]int{}, held: make(chan struct{}, 1), release: make(chan struct{})}}
	for range 3 {
		for _, list := range []*[]string{&c.peers, &c.clients} {
			*list = append(*list, addrtest.Reserve(t))
		}
		c.dirs = append(c.dirs, t.TempDir())
	}
	t.Cleanup(func() { // after those of agents and clients, however late a node was started
		for _, m := range c.opened {
			m.end()
			m.fabric.Server().Shutdown()
			m.fabric.Close()
		}
	})
	for i := range 3 {
		c.start(i)
	}
	for i := range 3 {
		c.ready(i)
	}
	return c
}

func (c *cluster) urls() string {
	return "nats://" + strings.Join(c.clients, ",nats://")
}

func (c *cluster) start(i int) *member {
	t := c.t
	t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	n, err := fabric.Open(t.Context(), fabric.Options{
		Name: name, Addr: c.clients[i], DataDir: c.dirs[i], Logger: quiet(),
		Cluster: &fabric.Cluster{Addr: c.peers[i], Peers: c.peers, Voters: []string{"n1", "n2", "n3"}, Secret: "shared", Timing: timing},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{fabric: n, idle: &idleNodes{}, stop: cancel, draining: true} // until it is ready
	c.opened = append(c.opened, m)
	m.reg, err = kv.OpenRegistry(kv.RegistryOptions{Fabric: n.Fabric(), Node: name, Replicas: 3, File: filepath.Join(c.dirs[i], "index.db"), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	m.registrar, err = kv.NewRegistrar(m.reg, kv.RegistrarOptions{
		Agents: n.MCP(), ServerID: n.Server().ID(), Incarnation: n.Incarnation(), Speaks: wire.Own.Speaks,
		Open: func(c kv.Conn) bool { return n.Connected(c.ServerID, c.ClientID) }, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.OnDisconnect(func(s string, id uint64) { m.registrar.Disconnected(kv.Conn{ServerID: s, ClientID: id}) }); err != nil {
		t.Fatal(err)
	}
	if m.client, err = wire.NewClient(n.MCP()); err != nil {
		t.Fatal(err)
	}
	m.router = router.NewRouter(m.reg, m.client, router.RouterOptions{Node: name, Nodes: m.idle, Speaks: wire.Own.Speaks})
	m.reg.Watch(func(ch kv.Change) {
		if ch.Gone {
			m.client.Lost(ch.Instance.Server, ch.Instance.Instance)
		}
	})
	m.wg.Go(func() { m.followRoutes(ctx) })
	nc, err := n.Connect("many")
	if err != nil {
		t.Fatal(err)
	}
	id := router.NewInstanceID()
	m.hosted, err = agent.Attach(agent.Options{
		Server: "many", Instance: id, Transport: "go", Conn: nc, Relay: m.client, Logger: quiet(), Backend: agent.Func(router.Info{}, c.done.work),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.router.Attach(id, m.hosted)
	c.nodes[i].Store(m)
	return m
}

// followRoutes hides the instances of nodes whose routes are lost.
func (m *member) followRoutes(ctx context.Context) {
	sub := m.fabric.Routes().Subscribe()
	defer sub.Close()
	for {
		e, err := sub.Next(ctx)
		switch {
		case err != nil:
			return
		case e.Kind == raft.Up:
			m.idle.Delete(e.Peer.Name)
			m.reg.NodeBack(e.Peer.Name)
			m.reg.Resync()
		default:
			m.reg.NodeGone(e.Peer.Name, e.Peer.ServerID)
		}
	}
}

// end lets go of what is not the server's.
func (m *member) end() {
	m.mu.Lock()
	ended := m.stop == nil
	stop := m.stop
	m.stop = nil
	m.mu.Unlock()
	if ended {
		return
	}
	stop()
	m.wg.Wait()
	if m.hosted == nil {
		return // the test failed while it was opened
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing to wait for
	m.hosted.Close(ctx)
	m.client.Close()
	m.registrar.Close()
	m.reg.Close()
}

func (c *cluster) ready(i int) {
	c.t.Helper()
	m := c.nodes[i].Load()
	select {
	case <-m.hosted.Registered():
	case <-time.After(20 * time.Second):
		c.t.Fatalf("n%d: not registered", i+1)
	}
	c.within(20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		if err := m.reg.Sync(ctx); err != nil {
			return err
		}
		if got := len(m.fabric.Routes().Peers()); got != 2 {
			return fmt.Errorf("n%d has routes to %d nodes", i+1, got)
		}
		if got := len(m.reg.Instances("many")); got != 3 {
			return fmt.Errorf("n%d shows %d instances of many", i+1, got)
		}
		return nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.draining = false
}

func (c *cluster) within(d time.Duration, f func() error) {
	c.t.Helper()
	err := f()
	for end := time.Now().Add(d); err != nil; err = f() {
		if time.Now().After(end) {
			c.t.Fatalf("after %s: %v", d, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// drain stops a node as SIGTERM does, and returns how long that took.
func (c *cluster) drain(i int) time.Duration {
	c.t.Helper()
	began := time.Now()
	m := c.nodes[i].Load()
	m.mu.Lock()
	m.draining = true
	m.mu.Unlock()
	for j := range c.nodes {
		if other := c.nodes[j].Load(); other != nil {
			other.idle.Store(m.fabric.Name(), true)
		}
	}
	m.fabric.SendAway()
	m.calls.Wait()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	if err := m.hosted.Close(ctx); err != nil {
		c.t.Error(err)
	}
	c.within(5*time.Second, func() error {
		for _, inst := range m.reg.All() {
			if inst.Node == m.fabric.Name() {
				return fmt.Errorf("%s holds instance %s of %s", m.fabric.Name(), inst.Instance, inst.Server)
			}
		}
		return nil
	})
	c.nodes[i].Store(nil)
	m.end()
	if err := m.fabric.Close(); err != nil {
		c.t.Error(err)
	}
	return time.Since(began)
}

// kill ends a node with no word to anyone.
func (c *cluster) kill(i int) {
	m := c.nodes[i].Swap(nil)
	m.fabric.Server().Shutdown()
}

// ledger notes what was executed.
type ledger struct {
	mu    sync.Mutex
	times map[string]int // by call

	held    chan struct{} // a "hold" has begun
	release chan struct{} // ends it
}

// work is the server: it notes the call, takes a while, and for "count" says how
// far it is; "hold" lasts until it is released.
func (l *ledger) work(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Method() == "tools/list" { // whether a call may be executed twice
		return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":"ripstop-tools","result":{"tools":[]}}`)}, nil
	}
	l.mu.Lock()
	l.times[string(req.ID())]++
	l.mu.Unlock()
	steps := 1
	switch req.Message.Name {
	case "count":
		steps = 40
	case "hold":
		l.held <- struct{}{}
		select {
		case <-l.release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	for i := range steps {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if steps > 1 {
			if err := out.Send(ctx, fmt.Appendf(nil, "%d", i)); err != nil {
				return nil, err
			}
		}
	}
	return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{}`))}, nil
}

// inOrder is a Stream that knows what must come next.
type inOrder struct{ next int }

func (s *inOrder) Send(_ context.Context, msg []byte) error {
	if want := fmt.Sprint(s.next); string(msg) != want {
		return fmt.Errorf("message %s came where %s was due", msg, want)
	}
	s.next++
	return nil
}

// traffic is continuous load.
type traffic struct {
	c      *cluster
	cancel context.CancelFunc
	wg     sync.WaitGroup
	n      atomic.Int64

	mu     sync.Mutex
	failed []failure
}

type failure struct {
	at   time.Time // when the call began
	what string
}

// load begins to call, at each node's edge and from clients of their own, each
// server.
func (c *cluster) load(servers ...string) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	l := &traffic{c: c, cancel: cancel}
	c.t.Cleanup(l.stop)
	for i := range c.nodes {
		link, err := agent.Connection{URLs: c.urls(), Name: "load", Logger: quiet()}.Link(false)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(link.Close)
		for _, server := range servers {
			l.loop(ctx, "edge of "+fmt.Sprint("n", i+1), server, func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				m := c.edge(i)
				defer m.calls.Done()
				return m.router.Serve(ctx, req, out)
			})
			l.loop(ctx, fmt.Sprint("client ", i), server, link.Serve)
		}
	}
	return l
}

// edge is a node that takes calls, i if it does.
func (c *cluster) edge(i int) *member {
	for ; ; i++ {
		m := c.nodes[i%3].Load()
		if m == nil {
			continue
		}
		m.mu.Lock()
		if !m.draining {
			m.calls.Add(1)
			m.mu.Unlock()
			return m
		}
		m.mu.Unlock()
	}
}

func (l *traffic) loop(ctx context.Context, from, server string, h router.HandlerFunc) {
	for _, tool := range []string{"echo", "echo", "count"} {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				id := l.n.Add(1)
				m, err := jsonrpc.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q}}`, id, tool))
				if err != nil {
					panic(err)
				}
				began := time.Now()
				call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				out := &inOrder{}
				reply, err := h(call, &router.Request{Server: server, Era: router.EraBare, Message: m}, out)
				cancel()
				switch {
				case err == nil && strings.Contains(string(reply.Body), `"error"`):
					err = errors.New(string(reply.Body))
				case err == nil && tool == "count" && out.next != 40:
					err = fmt.Errorf("%d of 40 messages came", out.next)
				}
				if err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, failure{began, fmt.Sprintf("%s, %s of %s, call %d, after %s: %v", from, tool, server, id, time.Since(began).Round(time.Millisecond), err)})
					l.mu.Unlock()
				}
			}
		})
	}
}

func (l *traffic) stop() {
	l.cancel()
	l.wg.Wait()
}

// ext runs an agent of its own, as `ripstop serve` does, and returns its id.
func (c *cluster) ext(server string, urls string, more ...func(*agent.RunOptions)) string {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	attached, done := make(chan string, 1), make(chan error, 1)
	opts := agent.RunOptions{
		Connection: agent.Connection{URLs: urls, Logger: quiet()}, Server: server, Transport: "go", Drain: 5 * time.Second,
		Backend: agent.Func(router.Info{}, c.done.work), Attached: func(id string) { attached <- id },
	}
	for _, f := range more {
		f(&opts)
	}
	go func() { done <- agent.Run(ctx, opts) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	})
	select {
	case id := <-attached:
		return id
	case <-time.After(10 * time.Second):
		c.t.Fatalf("%s: not attached", server)
		return ""
	}
}

// where is the node that the registry says server's only instance is on.
func (m *member) where(server string) string {
	list := m.reg.Instances(server)
	if len(list) != 1 {
		return fmt.Sprint(len(list), " instances")
	}
	return list[0].Node
}

// TestRollingDrain: every node in turn is drained and started again under load.
// No call fails, none is executed twice, and messages keep their order.
func TestRollingDrain(t *testing.T) {
	c := newCluster(t)
	c.ext("ext", c.urls())
	c.ext("only", "nats://"+c.clients[1]) // it knows one node, and learns of the others
	c.ext("excl", "nats://"+c.clients[2], func(o *agent.RunOptions) { o.Exclusive = true })
	c.within(5*time.Second, func() error {
		for i := range c.nodes {
			for _, s := range []string{"ext", "only", "excl"} {
				if m := c.nodes[i].Load(); len(m.reg.Instances(s)) != 1 {
					return fmt.Errorf("n%d: %s is on %s", i+1, s, m.where(s))
				}
			}
		}
		return nil
	})
	outlived := c.hold()
	l := c.load("many", "ext", "only", "excl")
	for i := range c.nodes {
		took := c.drain(i)
		if i == 0 {
			close(c.done.release)
			if err := <-outlived; err != nil {
				t.Errorf("a call that outlived the node of its client and its agent: %v", err)
			}
		}
		name := fmt.Sprintf("n%d", i+1)
		for _, s := range []string{"ext", "only", "excl"} {
			if at := c.nodes[(i+1)%3].Load().where(s); at == name {
				t.Errorf("%s is still on %s", s, name)
			}
		}
		t.Logf("%s drained in %s", name, took.Round(time.Millisecond))
		began := time.Now()
		c.start(i)
		c.ready(i)
		t.Logf("%s is back after %s", name, time.Since(began).Round(time.Millisecond))
	}
	l.stop()
	t.Logf("%d calls", l.n.Load())
	if l.n.Load() < 1000 {
		t.Errorf("%d calls are too few to tell", l.n.Load())
	}
	for _, f := range l.failed[:min(len(l.failed), 20)] {
		t.Errorf("failed: %s", f.what)
	}
	c.done.once(t)
}

// hold begins a call between a client and an agent that are both connected to
// the first node, and returns how it ends.
func (c *cluster) hold() <-chan error {
	c.t.Helper()
	first := "nats://" + c.clients[0]
	c.ext("held", first)
	link, err := agent.Connection{URLs: first, Name: "hold", Logger: quiet()}.Link(false)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(link.Close)
	end := make(chan error, 1)
	go func() {
		m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":"held","method":"tools/call","params":{"name":"hold"}}`))
		if err == nil {
			_, err = link.Serve(c.t.Context(), &router.Request{Server: "held", Era: router.EraBare, Message: m}, router.Discard)
		}
		end <- err
	}()
	<-c.done.held
	return end
}

// once checks that nothing was executed twice.
func (l *ledger) once(t testing.TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, n := range l.times {
		if n > 1 {
			t.Errorf("call %s was executed %d times", id, n)
		}
	}
}

// TestKilledNode: calls to servers on living nodes fail for less than a second,
// and an agent that was connected to the dead node is back within 0.2 s.
func TestKilledNode(t *testing.T) {
	c := newCluster(t)
	c.ext("ext", c.urls())
	survivor := c.nodes[0].Load()
	c.within(5*time.Second, func() error {
		if survivor.where("ext") == "0 instances" {
			return errors.New("not known")
		}
		return nil
	})
	l := c.load("many", "ext")
	victim := int(survivor.where("ext")[1] - '1')
	watcher := c.nodes[(victim+1)%3].Load()
	back := make(chan time.Time, 1)
	stop := watcher.reg.Watch(func(ch kv.Change) {
		if ch.Instance.Server == "ext" && !ch.Gone && ch.Instance.Node != fmt.Sprintf("n%d", victim+1) {
			select {
			case back <- time.Now():
			default:
			}
		}
	})
	defer stop()
	c.within(5*time.Second, func() error { // the load is up
		if l.n.Load() < 200 {
			return errors.New("few calls yet")
		}
		return nil
	})
	killed := time.Now()
	c.kill(victim)
	select {
	case at := <-back:
		t.Logf("the agent is registered elsewhere after %s", at.Sub(killed).Round(time.Millisecond))
		if at.Sub(killed) > time.Second {
			t.Errorf("too long")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the agent is not registered elsewhere")
	}
	before := l.n.Load()
	c.within(10*time.Second, func() error {
		if time.Since(killed) < 1500*time.Millisecond || l.n.Load() < before+500 {
			return errors.New("few calls since")
		}
		return nil
	})
	l.stop()
	last := time.Duration(0)
	for _, f := range l.failed {
		last = max(last, f.at.Sub(killed))
	}
	t.Logf("%d of %d calls failed; the last began %s after the kill", len(l.failed), l.n.Load(), last.Round(time.Millisecond))
	if last > time.Second {
		slices.SortFunc(l.failed, func(a, b failure) int { return b.at.Compare(a.at) })
		for _, f := range l.failed[:min(len(l.failed), 10)] {
			t.Errorf("failed: %s", f.what)
		}
	}
	c.done.once(t)
}

// TestReconnectIsQuick measures how long an agent's connection takes to be at
// another server once its own is dead.
func TestReconnectIsQuick(t *testing.T) {
	c := newCluster(t)
	again := make(chan struct{}, 1)
	nc, err := agent.Connection{URLs: c.urls(), Logger: quiet()}.Dial(false, nats.ReconnectHandler(func(*nats.Conn) { again <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	i := slices.Index(c.clients, strings.TrimPrefix(nc.ConnectedUrl(), "nats://"))
	killed := time.Now()
	c.kill(i)
	select {
	case <-again:
		t.Logf("connected again after %s", time.Since(killed).Round(time.Millisecond))
	case <-time.After(5 * time.Second):
		t.Fatal("not connected again")
	}
}

// TestVersions: an agent of the next wire version that still speaks this one is
// served; one that does not is refused by the node, and left out by routers.
func TestVersions(t *testing.T) {
	l := newLab(t)
	nc := l.dial(t)
	cid, err := nc.GetClientID()
	if err != nil {
		t.Fatal(err)
	}
	put := func(id string, oldest, newest int) error {
		_, err := kv.RegistryClient{Conn: nc}.Put(t.Context(), kv.Instance{
			Server: "demo", Instance: id, Agent: "host/1", Software: "v9.0.0", Wire: newest, WireMin: oldest,
			Run: "r", Seq: 1, Conn: kv.Conn{ServerID: nc.ConnectedServerId(), ClientID: cid},
		})
		return err
	}
	for _, tt := range []struct {
		id             string
		oldest, newest int
		want           string // in the error
	}{
		{"aaaaaaaaaa", 0, 0, ""}, // says nothing: version 1
		{"bbbbbbbbbb", 0, 1, ""},
		{"cccccccccc", 1, 2, ""}, // one step ahead
		{"dddddddddd", 2, 3, "wire versions 2 to 3, this node speaks wire version 1: they have none in common; upgrade the nodes"},
		{"eeeeeeeeee", 0, 2, "(agent host/1, ripstop v9.0.0) speaks wire version 2"},
	} {
		err := put(tt.id, tt.oldest, tt.newest)
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, kv.ErrRefused) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("wire %d to %d: %v, want %q", tt.oldest, tt.newest, err, tt.want)
		}
	}
	if got := len(l.reg.Instances("demo")); got != 3 {
		t.Errorf("%d instances are registered, want 3", got)
	}
	newer := wire.Range{Min: 3, Max: 4}
	if err := newer.Speaks(&kv.Instance{Server: "demo", Instance: "aaaaaaaaaa", WireMin: 1, Wire: 2}); err == nil || !strings.Contains(err.Error(), "upgrade the agent") {
		t.Errorf("an agent left behind: %v", err)
	}
}
