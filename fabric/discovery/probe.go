package discovery

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Outcome says what was found at an address.
type Outcome string

// Outcomes of a probe.
const (
	Member       Outcome = "member"        // a node of this cluster, under another name
	Self         Outcome = "self"          // this very server
	Duplicate    Outcome = "duplicate"     // another server of this cluster under this node's name
	OtherCluster Outcome = "other-cluster" // a NATS server of another cluster
	Unauthorized Outcome = "unauthorized"  // a member that refuses this node's credentials
	NotNATS      Outcome = "not-nats"      // something else listens there, or a NATS port of another kind
	TLSMismatch  Outcome = "tls"           // TLS on one side only, or a certificate is refused
	Refused      Outcome = "refused"       // nothing listens, or it hangs up at once
	Timeout      Outcome = "timeout"       // no answer in time: hung, cut off, or silent
	Unreachable  Outcome = "unreachable"   // the network has no way there
)

// Identity is how a route listener introduces itself.
type Identity struct {
	Name      string `json:"name"` // server name, the node's
	ID        string `json:"id"`   // new at every start
	Cluster   string `json:"cluster"`
	Version   string `json:"version"` // of nats-server
	JetStream bool   `json:"jetstream"`
	TLS       bool   `json:"tls_required,omitempty"`
	Auth      bool   `json:"auth_required,omitempty"`
}

// Finding is what one probe learned.
type Finding struct {
	Addr     string        `json:"addr"` // host:port dialed
	Outcome  Outcome       `json:"outcome"`
	Identity Identity      `json:"identity,omitzero"` // of what answered, if it is a NATS server
	At       time.Time     `json:"at"`
	Latency  time.Duration `json:"latency_ns"` // until it introduced itself
	Err      error         `json:"-"`          // nil for Member and Self; says what to do
}

// DefaultProbeTimeout bounds one probe from dial to introduction.
const DefaultProbeTimeout = time.Second

// maxInfo bounds the introduction a stranger may send, in bytes.
const maxInfo = 32 << 10

// Prober asks addresses who they are. Its fields must not change once in use.
type Prober struct {
	Name     string // this node's name
	Cluster  string // the cluster's name
	ID       string // this server's id; "" while it does not run yet
	Username string // route credentials, for [Prober.Login]
	Password string
	Timeout  time.Duration // of one probe; 0 = DefaultProbeTimeout

	// TLS is asked for the configuration of routes, as the side that connects,
	// at each probe. A nil function or a nil result = routes are in clear.
	TLS func() *tls.Config
}

// Probe dials a cluster port and reads the introduction that a route listener
// sends at once. It does not log in, and the other side registers nothing.
func (p *Prober) Probe(ctx context.Context, addr string) Finding {
	return p.ask(ctx, addr, "", false)
}

// Login is Probe and then an attempt to log in as a route would, without
// becoming one. It tells a Member from one that is Unauthorized.
func (p *Prober) Login(ctx context.Context, addr string) Finding {
	return p.ask(ctx, addr, "", true)
}

// ask probes addr; serverName is the name its certificate should bear, "" for
// the host in addr.
func (p *Prober) ask(ctx context.Context, addr, serverName string, login bool) Finding {
	timeout := p.Timeout
	if timeout <= 0 {
		timeout = DefaultProbeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	f := Finding{Addr: addr, At: time.Now()}
	defer func() { f.Latency = time.Since(f.At) }()
	conf := p.config()
	conn, err := dial(ctx, addr, serverName, conf)
	if err != nil {
		f.Outcome, f.Err = explainDial(addr, timeout, err)
		return f
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReaderSize(conn, 4096)
	line, err := readLine(in)
	if err != nil {
		f.Outcome, f.Err = explainRead(addr, timeout, conf != nil, line, err)
		return f
	}
	f.Identity, f.Outcome, f.Err = p.judge(addr, line)
	f.Latency = time.Since(f.At)
	if login && f.Outcome == Member {
		f.Outcome, f.Err = p.login(conn, in, f)
	}
	return f
}

func (p *Prober) config() *tls.Config {
	if p.TLS == nil {
		return nil
	}
	return p.TLS()
}

func dial(ctx context.Context, addr, serverName string, conf *tls.Config) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil || conf == nil {
		return conn, err
	}
	conf = conf.Clone()
	if conf.ServerName == "" {
		conf.ServerName = serverName
	}
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(conn, conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(&handshakeError{err}, conn.Close())
	}
	return secure, nil
}

type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

func explainDial(addr string, timeout time.Duration, err error) (Outcome, error) {
	var shake *handshakeError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &plain):
		return TLSMismatch, fmt.Errorf("%s answers without TLS, and this node has TLS on its routes; configure both alike", addr)
	case isTimeout(err):
		return Timeout, fmt.Errorf("%s does not answer within %s; check that the node runs and that no firewall drops its cluster port", addr, timeout)
	case errors.As(err, &shake):
		return TLSMismatch, fmt.Errorf("TLS with %s failed; check the certificates of both nodes' routes: %w", addr, shake.err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused, fmt.Errorf("nothing listens at %s; start that node, or correct its address in --peers", addr)
	}
	return Unreachable, fmt.Errorf("%s can't be reached: %w", addr, err)
}

