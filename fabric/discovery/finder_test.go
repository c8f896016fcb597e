package discovery_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ripstop/fabric/discovery"
)

const name = "nodes.test"

// relays lays out nodes a, b, c ... without JetStream, which need no bootstrap.
func relays(t *testing.T, n int) []*node {
	t.Helper()
	nodes := lab(t, n)
	for i, v := range nodes {
		v.name, v.voter = string(rune('a'+i)), false
	}
	return nodes
}

// silent accepts connections at ip:port and says nothing.
func silent(t *testing.T, ip string, port int) {
	t.Helper()
	listen(t, fmt.Sprintf("%s:%d", ip, port), func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
}

func TestFinderSurvivesDNS(t *testing.T) {
	for title, tt := range map[string]struct {
		answer  func(good string) func(context.Context, string) ([]string, error)
		warning string // while or after finding, "" = none asked for
	}{
		"no such name at first": {func(good string) func(context.Context, string) ([]string, error) {
			var asked atomic.Int64
			return func(ctx context.Context, host string) ([]string, error) {
				if asked.Add(1) < 5 {
					return nxdomain(ctx, host)
				}
				return []string{good}, nil
			}
		}, ""},
		"no answer at first": {func(good string) func(context.Context, string) ([]string, error) {
			var asked atomic.Int64
			return func(ctx context.Context, host string) ([]string, error) {
				if asked.Add(1) < 4 {
					return hangs(ctx, host)
				}
				return []string{good}, nil
			}
		}, ""},
		"slow": {func(good string) func(context.Context, string) ([]string, error) {
			return func(ctx context.Context, host string) ([]string, error) {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				return []string{good}, ctx.Err()
			}
		}, ""},
		"dead address first": {func(good string) func(context.Context, string) ([]string, error) {
			return answers("127.0.0.9", good)
		}, ""},
		"silent address first": {func(good string) func(context.Context, string) ([]string, error) {
			return answers("127.0.0.4", good)
		}, ""},
		"another cluster's address": {func(good string) func(context.Context, string) ([]string, error) {
			return answers("127.0.0.3", good)
		}, `belongs to cluster "ripstop-other", and this node to "ripstop-test"`},
		"nonsense and itself": {func(good string) func(context.Context, string) ([]string, error) {
			return answers("nonsense", "0.0.0.0", "::", "127.0.0.2", good, good)
		}, ""},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			nodes := relays(t, 4)
			a, b, other := nodes[0], nodes[1], nodes[2]
			other.cluster = "ripstop-other"
			silent(t, "127.0.0.4", a.port)
			a.start(t, nil)
			other.start(t, nil)
			dns := &fakeDNS{}
			dns.set(tt.answer(a.ip))
			f := b.open(t, 0, dns, nil, fmt.Sprintf("%s:%d", name, a.port))
			within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
			if got := other.connected(t); len(got) > 0 {
				t.Errorf("the other cluster has routes to %v", got)
			}
			within(t, 2*time.Second, "the view to tell", func() bool {
				v := f.View()
				told := tt.warning == "" || slices.ContainsFunc(v.Warnings, func(w string) bool { return strings.Contains(w, tt.warning) })
				return told && slices.Equal(v.Connected, []string{"a"}) && v.Entries[0].Error == ""
			})
		})
	}
}

func TestFinderFollowsAChangedAddress(t *testing.T) {
	nodes := relays(t, 3)
	a, b, moved := nodes[0], nodes[1], nodes[2]
	moved.name = "a"
	a.start(t, nil)
	dns := &fakeDNS{}
	dns.set(answers(a.ip))
	f := b.open(t, 0, dns, nil, fmt.Sprintf("%s:%d", name, a.port))
	within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
	a.stop()
	dns.set(answers(moved.ip))
	moved.start(t, nil)
	within(t, 5*time.Second, "b to find a elsewhere", b.joined(t, "a"))
	within(t, 5*time.Second, "the route to the old address to be taken back", func() bool {
		return slices.Equal(f.View().Routes, []string{moved.addr()})
	})
}

