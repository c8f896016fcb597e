package raft_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/raft"
)

// fakeServer has the routes that a test gives it.
type fakeServer struct {
	mu     sync.Mutex
	routes []*server.RouteInfo
}

func (f *fakeServer) set(routes ...*server.RouteInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes = routes
}

func (f *fakeServer) NumRoutes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.routes)
}

func (f *fakeServer) Routez(*server.RoutezOptions) (*server.Routez, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &server.Routez{Routes: f.routes}, nil
}

func (f *fakeServer) ClusterAddr() *net.TCPAddr                      { return nil }
func (f *fakeServer) Varz(*server.VarzOptions) (*server.Varz, error) { return &server.Varz{}, nil }

func route(t testing.TB, name, id, addr string) *server.RouteInfo {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := strconv.Atoi(port)
	return &server.RouteInfo{RemoteName: name, RemoteID: id, IP: host, Port: p, Start: time.Now()}
}

// watchFake runs a watcher of f whose peers have long to answer a redial.
func watchFake(t testing.TB, f *fakeServer) *node {
	t.Helper()
	opts := raft.WatchOptions{Timing: timing, Poll: time.Millisecond}
	opts.Timing.Redial = time.Minute
	n := &node{watcher: raft.NewWatcherOf(f, opts)}
	n.events = n.watcher.Subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() { defer close(done); n.watcher.Run(ctx) }()
	return n
}

// order reads the next events as text.
func (n *node) order(t testing.TB, count int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scaled(10*time.Second))
	defer cancel()
	var got []string
	for range count {
		e, err := n.events.Next(ctx)
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		s := fmt.Sprintf("%s %s %s", e.Kind, e.Peer.Name, e.Peer.ServerID)
		if e.Dead {
			s += " dead"
		}
		got = append(got, s)
	}
	return got
}

// mute answers the first INFO and then nothing, as a process does that is stopped.
func mute(id string) func(net.Conn) {
	var once sync.Once
	return func(c net.Conn) {
		once.Do(func() { info(id)(c) })
		waitForEnd(c)
	}
}

func TestBlipIsNoEvent(t *testing.T) {
	f := &fakeServer{}
	n := watchFake(t, f)
	c := route(t, "c", "C1", listen(t, mute("C1")))
	f.set(c)
	n.waitLocated(t, "c")
	f.set()
	waitFor(t, 10*time.Second, "c to be gone", func() bool { return len(n.watcher.Peers()) == 0 })
	f.set(c)
	waitFor(t, 10*time.Second, "c to be back", func() bool { return len(n.watcher.Peers()) == 1 })
	if p := n.watcher.Peers()[0]; p.Addr == "" {
		t.Errorf("c came back without its address")
	}
	f.set(c, route(t, "d", "D1", "127.0.0.1:1"))
	if got, want := n.order(t, 2), []string{"up c C1", "up d D1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A server that restarts while it is thought silent was dead: what it led is free.
func TestRestartMeansDead(t *testing.T) {
	for _, tc := range []struct {
		name string
		seen bool // that c was away
	}{{"away for a while", true}, {"between two looks", false}} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakeServer{}
			n := watchFake(t, f)
			f.set(route(t, "c", "C1", listen(t, mute("C1"))))
			n.waitLocated(t, "c")
			if tc.seen {
				f.set()
				waitFor(t, 10*time.Second, "c to be gone", func() bool { return len(n.watcher.Peers()) == 0 })
			}
			f.set(route(t, "c", "C2", "127.0.0.1:1"))
			if got, want := n.order(t, 3), []string{"up c C1", "down c C1 dead", "up c C2"}; !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// A peer that dialled us has a far end where nobody listens: that it refuses must
// not count as death. Its address has to come from elsewhere.
func TestAcceptedRoutesPortIsNotBelieved(t *testing.T) {
	ports := freePorts(t, 2)
	start := func(name string, port int, routes ...string) *server.Server {
		srv, err := serverConf{Name: name, Relay: true, Port: port, Routes: routes}.start()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
		return srv
	}
	hub := &cluster{servers: map[string]*server.Server{"hub": start("hub", ports[0])}}
	guest := start("guest", ports[1], fmt.Sprintf("127.0.0.1:%d", ports[0]))

	plain := hub.watch(t, "hub", false)
	told := hub.watchWith(t, "hub", false, raft.WatchOptions{Timing: timing, Addrs: func(peer string) []string {
		return []string{"nonsense", fmt.Sprintf("localhost:%d", ports[1])}
	}})
	told.waitLocated(t, "guest")
	if p := plain.watcher.Peers(); len(p) != 1 || p[0].Addr != "" {
		t.Errorf("got %+v, want guest without an address", p)
	}
	guest.Shutdown()
	guest.WaitForShutdown()
	if e := told.next(t, raft.Down, "guest"); !e.Dead {
		t.Errorf("told where it listens: got Dead = false (%s), want true", e.Reason)
	}
	if e := plain.next(t, raft.Down, "guest"); e.Dead {
		t.Errorf("not told where it listens: got Dead = true (%s), want false", e.Reason)
	}
}