func explainRead(addr string, timeout time.Duration, secure bool, got []byte, err error) (Outcome, error) {
	switch {
	case isTimeout(err) && len(got) == 0 && !secure:
		return Timeout, fmt.Errorf("%s accepts connections and says nothing for %s: it hangs, or it has TLS on its routes and this node has not", addr, timeout)
	case isTimeout(err) && len(got) == 0:
		return Timeout, fmt.Errorf("%s accepts connections and says nothing for %s: it hangs", addr, timeout)
	case secure && len(got) == 0 && !errors.Is(err, io.EOF): // TLS 1.3 reports a refused client certificate on first read
		return TLSMismatch, fmt.Errorf("%s ended the TLS connection; check this node's certificate: %w", addr, err)
	case len(got) == 0:
		return Refused, fmt.Errorf("%s hangs up at once: it is stopping, or a load balancer has nothing behind it", addr)
	}
	return NotNATS, notNATS(addr, got)
}

func notNATS(addr string, got []byte) error {
	return fmt.Errorf("%s is not a NATS server: it says %q; correct the entry in --peers", addr, got[:min(len(got), 40)])
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// readLine reads to the first newline, which it leaves out. With an error it
// returns what came before.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return []byte(strings.TrimRight(string(line), "\r\n")), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return line, err
		case len(line) > maxInfo:
			return line, errors.New("line too long")
		}
	}
}

// judge compares an introduction with what this node is.
func (p *Prober) judge(addr string, line []byte) (Identity, Outcome, error) {
	var info server.Info
	text, ok := strings.CutPrefix(string(line), "INFO ")
	if !ok || json.Unmarshal([]byte(text), &info) != nil || info.ID == "" {
		return Identity{}, NotNATS, notNATS(addr, line)
	}
	id := Identity{
		Name: info.Name, ID: info.ID, Cluster: info.Cluster, Version: info.Version,
		JetStream: info.JetStream, TLS: info.TLSRequired, Auth: info.AuthRequired,
	}
	switch {
	case info.CID != 0 || info.Gateway != "":
		return id, NotNATS, fmt.Errorf("%s is a port of NATS server %q for clients or gateways; give its cluster port (usually %d)", addr, id.Name, DefaultPort)
	case id.ID == p.ID:
		return id, Self, nil
	case id.Cluster != p.Cluster:
		return id, OtherCluster, fmt.Errorf("%s belongs to cluster %q, and this node to %q; it is left alone. Check --region, --peers and the name's DNS records", addr, id.Cluster, p.Cluster)
	case id.Name == p.Name:
		return id, Duplicate, fmt.Errorf("node %s is already running at %s (server %s); stop it, or give this one another --name", p.Name, addr, id.ID)
	}
	return id, Member, nil
}

// login sends what a route would, and a PING instead of an introduction: a
// server that accepts the credentials answers PONG and has registered nothing.
func (p *Prober) login(conn net.Conn, in *bufio.Reader, f Finding) (Outcome, error) {
	connect, err := json.Marshal(map[string]any{
		"user": p.Username, "pass": p.Password, "cluster": p.Cluster, "name": "probe-" + p.Name,
		"verbose": false, "pedantic": false, "tls_required": f.Identity.TLS, "headers": true,
	})
	if err != nil {
		return f.Outcome, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s\r\nPING\r\n", connect); err != nil {
		return Refused, fmt.Errorf("log in at %s: %w", f.Addr, err)
	}
	for {
		line, err := readLine(in)
		if err != nil {
			if isTimeout(err) {
				return Timeout, fmt.Errorf("node %s at %s does not answer a login in time: it hangs", f.Identity.Name, f.Addr)
			}
			return Refused, fmt.Errorf("node %s at %s hangs up during login: %w", f.Identity.Name, f.Addr, err)
		}
		switch op := strings.ToUpper(string(line)); {
		case op == "PONG":
			return Member, nil
		case strings.HasPrefix(op, "-ERR") && strings.Contains(op, "AUTHORIZATION"):
			return Unauthorized, fmt.Errorf("node %s at %s refuses this node's cluster secret; give every node of the region the same --secret-file and the same --voters", f.Identity.Name, f.Addr)
		case strings.HasPrefix(op, "-ERR"):
			return Unauthorized, fmt.Errorf("node %s at %s refuses this node: %s", f.Identity.Name, f.Addr, line)
		}
	}
}

// addrOf is host:port with the host in canonical form, "" if it is not an IP.
func addrOf(ip string, port int) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || port <= 0 || port > 65535 {
		return ""
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)).String()
}
