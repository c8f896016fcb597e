package discovery_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/discovery"
)

// listen serves each connection at addr with f until the test ends, and returns
// the address.
func listen(t testing.TB, addr string, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				f(c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Write([]byte(text))
		_, _ = io.Copy(io.Discard, c) // until the other side or the test ends
	}
}

func TestProbe(t *testing.T) {
	a := relays(t, 1)[0]
	a.start(t, nil)
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t, "127.0.0.1"))
	as := func(name, cluster, id string) discovery.Prober {
		return discovery.Prober{Name: name, Cluster: cluster, ID: id, Username: "route", Password: a.secret, Timeout: 300 * time.Millisecond}
	}
	b := as("b", a.cluster, "")
	stranger := b
	stranger.Password = "wrong"
	for title, tt := range map[string]struct {
		prober discovery.Prober
		addr   string
		want   discovery.Outcome
		err    string
	}{
		"member":           {b, a.addr(), discovery.Member, ""},
		"self":             {as("a", a.cluster, a.srv.ID()), a.addr(), discovery.Self, ""},
		"duplicate":        {as("a", a.cluster, "other"), a.addr(), discovery.Duplicate, "node a is already running at " + a.addr()},
		"other cluster":    {as("b", "ripstop-x", ""), a.addr(), discovery.OtherCluster, `belongs to cluster "ripstop-test", and this node to "ripstop-x"`},
		"wrong secret":     {stranger, a.addr(), discovery.Unauthorized, "refuses this node's cluster secret"},
		"refused":          {b, dead, discovery.Refused, "nothing listens at " + dead},
		"client port":      {b, a.srv.Addr().String(), discovery.NotNATS, "for clients"},
		"silent":           {b, listen(t, "127.0.0.1:0", says("")), discovery.Timeout, "says nothing"},
		"hangs up":         {b, listen(t, "127.0.0.1:0", func(net.Conn) {}), discovery.Refused, "hangs up at once"},
		"not NATS":         {b, listen(t, "127.0.0.1:0", says("SSH-2.0-OpenSSH_9.6\r\n")), discovery.NotNATS, `"SSH-2.0-OpenSSH_9.6"`},
		"broken INFO":      {b, listen(t, "127.0.0.1:0", says("INFO {\r\n")), discovery.NotNATS, "not a NATS server"},
		"endless line":     {b, listen(t, "127.0.0.1:0", says("INFO "+strings.Repeat("x", 1<<20))), discovery.NotNATS, "not a NATS server"},
		"half a line":      {b, listen(t, "127.0.0.1:0", says("INFO {")), discovery.NotNATS, "not a NATS server"},
		"no such address":  {b, "nonsense", discovery.Unreachable, "nonsense"},
		"stops mid-log-in": {b, listen(t, "127.0.0.1:0", says(`INFO {"server_id":"x","server_name":"c","cluster":"ripstop-test"}`+"\r\n")), discovery.Timeout, "does not answer a login"},
	} {
		t.Run(title, func(t *testing.T) {
			begin := time.Now()
			f := tt.prober.Login(t.Context(), tt.addr)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("took %s", took)
			}
			if f.Outcome != tt.want || f.Addr != tt.addr {
				t.Errorf("outcome %q (%v), want %q", f.Outcome, f.Err, tt.want)
			}
			if tt.err == "" && f.Err != nil || tt.err != "" && (f.Err == nil || !strings.Contains(f.Err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", f.Err, tt.err)
			}
		})
	}
	x := b.Probe(t.Context(), a.addr())
	want := discovery.Identity{Name: "a", ID: a.srv.ID(), Cluster: a.cluster, Version: server.VERSION, Auth: true}
	if x.Identity != want || x.Latency <= 0 {
		t.Errorf("identity %+v in %s, want %+v", x.Identity, x.Latency, want)
	}
	if n := a.srv.NumRoutes(); n != 0 {
		t.Errorf("probes left %d routes", n)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	addr := listen(t, "127.0.0.1:0", says(""))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := discovery.Prober{Name: "b", Cluster: "c", Timeout: time.Minute}
	if f := p.Probe(ctx, addr); f.Err == nil {
		t.Errorf("outcome %q of a cancelled probe", f.Outcome)
	}
}

