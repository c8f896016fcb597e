package discovery_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/fabric/discovery"
)

func quiet() *slog.Logger {
	if os.Getenv("DISCOVERY_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// freePort returns a port that is free on every address of ips.
func freePort(t testing.TB, ips ...string) int {
	t.Helper()
next:
	for range 50 {
		l, err := net.Listen("tcp", ips[0]+":0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		open := []net.Listener{l}
		closeAll := func() {
			for _, l := range open {
				l.Close()
			}
		}
		for _, ip := range ips[1:] {
			l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
			if err != nil {
				closeAll()
				continue next
			}
			open = append(open, l)
		}
		closeAll()
		return port
	}
	t.Fatal("no port is free on all of", ips)
	return 0
}

// node is a nats-server as the fabric would run it.
type node struct {
	name, ip string
	port     int
	cluster  string
	secret   string
	voter    bool
	dir      string
	srv      *server.Server
	tls      *tls.Config // of routes

	mu sync.Mutex // guards secret once a Finder reloads
}

func (n *node) setSecret(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.secret = s
}

func newNode(t testing.TB, name, ip string, port int) *node {
	return &node{name: name, ip: ip, port: port, cluster: "ripstop-test", secret: "s3cret", dir: t.TempDir()}
}

func (n *node) addr() string { return net.JoinHostPort(n.ip, strconv.Itoa(n.port)) }

func (n *node) prober() discovery.Prober {
	return discovery.Prober{Name: n.name, Cluster: n.cluster, Username: "route", Password: n.secret, TLS: func() *tls.Config { return n.tls }, Timeout: 500 * time.Millisecond}
}

// options builds the server's options anew, as a reload needs them.
func (n *node) options(routes []*url.URL) (*server.Options, error) {
	conf, err := json.Marshal(map[string]any{
		"system_account": "SYS",
		"accounts": map[string]any{
			"SYS":    map[string]any{"users": []any{map[string]any{"user": "system", "password": "p"}}},
			"FABRIC": map[string]any{"jetstream": "enabled", "users": []any{map[string]any{"user": "fabric", "password": "p"}}},
			"MCP":    map[string]any{"users": []any{map[string]any{"user": "mcp", "password": "p"}}},
		},
	})
	if err != nil {
		return nil, err
	}
	o := &server.Options{}
	if err := o.ProcessConfigString(string(conf)); err != nil {
		return nil, err
	}
	o.ServerName, o.Host, o.Port, o.NoSigs, o.NoLog = n.name, "127.0.0.1", -1, true, os.Getenv("DISCOVERY_LOG") == ""
	n.mu.Lock()
	defer n.mu.Unlock()
	o.Cluster = server.ClusterOpts{Name: n.cluster, Host: n.ip, Port: n.port, Username: "route", Password: n.secret}
	if n.tls != nil {
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = n.tls, 2
	}
	o.Routes = routes
	o.JetStream, o.StoreDir = n.voter, n.dir
	return o, nil
}

func (n *node) start(t testing.TB, routes []*url.URL) {
	t.Helper()
	o, err := n.options(routes)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("DISCOVERY_LOG") != "" {
		o.Debug = true
		srv.ConfigureLogger()
	}
	n.srv = srv
	go srv.Start() // stop waits for it
	t.Cleanup(func() { n.stop() })
	within(t, 5*time.Second, n.name+" to listen", func() bool { return srv.ClusterAddr() != nil && srv.ReadyForConnections(time.Second) })
}

func (n *node) stop() {
	if n.srv != nil {
		n.srv.Shutdown()
		n.srv.WaitForShutdown()
	}
}

func (n *node) reload(routes []*url.URL) error {
	o, err := n.options(routes)
	if err != nil {
		return err
	}
	return n.srv.ReloadOptions(o)
}

func (n *node) connect(t testing.TB, user string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", append(opts, nats.InProcessServer(n.srv), nats.UserInfo(user, "p"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// connected returns the names of the nodes that n has routes to.
func (n *node) connected(t testing.TB) []string {
	t.Helper()
	z, err := n.srv.Routez(nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range z.Routes {
		names = append(names, r.RemoteName)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (n *node) joined(t testing.TB, names ...string) func() bool {
	return func() bool { return slices.Equal(n.connected(t), names) }
}

// metaSize is the size of the meta group and its leader, as n knows them.
func (n *node) meta(t testing.TB) (size int, leader string) {
	t.Helper()
	z, err := n.srv.Jsz(nil)
	if err != nil || z.Meta == nil {
		return 0, ""
	}
	return z.Meta.Size, z.Meta.Leader
}

// within polls ok, and fails the test when it does not hold in time.
func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %s in vain for %s", d, what)
		case <-tick.C:
		}
	}
}

func parse(t testing.TB, entries ...string) discovery.Peers {
	t.Helper()
	ps, err := discovery.Parse(entries)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func routes(t testing.TB, c discovery.RouteConfig) []*url.URL {
	t.Helper()
	rs, err := discovery.Routes(c)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// fakeDNS is a resolver that answers what the test says.
type fakeDNS struct {
	mu     sync.Mutex
	answer func(ctx context.Context, host string) ([]string, error)
	asked  int
}

func (d *fakeDNS) LookupHost(ctx context.Context, host string) ([]string, error) {
	d.mu.Lock()
	d.asked++
	answer := d.answer
	d.mu.Unlock()
	return answer(ctx, host)
}

func (d *fakeDNS) set(answer func(ctx context.Context, host string) ([]string, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = answer
}

func answers(addrs ...string) func(context.Context, string) ([]string, error) {
	return func(context.Context, string) ([]string, error) { return addrs, nil }
}

func nxdomain(_ context.Context, host string) ([]string, error) {
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// hangs answers nothing until the caller gives up.
func hangs(ctx context.Context, host string) ([]string, error) {
	<-ctx.Done()
	return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: true}
}

// zone is what the name server that nats-server asks (net.DefaultResolver, for
// the length of a test) knows: names ending in ".test.", to IPv4 addresses.
type zone map[string][]string

// serveDNS makes z the world's DNS until the test ends.
func serveDNS(t testing.TB, z zone) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if z != nil { // a nil zone is a black hole
				_, _ = pc.WriteTo(z.reply(buf[:n]), from)
			}
		}
	})
	old := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = old
		pc.Close()
		wg.Wait()
	})
}

// reply answers a query with one question (RFC 1035, section 4).
func (z zone) reply(q []byte) []byte {
	var labels []string
	i := 12
	for q[i] != 0 {
		labels = append(labels, string(q[i+1:i+1+int(q[i])]))
		i += 1 + int(q[i])
	}
	end := i + 5 // root label, type, class
	addrs, known := z[strings.ToLower(strings.Join(labels, ".")+".")]
	if binary.BigEndian.Uint16(q[i+1:]) != 1 { // only A records
		addrs = nil
	}
	r := append([]byte{}, q[:end]...)
	r[2], r[3] = 0x84, 0x00
	if !known {
		r[3] = 3 // NXDOMAIN
	}
	binary.BigEndian.PutUint16(r[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint16(r[8:], 0)
	binary.BigEndian.PutUint16(r[10:], 0)
	for _, a := range addrs {
		r = append(r, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		r = append(r, net.ParseIP(a).To4()...)
	}
	return r
}
