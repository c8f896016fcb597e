package discovery_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"strconv"
	"testing"
	"time"

	"ripstop/fabric/discovery"
)

// fast is a Timing for tests: seconds become tenths.
var fast = discovery.Timing{
	Min: 20 * time.Millisecond, Max: 200 * time.Millisecond, Recheck: 300 * time.Millisecond, Lookup: 200 * time.Millisecond,
	Hold: 100 * time.Millisecond, Grace: 900 * time.Millisecond, Again: time.Second, Drop: time.Second, Poll: 50 * time.Millisecond,
}

// find runs a Finder for n until the test ends.
func find(t *testing.T, n *node, c discovery.RouteConfig, r discovery.Resolver, m *discovery.Memory) *discovery.Finder {
	t.Helper()
	f, err := discovery.NewFinder(discovery.Config{
		Routes: c, Prober: n.prober(), Server: n.srv, Resolver: r, Memory: m, Logger: quiet().With("finder", n.name), Timing: fast, Apply: n.reload,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	return f
}

// run runs f until the test ends.
func run(t *testing.T, f *discovery.Finder) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// lab lays out n voters at 127.0.0.1 to 127.0.0.n, on one port, not started.
func lab(t *testing.T, n int) []*node {
	t.Helper()
	var ips []string
	for i := range n {
		ips = append(ips, "127.0.0."+strconv.Itoa(i+1))
	}
	port := freePort(t, ips...)
	var nodes []*node
	for i, ip := range ips {
		v := newNode(t, fmt.Sprintf("n%d", i+1), ip, port)
		v.voter = true
		nodes = append(nodes, v)
	}
	return nodes
}

// open starts v as the fabric would: check, routes, server, finder.
func (n *node) open(t *testing.T, voters int, r discovery.Resolver, m *discovery.Memory, entries ...string) *discovery.Finder {
	t.Helper()
	p := n.prober()
	c := discovery.RouteConfig{Peers: parse(t, entries...), Own: []string{n.addr()}, Voters: voters, Username: p.Username, Password: p.Password, TLS: n.tls != nil}
	var err error
	c.Found, err = discovery.CheckBeforeStart(t.Context(), discovery.Check{Prober: &p, Peers: c.Peers, Memory: m, Resolver: r, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	rs := routes(t, c)
	if voters > 0 && len(rs) != voters {
		t.Fatalf("%d routes for %d voters: %v", len(rs), voters, hosts(rs))
	}
	n.start(t, rs)
	return find(t, n, c, r, m)
}

func hosts(rs []*url.URL) []string {
	var out []string
	for _, u := range rs {
		out = append(out, u.Host+u.Path)
	}
	return out
}

// elected waits until all agree on a leader of a meta group of all.
func elected(t *testing.T, nodes []*node) {
	t.Helper()
	begin := time.Now()
	within(t, 20*time.Second, "a meta group of all voters", func() bool {
		_, want := nodes[0].meta(t)
		for _, v := range nodes {
			if size, leader := v.meta(t); size != len(nodes) || leader == "" || leader != want {
				return false
			}
		}
		return true
	})
	t.Logf("meta group of %d after %s", len(nodes), time.Since(begin).Round(time.Millisecond))
}

func TestVotersBehindOneNameBootstrap(t *testing.T) {
	cert, pool := certificate(t, "nodes.test")
	mutual := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	for title, tt := range map[string]struct {
		n    int
		conf *tls.Config
	}{"three": {3, nil}, "five": {5, nil}, "three with TLS": {3, mutual}} {
		t.Run(title, func(t *testing.T) {
			n := tt.n
			nodes := lab(t, n)
			var ips []string
			for _, v := range nodes {
				ips = append(ips, v.ip)
			}
			serveDNS(t, zone{"nodes.test.": ips})
			for _, v := range nodes {
				v.tls = tt.conf
				v.open(t, n, nil, nil, fmt.Sprintf("nodes.test:%d", v.port))
			}
			if tt.conf == nil {
				elected(t, nodes)
				return
			}
			// nats-server resolves the name itself and may lose time with its own
			// address; an election that failed before takes up to 9 s to repeat.
			for _, v := range nodes {
				within(t, 5*time.Second, v.name+" to meet all", func() bool { return len(v.connected(t)) == n-1 })
				if size, _ := v.meta(t); size != n {
					t.Errorf("%s: meta group of %d", v.name, size)
				}
			}
		})
	}
}

// TestVotersAppearInDNSOneByOne starts voters whose name leads only to those
// that run already, and to none at first.
func TestVotersAppearInDNSOneByOne(t *testing.T) {
	nodes := lab(t, 3)
	dns := &fakeDNS{}
	dns.set(nxdomain)
	serveDNS(t, zone{}) // what nats-server asks itself knows nothing at all
	var ips []string
	for _, v := range nodes {
		v.open(t, 3, dns, nil, fmt.Sprintf("nodes.test:%d", v.port))
		ips = append(ips, v.ip)
		dns.set(answers(ips...))
	}
	elected(t, nodes)
}

func TestVotersListedBootstrap(t *testing.T) {
	nodes := lab(t, 3)
	for _, v := range nodes {
		v.open(t, 3, nil, nil, nodes[0].addr(), nodes[1].addr(), nodes[2].addr())
	}
	elected(t, nodes)
}

// TestVotersWithSeedBootstrap lists fewer peers than there are voters.
func TestVotersWithSeedBootstrap(t *testing.T) {
	nodes := lab(t, 3)
	for _, v := range nodes {
		v.open(t, 3, nil, nil, nodes[0].addr(), nodes[1].addr())
	}
	elected(t, nodes)
}

// TestTwoOfFiveDoNotElect starts two voters that list one another only, and are
// told of five: without the number of routes made up they would elect.
func TestTwoOfFiveDoNotElect(t *testing.T) {
	for voters, elect := range map[int]bool{2: true, 5: false} {
		nodes := lab(t, 2)
		for _, v := range nodes {
			v.open(t, voters, nil, nil, nodes[0].addr(), nodes[1].addr())
		}
		within(t, 5*time.Second, "the two to meet", nodes[0].joined(t, "n2"))
		if elect { // also shows how long the others must be watched
			elected(t, nodes)
			continue
		}
		end := time.Now().Add(1500 * time.Millisecond)
		within(t, 5*time.Second, "the time to pass", func() bool {
			if size, leader := nodes[0].meta(t); size != voters || leader != "" {
				t.Fatalf("two of %d voters: meta group of %d, leader %q", voters, size, leader)
			}
			return time.Now().After(end)
		})
	}
}