// TestFinderNeverGivesUp finds a peer that comes long after its pauses have
// reached their bound, and finds it again after a restart.
func TestFinderNeverGivesUp(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	dns := &fakeDNS{}
	dns.set(answers(a.ip))
	f := b.open(t, 0, dns, nil, fmt.Sprintf("%s:%d", name, a.port))
	within(t, 5*time.Second, "ten attempts", func() bool {
		dns.mu.Lock()
		defer dns.mu.Unlock()
		return dns.asked >= 10
	})
	v := f.View()
	if x := v.Entries[0].Addresses; len(x) != 1 || x[0].Outcome != discovery.Refused || !strings.Contains(x[0].Error, "nothing listens at "+a.addr()) {
		t.Errorf("addresses = %+v", x)
	}
	if !slices.ContainsFunc(v.Warnings, func(w string) bool { return strings.Contains(w, "no other node is connected since") }) {
		t.Errorf("warnings = %q", v.Warnings)
	}
	for range 2 {
		a.start(t, nil)
		within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
		a.stop()
		within(t, 5*time.Second, "the route to end", b.joined(t))
	}
}

func TestFinderRemembersWhenDNSIsDown(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	a.start(t, nil)
	dir := t.TempDir()
	memory, err := discovery.OpenMemory(dir, b.cluster)
	if err != nil {
		t.Fatal(err)
	}
	memory.Saw("a", a.addr(), "")
	memory.Saw("gone", "127.0.0.9:1", "")
	if err := memory.Save(true); err != nil {
		t.Fatal(err)
	}
	for title, answer := range map[string]func(context.Context, string) ([]string, error){"no such name": nxdomain, "no answer": hangs} {
		memory, err := discovery.OpenMemory(dir, b.cluster)
		if err != nil {
			t.Fatal(err)
		}
		dns := &fakeDNS{}
		dns.set(answer)
		t.Run(title, func(t *testing.T) {
			f := b.open(t, 0, dns, memory, fmt.Sprintf("%s:%d", name, a.port))
			within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
			within(t, 2*time.Second, "the view to tell", func() bool { v := f.View(); return v.Entries[0].Error != "" && len(v.Connected) == 1 })
		})
	}
}

// TestFinderRemembersWithTLS needs the name that a remembered address is
// verified by.
func TestFinderRemembersWithTLS(t *testing.T) {
	serveDNS(t, zone{})
	nodes := relays(t, 3)
	// Not on 127.0.0.1: a server that resolves a name skips the addresses of its
	// machine's interfaces, with its own port.
	a, b := nodes[1], nodes[2]
	cert, pool := certificate(t, name)
	mutual := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	a.tls, b.tls = mutual, mutual
	a.start(t, nil)
	dir := t.TempDir()
	for title, answer := range map[string]func(context.Context, string) ([]string, error){"1 DNS up": answers(a.ip), "2 DNS down": nxdomain} {
		memory, err := discovery.OpenMemory(dir, b.cluster)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(title, "2") {
			memory.Saw(a.name, a.addr(), name)
		}
		t.Run(title, func(t *testing.T) {
			dns := &fakeDNS{}
			dns.set(answer)
			if title == "1 DNS up" {
				serveDNS(t, zone{name + ".": {a.ip}})
			}
			f := b.open(t, 0, dns, memory, fmt.Sprintf("%s:%d", name, a.port))
			within(t, 5*time.Second, "b to find a", b.joined(t, a.name))
			within(t, 2*time.Second, "b to note a and its name", func() bool {
				ps := memory.Peers()
				return len(ps) == 1 && ps[0].Name == a.name && ps[0].Host == name && len(f.View().Connected) == 1
			})
		})
	}
}

