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
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// MaxPayload is the largest NATS message the fabric carries, in bytes: an MCP
// message of 16 MiB and its headers, with room to spare.
const MaxPayload = 20 << 20

// Accounts of the embedded server. The fabric's own buckets and its users'
// traffic share one account until nodes form clusters and roles separate them.
const (
	systemAccount = "SYS"
	mcpAccount    = "MCP"
)

// Options configure a node's NATS server.
type Options struct {
	Name    string // server name; "" = the one kept in DataDir, or a new one
	Addr    string // client listener, host:port; port 0 picks a free one
	DataDir string // created if missing, locked while the node runs
	Token   string // clients must present it; "" = anyone who can connect may
	Logger  *slog.Logger
}

// readyTimeout bounds how long the server may take to accept connections.
const readyTimeout = 10 * time.Second

// Node is a running embedded NATS server.
type Node struct {
	srv  *server.Server
	name string
	url  string
	sys  *nats.Conn
	conn *nats.Conn
	dir  *dataDir
	log  *slog.Logger
	user credentials
}

// credentials are made anew at every start, for connections of this process.
type credentials struct{ system, local string }

// Open starts the server and returns when it accepts connections. Errors name
// the address, directory or setting at fault.
func Open(ctx context.Context, opts Options) (*Node, error) {
	host, port, err := splitAddr(opts.Addr)
	if err != nil {
		return nil, err
	}
	dir, err := openDataDir(opts.DataDir, opts.Name)
	if err != nil {
		return nil, err
	}
	n := &Node{name: dir.identity.Name, dir: dir, log: opts.Logger, user: credentials{system: rand.Text(), local: rand.Text()}}
	if err := n.start(ctx, opts, host, port); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, opts Options, host string, port int) error {
	if err := portFree(ctx, host, port); err != nil {
		return err
	}
	so, err := n.serverOptions(opts, host, port)
	if err != nil {
		return err
	}
	srv, err := server.NewServer(so)
	if err != nil {
		return fmt.Errorf("configure NATS server: %w", err)
	}
	bridge := newLogBridge(opts.Logger)
	srv.SetLoggerV2(bridge, false, false, false)
	n.srv = srv
	go srv.Start() // returns when the listener is up or Fatalf was called; Close waits for the server
	if err := awaitReady(ctx, srv, bridge); err != nil {
		return err
	}
	n.url = "nats://" + srv.Addr().String()
	if n.sys, err = n.connect("system", n.user.system); err != nil {
		return err
	}
	n.conn, err = n.Connect("node")
	return err
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

func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("NATS address %q is not host:port, such as 127.0.0.1:4222", addr)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// portFree turns "address in use", which nats-server reports through its fatal
// log after it has opened the store, into an error before that.
func portFree(ctx context.Context, host string, port int) error {
	if port == server.RANDOM_PORT {
		return nil
	}
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for NATS clients on %s: %w; choose another with --nats-addr, or stop what holds it (`ss -ltnp 'sport = :%d'` shows it)", addr, err, port)
	}
	return l.Close()
}

func (n *Node) serverOptions(opts Options, host string, port int) (*server.Options, error) {
	// Accounts go through the configuration language: JetStream for one account
	// can't be set through Options fields.
	conf := map[string]any{
		"system_account": systemAccount,
		"accounts": map[string]any{
			systemAccount: map[string]any{"users": []any{map[string]any{"user": "system", "password": n.user.system}}},
			mcpAccount: map[string]any{"jetstream": "enabled", "users": []any{
				map[string]any{"user": "local", "password": n.user.local},
				map[string]any{"user": "client", "password": opts.Token},
			}},
		},
	}
	if opts.Token == "" {
		conf["no_auth_user"] = "client"
	}
	text, err := json.Marshal(conf) // the configuration language takes JSON
	if err != nil {
		return nil, fmt.Errorf("configure NATS server: %w", err)
	}
	so := &server.Options{}
	if err := so.ProcessConfigString(string(text)); err != nil {
		return nil, fmt.Errorf("configure NATS server: %w", err)
	}
	so.ServerName = n.name
	so.Host, so.Port = host, port
	so.NoSigs = true
	so.MaxPayload = MaxPayload
	so.MaxPending = 4 * MaxPayload
	// A client that hangs is dropped after (MaxPingsOut+1) x PingInterval = 15 s.
	so.PingInterval, so.MaxPingsOut = 5*time.Second, 2
	so.JetStream = true
	so.StoreDir = filepath.Join(n.dir.path, "jetstream")
	so.SyncAlways = true // an acknowledged write survives power loss
	return so, nil
}

// Name is the node's name: stable over restarts.
func (n *Node) Name() string { return n.name }

// ClientURL is where NATS clients connect.
func (n *Node) ClientURL() string { return n.url }

// Conn is the node's own connection.
func (n *Node) Conn() *nats.Conn { return n.conn }

// Fabric is the connection for buckets and for control traffic between nodes.
func (n *Node) Fabric() *nats.Conn { return n.conn }

// MCP is the connection on which the node meets agents and NATS clients.
func (n *Node) MCP() *nats.Conn { return n.conn }

// Connect makes another connection to the node's server, in process.
func (n *Node) Connect(name string, opts ...nats.Option) (*nats.Conn, error) {
	return n.connectAs("local", name, n.user.local, opts...)
}

func (n *Node) connect(name, password string) (*nats.Conn, error) {
	return n.connectAs("system", name, password)
}

func (n *Node) connectAs(user, name, password string, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{
		nats.InProcessServer(n.srv), nats.Name(n.name + "/" + name), nats.UserInfo(user, password),
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
	if !n.srv.JetStreamEnabled() {
		return errors.New("JetStream is off: its store failed; see the log")
	}
	return nil
}

// Connections returns how many clients are connected.
func (n *Node) Connections() int { return n.srv.NumClients() }

// Close ends the connections, then the server, then gives the data directory
// free. It is idempotent.
func (n *Node) Close() error {
	for _, nc := range []*nats.Conn{n.conn, n.sys} {
		if nc != nil {
			nc.Close()
		}
	}
	if n.srv != nil {
		n.srv.Shutdown()
		n.srv.WaitForShutdown()
	}
	return n.dir.close()
}