// certificate makes a self-signed one for host.
func certificate(t *testing.T, host string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestProbeTLS(t *testing.T) {
	cert, pool := certificate(t, "nodes.test")
	port := freePort(t, "127.0.0.1", "127.0.0.2")
	secure, plain := newNode(t, "a", "127.0.0.1", port), newNode(t, "c", "127.0.0.2", port)
	mutual := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	secure.tls = mutual
	secure.start(t, nil)
	plain.start(t, nil)
	p := secure.prober()
	ours := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "nodes.test"}
	p.Name, p.TLS = "b", func() *tls.Config { return ours }
	if f := p.Login(t.Context(), secure.addr()); f.Outcome != discovery.Member || !f.Identity.TLS {
		t.Errorf("%s, %v", f.Outcome, f.Err)
	}
	for title, tt := range map[string]struct {
		conf *tls.Config
		addr string
		want discovery.Outcome
	}{
		"it has none":            {ours, plain.addr(), discovery.TLSMismatch},
		"this has none":          {nil, secure.addr(), discovery.Timeout},
		"name not in it":         {&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}, secure.addr(), discovery.TLSMismatch},
		"no certificate of ours": {&tls.Config{RootCAs: pool, ServerName: "nodes.test"}, secure.addr(), discovery.TLSMismatch},
	} {
		p.TLS = func() *tls.Config { return tt.conf }
		if f := p.Login(t.Context(), tt.addr); f.Outcome != tt.want || f.Err == nil || !strings.Contains(f.Err.Error(), "TLS") {
			t.Errorf("%s: %s, %v", title, f.Outcome, f.Err)
		}
	}
}

func TestCheckBeforeStart(t *testing.T) {
	nodes := relays(t, 4)
	a, other, b := nodes[0], nodes[1], nodes[2]
	other.cluster = "ripstop-other"
	a.start(t, nil)
	other.start(t, nil)
	silent(t, nodes[3].ip, a.port)
	dns := &fakeDNS{}
	dns.set(hangs)
	memory, err := discovery.OpenMemory(t.TempDir(), a.cluster)
	if err != nil {
		t.Fatal(err)
	}
	check := func(n *node, timeout time.Duration, entries ...string) (map[string]discovery.Outcome, error) {
		p := n.prober()
		begin := time.Now()
		fs, err := discovery.CheckBeforeStart(t.Context(), discovery.Check{Prober: &p, Peers: parse(t, entries...), Memory: memory, Resolver: dns, Timeout: timeout})
		if took := time.Since(begin); took > timeout+300*time.Millisecond {
			t.Errorf("took %s", took)
		}
		got := map[string]discovery.Outcome{}
		for _, f := range fs {
			got[f.Addr] = f.Outcome
		}
		return got, err
	}
	got, err := check(b, 400*time.Millisecond, a.addr(), other.addr(), nodes[3].addr(), "127.0.0.9:1", name)
	if err != nil {
		t.Errorf("peers that can't be reached, or another cluster's, refuse the start: %v", err)
	}
	for addr, want := range map[string]discovery.Outcome{
		a.addr(): discovery.Member, other.addr(): discovery.OtherCluster, nodes[3].addr(): discovery.Timeout,
		"127.0.0.9:1": discovery.Refused, name + ":6222": discovery.Unreachable,
	} {
		if got[addr] != want {
			t.Errorf("%s is %q, want %q", addr, got[addr], want)
		}
	}
	b.name = "a"
	dns.set(answers(a.ip))
	_, err = check(b, 2*time.Second, fmt.Sprintf("%s:%d", name, a.port))
	if !errors.Is(err, discovery.ErrDuplicate) || !strings.Contains(err.Error(), "node a is already running at "+a.addr()) || !strings.Contains(err.Error(), "--name") {
		t.Errorf("error %v", err)
	}
	memory.Saw("a", a.addr(), "")
	if _, err = check(b, 2*time.Second, "127.0.0.9:1"); !errors.Is(err, discovery.ErrDuplicate) {
		t.Errorf("error %v for a remembered peer of the same name", err)
	}
}