// TestFinderFillsTheMemory shows that what a run found is there for the next.
func TestFinderFillsTheMemory(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	a.start(t, nil)
	dir := t.TempDir()
	t.Run("run", func(t *testing.T) {
		memory, err := discovery.OpenMemory(dir, b.cluster)
		if err != nil {
			t.Fatal(err)
		}
		f := b.open(t, 0, nil, memory, a.addr(), "127.0.0.9:1")
		within(t, 5*time.Second, "b to note a", func() bool { return len(memory.Peers()) > 0 })
		for node, want := range map[string][]string{"a": {a.addr()}, "x": {a.addr(), "127.0.0.9:1"}} {
			if got := f.Addrs(node); !slices.Equal(got, want) {
				t.Errorf("addresses of %s: %v, want %v", node, got, want)
			}
		}
	})
	memory, err := discovery.OpenMemory(dir, b.cluster)
	if err != nil {
		t.Fatal(err)
	}
	if got := memory.Peers(); len(got) != 1 || got[0].Name != "a" || got[0].Addr != a.addr() {
		t.Errorf("remembered %+v", got)
	}
}

// TestFinderConnectsWhatTheServerGaveUp takes the routes a server had away.
func TestFinderConnectsWhatTheServerGaveUp(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	a.start(t, nil)
	b.open(t, 0, nil, nil, a.addr())
	within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
	if err := b.reload(nil); err != nil { // behind the Finder's back
		t.Fatal(err)
	}
	within(t, time.Second, "the route to end", b.joined(t))
	within(t, 5*time.Second, "b to find a again", b.joined(t, "a"))
}

func TestFinderRetriesApply(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	a.start(t, nil)
	b.start(t, nil)
	failures := 2
	f, err := discovery.NewFinder(discovery.Config{
		Routes: discovery.RouteConfig{Peers: parse(t, name), Own: []string{b.addr()}, Username: "route", Password: b.secret},
		Prober: b.prober(), Server: b.srv, Logger: quiet(), Timing: fast,
		Resolver: &fakeDNS{answer: nxdomain}, Memory: remembering(t, "a", a.addr()),
		Apply: func(rs []*url.URL) error {
			if failures--; failures >= 0 {
				return errors.New("not now")
			}
			return b.reload(rs)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	within(t, 5*time.Second, "b to find a", b.joined(t, "a"))
}

func remembering(t *testing.T, name, addr string) *discovery.Memory {
	t.Helper()
	m, err := discovery.OpenMemory(t.TempDir(), "ripstop-test")
	if err != nil {
		t.Fatal(err)
	}
	m.Saw(name, addr, "")
	return m
}

func TestWrongSecretIsTold(t *testing.T) {
	nodes := relays(t, 2)
	a, b := nodes[0], nodes[1]
	b.secret = "another"
	a.start(t, nil)
	dns := &fakeDNS{}
	dns.set(answers(a.ip))
	f := b.open(t, 0, dns, nil, fmt.Sprintf("%s:%d", name, a.port))
	within(t, 5*time.Second, "the view to tell", func() bool {
		return slices.ContainsFunc(f.View().Warnings, func(w string) bool {
			return strings.Contains(w, "node a at "+a.addr()+" refuses this node's cluster secret")
		})
	})
	within(t, time.Second, "the route to be taken back", func() bool { v := f.View(); return len(v.Connected)+len(v.Routes) == 0 })
	b.setSecret(a.secret)
	if err := f.SetCredentials("route", a.secret); err != nil {
		t.Fatal(err)
	}
	if err := b.reload(nil); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "b to join with the right secret", b.joined(t, "a"))
}

func TestDuplicateNamesAreTold(t *testing.T) {
	nodes := relays(t, 4)
	a, twin, b, again := nodes[0], nodes[1], nodes[2], nodes[3]
	twin.name, b.name, again.name = "a", "b", "b"
	for _, n := range []*node{a, twin, again} {
		n.start(t, nil)
	}
	dns := &fakeDNS{}
	dns.set(nxdomain) // or b would be refused at once
	f := b.open(t, 0, dns, nil, fmt.Sprintf("%s:%d", name, a.port))
	dns.set(answers(a.ip, twin.ip, again.ip))
	for _, want := range []string{
		fmt.Sprintf("node b is already running at %s ", again.addr()),
		fmt.Sprintf("node a runs twice, at %s and at %s", a.addr(), twin.addr()),
	} {
		within(t, 5*time.Second, want, func() bool {
			return slices.ContainsFunc(f.View().Warnings, func(w string) bool { return strings.Contains(w, want) })
		})
	}
}
