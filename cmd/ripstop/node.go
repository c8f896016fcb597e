package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ripstop/fabric"
	"ripstop/fabric/admin"
	"ripstop/failover/nodes"
	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/access"
	"ripstop/router/agent"
	"ripstop/router/aggregate"
	"ripstop/router/demo"
	"ripstop/router/edge"
	"ripstop/router/eras"
	"ripstop/router/gosdk"
	"ripstop/router/servers"
	"ripstop/router/session/keep"
	"ripstop/router/stdio"
	"ripstop/router/upstream"
	"ripstop/router/wire"
)

// allServers is the server name under which a node offers all servers as one.
const allServers = "all"

// node is a running node. Its fields stand in the order they are opened, and
// close undoes them in reverse: edges, then servers, then NATS.
type node struct {
	settings *nodeSettings
	started  time.Time
	log      *slog.Logger
	metrics  *prometheus.Registry

	fabric        *fabric.Node
	nodes         atomic.Pointer[nodes.Runner] // asked for a report before it is there
	admin         *admin.Service
	registry      *kv.Registry
	registrar     *kv.Registrar
	sessions      *sessions.Store
	events        *sessions.EventLog
	keep          *keep.Keep
	keeping       *keep.Service
	settled       chan struct{} // closed when the sessions of the cluster are known here
	keepsSessions atomic.Bool   // the operator's service, which is there before, may look at them
	client        *wire.Client
	router        *router.Router
	guard         *access.Guard
	token         atomic.Pointer[string] // that all HTTP clients share; "" = none
	hup           chan os.Signal
	set           *servers.Set
	edge          *edge.Edge
	http          *http.Server
	httpURL       string

	lag      replicaLag
	joined   atomic.Bool // every node that was connected was used, and some have been since
	working  workingNodes
	draining atomic.Bool
	metPeers atomic.Bool // another node of the cluster was reached

	mu     sync.Mutex
	agents []*hosted

	ctx    context.Context // ends when the node closes; parent of its loops
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error // a part that can't do without

	drained chan string // why an operator had it drained
}

