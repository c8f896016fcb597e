// Package fabric runs the NATS server inside a node: its options, its log, its
// data directory, and the connections the rest of the node makes to it.
package fabric

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/fabric/raft"
)

// readyTimeout bounds how long the server may take to accept connections.
const readyTimeout = 10 * time.Second

// Node is a running embedded NATS server.
type Node struct {
	srv   *server.Server
	voter atomic.Bool // a relay may be promoted
	votes int
	url   string
	sys   *nats.Conn
	conn  *nats.Conn
	mcp   *nats.Conn
	dir   *dataDir
	log   *slog.Logger
	user  credentials

	member *membership // nil on a node on its own

	rosterMu sync.Mutex // guards the roster on disk
	access   access
}

// credentials are made anew at every start, for connections of this process.
type credentials struct{ system, fabric, edge string }

// Open starts the server and returns when it accepts connections; a clustered
// one then still looks for its peers. Errors name the address, directory or
// setting at fault.
func Open(ctx context.Context, opts Options) (*Node, error) {
	host, port, err := splitAddr("NATS", opts.Addr)
	if err != nil {
		return nil, err
	}
	want := identity{Name: opts.Name, Mode: standalone, Region: opts.Region}
	if want.Region == "" {
		want.Region = DefaultRegion
	}
	if err := checkRegion(want.Region); err != nil {
		return nil, err
	}
	if opts.Cluster != nil {
		want.Mode = clustered
		c := *opts.Cluster // it is completed here, and stays the caller's
		opts.Cluster = &c
		if c.Timing == (raft.Timing{}) {
			c.Timing = raft.LAN()
		}
		if err := c.check(); err != nil {
			return nil, err
		}
		if err := c.Timing.Apply(); err != nil {
			return nil, err
		}
	}
	dir, err := openDataDir(opts.DataDir, want)
	if err != nil {
		return nil, err
	}
	n := &Node{dir: dir, log: opts.Logger, user: credentials{rand.Text(), rand.Text(), rand.Text()}}
	switch roster := dir.identity.Voters; {
	case opts.Cluster == nil:
		n.voter.Store(true)
	case len(roster) > 0:
		n.voter.Store(slices.Contains(roster, n.Name()))
	default:
		n.voter.Store(opts.Cluster.votes(n.Name()))
	}
	n.votes = 1
	if opts.Cluster != nil {
		n.votes = opts.Cluster.size()
	}
	if err := n.start(ctx, opts, host, port); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, opts Options, host string, port int) error {
	if err := portFree(ctx, "NATS clients", "--nats-addr", host, port); err != nil {
		return err
	}
	so, err := n.serverOptions(opts, host, port)
	if err != nil {
		return err
	}
	var found *search
	if opts.Cluster != nil {
		if err := portFree(ctx, "cluster routes", "--cluster-addr", so.Cluster.Host, so.Cluster.Port); err != nil {
			return err
		}
		if found, err = n.seek(ctx, so, opts.Cluster); err != nil {
			return err
		}
	}
	srv, err := server.NewServer(so)
	if err != nil {
		return fmt.Errorf("configure NATS server: %w", err)
	}
	n.guard(srv, so, opts)
	bridge := newLogBridge(opts.Logger)
	srv.SetLoggerV2(bridge, false, false, false)
	n.srv = srv
	go srv.Start() // returns when the listener is up or Fatalf was called; Close waits for the server
	if err := awaitReady(ctx, srv, bridge); err != nil {
		return err
	}
	n.url = scheme(so) + srv.Addr().String()
	if n.sys, err = n.connectAs(userSystem, "node", n.user.system); err != nil {
		return err
	}
	if n.conn, err = n.connectAs(userFabric, "node", n.user.fabric); err != nil {
		return err
	}
	if n.mcp, err = n.Connect("node"); err != nil {
		return err
	}
	if opts.Cluster != nil {
		return n.join(opts.Cluster, found)
	}
	return nil
}

// awaitReady waits until srv accepts connections, or has said why it can't.
func awaitReady(ctx context.Context, srv *server.Server, bridge *logBridge) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for srv.Addr() == nil { // ReadyForConnections would poll every 25 ms
		select {
		case <-bridge.fatal:
			return fmt.Errorf("start NATS server: %s", bridge.fatalText())
		case <-ctx.Done():
			return fmt.Errorf("start NATS server: not ready within %s", readyTimeout)
		case <-tick.C:
		}
	}
	return nil
}