// openNode starts every part. On error nothing is left running.
func openNode(ctx context.Context, s *nodeSettings) (*node, error) {
	n := &node{settings: s, started: time.Now().UTC(), log: s.logger(), metrics: prometheus.NewRegistry(), failed: make(chan error, 1), drained: make(chan string, 1)}
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	n.hup = catchHangup()
	if s.Servers != "" { // said before anything runs
		if _, err := servers.Load(s.Servers); err != nil {
			n.cancel()
			return nil, err
		}
	}
	// Take the HTTP port before anything is written: it is the likeliest to fail.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.HTTPAddr)
	if err != nil {
		n.cancel()
		return nil, fmt.Errorf("listen for HTTP on %s: %w; choose another with --http-addr, or stop what holds it", s.HTTPAddr, err)
	}
	if err := n.open(ctx, l); err != nil {
		end, cancel := context.WithTimeout(context.Background(), s.Drain)
		defer cancel()
		return nil, errors.Join(err, n.close(end), ignoreClosed(l.Close()))
	}
	return n, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (n *node) open(ctx context.Context, l net.Listener) error {
	s := n.settings
	var err error
	n.fabric, err = fabric.Open(ctx, fabric.Options{
		Name: s.Name, Region: s.Region, Addr: s.NATSAddr, DataDir: s.DataDir, Cluster: s.Cluster, Logger: n.log,
		Tokens: fabric.Tokens{Client: s.Token, Agent: s.AgentToken, Operator: s.OperatorToken},
		Users:  natsUsers(s.Users), TLS: s.TLS, Verify: s.Verify,
	})
	if err != nil {
		return err
	}
	if err := n.openRegistry(); err != nil {
		return err
	}
	if err := n.watchNodes(); err != nil {
		return err
	}
	if err := n.openSessions(); err != nil {
		return err
	}
	if n.client, err = wire.NewClient(n.fabric.MCP()); err != nil {
		return fmt.Errorf("start router: %w", err)
	}
	n.router = router.NewRouter(n.registry, n.client, router.RouterOptions{
		Node: n.fabric.Name(), Nodes: &n.working, Sessions: keep.Route{Keep: n.keep}, Speaks: wire.Own.Speaks, Pinned: eras.Pinned,
	})
	n.client.OnSilent(n.router.Suspect)
	n.registry.Watch(n.onRegistry)
	if err := n.serveSessions(); err != nil {
		return err
	}
	if err := n.watchHung(); err != nil {
		return err
	}
	n.guard = access.NewGuard(n.router, s.Users)
	n.token.Store(&s.Token)
	n.collect()
	n.collectTLS()
	n.warnOfTLS()
	n.reloadOnHangup()
	if err := n.attachOwn(); err != nil {
		return err
	}
	return n.serveHTTP(l)
}

func (n *node) openRegistry() error {
	f := n.fabric
	var err error
	n.registry, err = kv.OpenRegistry(kv.RegistryOptions{
		Fabric: f.Fabric(), Region: f.Region(), Replicas: f.Votes(), Node: f.Name(),
		File: filepath.Join(n.settings.DataDir, "index.db"), Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.registrar, err = kv.NewRegistrar(n.registry, kv.RegistrarOptions{
		Agents: f.MCP(), ServerID: f.Server().ID(), Incarnation: f.Incarnation(),
		Open:   func(c kv.Conn) bool { return f.Connected(c.ServerID, c.ClientID) },
		Speaks: wire.Own.Speaks,
		Logger: n.log,
	})
	if err != nil {
		return err
	}
	return f.OnDisconnect(func(server string, id uint64) {
		n.registrar.Disconnected(kv.Conn{ServerID: server, ClientID: id})
	})
}

// attachOwn attaches what the node itself hosts.
func (n *node) attachOwn() error {
	if n.settings.Demo {
		id := router.NewInstanceID()
		b, err := gosdk.New(id, demo.New(n.log), n.log)
		if err != nil {
			return fmt.Errorf("attach demo: %w", err)
		}
		if _, err := n.host(servers.Spec{Name: "demo"}, id, "go", b); err != nil {
			return err
		}
	}
	id := router.NewInstanceID()
	all := aggregate.New(aggregate.Options{
		Instance: id, Handler: n.router, Servers: n.members, Watch: n.watchMembers,
		IdleTimeout: n.settings.SessionIdle, Version: buildVersion(), Logger: n.log,
	})
	if _, err := n.host(servers.Spec{Name: allServers}, id, "go", all); err != nil {
		return err
	}
	if n.settings.Servers == "" {
		return nil
	}
	var err error
	n.set, err = servers.Open(servers.Options{Path: n.settings.Servers, Attach: n.attachSpec, Drain: n.settings.Drain, Logger: n.log})
	if err != nil {
		return err
	}
	n.wg.Go(func() {
		if err := n.set.Run(n.ctx); err != nil {
			n.log.Error("servers file is no longer followed", "err", err)
		}
	})
	return nil
}

// members names the servers that "all" stands for.
func (n *node) members() []string {
	return slices.DeleteFunc(n.registry.Servers(), func(s string) bool { return s == allServers })
}

func (n *node) watchMembers(ctx context.Context, changed func()) {
	stop := n.registry.Watch(func(c kv.Change) {
		if c.Instance.Server != allServers {
			changed()
		}
	})
	defer stop()
	<-ctx.Done()
}

func (n *node) attachSpec(s servers.Spec) (servers.Attached, error) {
	if s.Name == allServers {
		return nil, fmt.Errorf("the name %q stands for all servers as one; rename it", allServers)
	}
	if s.Name == "demo" && n.settings.Demo {
		return nil, errors.New("the name \"demo\" is the built-in server's; rename it, or start with --demo=false")
	}
	id := router.NewInstanceID()
	if s.URL != "" {
		h := http.Header{}
		for k, v := range s.Headers {
			h.Set(k, v)
		}
		b, err := upstream.New(upstream.Options{Instance: id, URL: s.URL, Header: h, IdleTimeout: 2 * n.settings.SessionIdle, MaxSessions: s.MaxSessions, Logger: n.log})
		if err != nil {
			return nil, err
		}
		return n.host(s, id, "http", n.bothEras(s, id, b))
	}
	b, err := stdio.New(stdio.Options{Instance: id, Command: s.Command, Env: s.Env, Dir: s.Dir, Shared: s.Shared, IdleTimeout: 2 * n.settings.SessionIdle, EndWithProcess: true, MaxSessions: s.MaxSessions, Logger: n.log.With("server", s.Name)})
	if err != nil {
		return nil, err
	}
	return n.host(s, id, "stdio", n.bothEras(s, id, b))
}

// bothEras gives a server the era that it lacks. Where each client has a process
// of its own, one that speaks both eras is to keep it.
func (n *node) bothEras(s servers.Spec, instance string, b router.Backend) router.Backend {
	return eras.Wrap(b, eras.Options{
		Instance: instance, Fallback: s.URL == "" && !s.Shared,
		IdleTimeout: 2 * n.settings.SessionIdle, Logger: n.log.With("server", s.Name),
	})
}

// hosted is an agent of this node, reachable without a network hop.
type hosted struct {
	*agent.Agent
	detach func()
	close  func()
}

// Close detaches the server from the node.
func (h *hosted) Close(ctx context.Context) error {
	err := h.Agent.Close(ctx)
	h.detach()
	h.close()
	return err
}

// host attaches a backend to this node. Each has a connection of its own, so
// that nats-server tells their traffic apart.
func (n *node) host(s servers.Spec, instance, transport string, b router.Backend) (*hosted, error) {
	nc, err := n.fabric.Connect(s.Name + "/" + instance)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	a, err := agent.Attach(agent.Options{
		Server: s.Name, Instance: instance, Transport: transport, Backend: b, Conn: nc, Relay: n.client,
		Keeper: n.keep, Events: n.events, After: n.settled, OnMove: s.OnMove, Idle: n.settings.SessionIdle,
		MaxSessions: s.MaxSessions, MaxInFlight: s.MaxCalls,
		Software: buildVersion(), Logger: n.log,
	})
	if err != nil {
		nc.Close()
		return nil, errors.Join(err, b.Close())
	}
	h := &hosted{Agent: a, detach: n.router.Attach(instance, a), close: nc.Close}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.agents = append(n.agents, h)
	return h, nil
}

// ready waits until what the node hosts is registered.
func (n *node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	n.mu.Lock()
	agents := slices.Clone(n.agents)
	n.mu.Unlock()
	for _, a := range agents {
		select {
		case <-a.Registered():
		case <-ctx.Done():
			return fmt.Errorf("server %s is not registered: %w", a.Server(), ctx.Err())
		}
	}
	return nil
}

// wait blocks until ctx ends or a part has failed.
func (n *node) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case why := <-n.drained:
		n.log.Info("node stops", "why", why)
		return nil
	case err := <-n.failed:
		return err
	}
}

// close stops the node in order: no new requests; calls in flight finish until
// ctx ends; servers leave the registry; NATS stops; the data directory is free.
// It takes a node that was opened in part.
func (n *node) close(ctx context.Context) error {
	defer signal.Stop(n.hup)
	n.draining.Store(true)
	if w := n.nodes.Load(); w != nil {
		w.Changed() // the others hear it before their next check
	}
	n.sendAway()
	var errs []error
	if n.edge != nil {
		errs = append(errs, n.edge.Shutdown(ctx))
	}
	refusing := time.Now()
	n.cancel()
	if n.set != nil {
		errs = append(errs, n.set.Close(ctx))
	}
	errs = append(errs, n.closeAgents(ctx))
	errs = append(errs, n.closeHTTP(ctx, refusing))
	n.wg.Wait()
	n.awaitMoves(ctx)
	if n.admin != nil {
		errs = append(errs, n.admin.Close())
	}
	if w := n.nodes.Load(); w != nil {
		errs = append(errs, w.Close())
	}
	if n.client != nil {
		n.client.Close()
	}
	errs = append(errs, n.closeSessions()...)
	if n.registrar != nil {
		errs = append(errs, n.registrar.Close())
	}
	if n.registry != nil {
		errs = append(errs, n.registry.Close())
	}
	if n.fabric != nil {
		errs = append(errs, n.fabric.Close())
	}
	return errors.Join(errs...)
}