// portFree turns "address in use", which nats-server reports through its fatal
// log after it has opened the store, into an error before that.
func portFree(ctx context.Context, what, flag, host string, port int) error {
	if port == server.RANDOM_PORT {
		return nil
	}
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for %s on %s: %w; choose another with %s, or stop what holds it (`ss -ltnp 'sport = :%d'` shows it)", what, addr, err, flag, port)
	}
	return l.Close()
}

// Name is the node's name: stable over restarts.
func (n *Node) Name() string { return n.dir.identity.Name }

// Region is the node's region.
func (n *Node) Region() string { return n.dir.identity.Region }

// Incarnation counts the node's starts, from 1. With the name it tells one run
// from another.
func (n *Node) Incarnation() uint64 { return n.dir.identity.Incarnation }

// Clustered reports whether the node is one of several.
func (n *Node) Clustered() bool { return n.dir.identity.Mode == clustered }

// Voter reports whether the node holds replicas and votes. One that does not
// is a relay: JetStream is off.
func (n *Node) Voter() bool { return n.voter.Load() }

// Votes is how many nodes vote, and how many replicas every bucket has.
func (n *Node) Votes() int { return n.votes }

// Server is the embedded server, for those who look into it.
func (n *Node) Server() *server.Server { return n.srv }

// ClientURL is where NATS clients connect.
func (n *Node) ClientURL() string { return n.url }

// Fabric is the connection for buckets and for control traffic between nodes.
func (n *Node) Fabric() *nats.Conn { return n.conn }

// MCP is the connection on which the node meets agents and NATS clients.
func (n *Node) MCP() *nats.Conn { return n.mcp }

// System is the connection to the system account.
func (n *Node) System() *nats.Conn { return n.sys }

// Connect makes another connection to account MCP, in process.
func (n *Node) Connect(name string, opts ...nats.Option) (*nats.Conn, error) {
	return n.connectAs(userEdge, name, n.user.edge, opts...)
}

func (n *Node) connectAs(user, name, password string, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{
		nats.InProcessServer(n.srv), nats.Name(n.Name() + "/" + name), nats.UserInfo(user, password),
		nats.NoReconnect(), // in process a connection ends only with its server
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			n.log.Warn("NATS connection", "conn", name, "subject", subject, "err", err)
		}),
	}, opts...)
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, fmt.Errorf("connect %s in process: %w", name, err)
	}
	return nc, nil
}

// Connected reports whether the client connection id of server serverID is
// open. A server other than this one is an earlier run of it, whose connections
// are gone.
func (n *Node) Connected(serverID string, id uint64) bool {
	if serverID != n.srv.ID() {
		return false
	}
	z, err := n.srv.Connz(&server.ConnzOptions{CID: id, State: server.ConnOpen})
	return err != nil || len(z.Conns) > 0
}

// OnDisconnect calls f, one event at a time, whenever a client connection ends
// in an account other than the system's.
func (n *Node) OnDisconnect(f func(serverID string, id uint64)) error {
	_, err := n.sys.Subscribe("$SYS.ACCOUNT.*.DISCONNECT", func(m *nats.Msg) {
		var e server.DisconnectEventMsg
		if err := json.Unmarshal(m.Data, &e); err != nil {
			n.log.Warn("disconnect event does not decode", "err", err)
			return
		}
		f(e.Server.ID, e.Client.ID)
	})
	if err != nil {
		return fmt.Errorf("subscribe to disconnects: %w", err)
	}
	return n.sys.Flush()
}

// StorageError reports why JetStream can't be written, or nil.
func (n *Node) StorageError() error {
	if n.Voter() && !n.srv.JetStreamEnabled() {
		return errors.New("JetStream is off: its store failed; see the log")
	}
	return nil
}

// Connections returns how many clients are connected.
func (n *Node) Connections() int { return n.srv.NumClients() }

// Close ends the node's own connections, then the server, then gives the data
// directory free. A node of a cluster hands its leaderships on first, and lets
// its clients move. It is idempotent.
func (n *Node) Close() error {
	n.member.leave()
	for _, nc := range []*nats.Conn{n.mcp, n.conn, n.sys} {
		if nc != nil {
			nc.Close()
		}
	}
	if n.srv != nil {
		if n.Clustered() && n.srv.Running() {
			n.srv.LameDuckShutdown()
		}
		n.srv.Shutdown()
		n.srv.WaitForShutdown()
	}
	return n.dir.close()
}
