package sessions_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/addrtest"
	"ripstop/fabric/raft"
	"ripstop/kv/sessions"
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

func logger() *slog.Logger {
	if os.Getenv("RIPSTOP_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// newLab starts one NATS server, on which a test plays several nodes.
func newLab(t testing.TB) *fabric.Node {
	t.Helper()
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: logger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// open opens the store of a node and waits until the bucket is there.
func open(t testing.TB, nc *nats.Conn, node string, change ...func(*sessions.Options)) *sessions.Store {
	t.Helper()
	s := openOnly(t, nc, node, change...)
	synced(t, s)
	return s
}

var incarnations atomic.Uint64

func openOnly(t testing.TB, nc *nats.Conn, node string, change ...func(*sessions.Options)) *sessions.Store {
	t.Helper()
	o := sessions.Options{Fabric: nc, Node: node, Incarnation: incarnations.Add(1), Every: time.Hour, Logger: logger()}
	for _, f := range change {
		f(&o)
	}
	s, err := sessions.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func synced(t testing.TB, s *sessions.Store) {
	t.Helper()
	within(t, 20*time.Second, func() string { return text(sessions.Sync(t.Context(), s)) })
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// eventually waits until what returns "", which else says what is wrong.
func eventually(t testing.TB, what func() string) {
	t.Helper()
	within(t, 10*time.Second, what)
}

func within(t testing.TB, limit time.Duration, what func() string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; <-tick.C {
		wrong := what()
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %s", limit, wrong)
		}
	}
}

// record is a session's, as an agent would open it.
func record(id string) sessions.Record {
	return sessions.Record{
		ID: id, Server: "demo", Instance: "demo-1", Node: "n1", Home: "local", RegionEpoch: 1, Epoch: 1, Version: "2025-11-25", OnMove: sessions.OnMoveReinitialize,
		Initialize:  json.RawMessage(`{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{},"roots":{"listChanged":true},"sampling":{}},"clientInfo":{"name":"probe","version":"1.0.0"}}`),
		Initialized: true, Principal: "alice",
	}
}

func create(t testing.TB, s *sessions.Store, id string) sessions.Record {
	t.Helper()
	r, err := s.Create(t.Context(), record(id))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// shows waits until s knows revision rev of a session; 0 = that it is gone.
func shows(t testing.TB, s *sessions.Store, id string, rev uint64) {
	t.Helper()
	eventually(t, func() string {
		if r, ok := s.Lookup(id); ok != (rev != 0) || r.Rev != rev {
			return fmt.Sprintf("session %s: there %t, revision %d, want %d", id, ok, r.Rev, rev)
		}
		return ""
	})
}

// raw opens the bucket as any KV client does.
func raw(t testing.TB, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := js.KeyValue(t.Context(), "sessions_local_g1")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stream looks at a stream.
func stream(t testing.TB, nc *nats.Conn, name string) *jetstream.StreamInfo {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo()
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// cluster is three voters, stopped and started one by one.
type cluster struct {
	t     testing.TB
	addrs []string
	dirs  []string
	nodes [3]*fabric.Node
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t: t}
	for range 3 {
		c.addrs = append(c.addrs, addrtest.Reserve(t))
		c.dirs = append(c.dirs, t.TempDir())
	}
	return c
}

func startedCluster(t testing.TB) *cluster {
	c := newCluster(t)
	for i := range c.nodes {
		c.start(i)
	}
	return c
}

func (c *cluster) start(i int) *fabric.Node {
	c.t.Helper()
	n, err := fabric.Open(c.t.Context(), fabric.Options{
		Name: name(i), Addr: "127.0.0.1:0", DataDir: c.dirs[i], Logger: logger(),
		Cluster: &fabric.Cluster{Addr: c.addrs[i], Peers: c.addrs, Voters: []string{"n1", "n2", "n3"}, Secret: "shared among the nodes", Timing: timing},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { n.Server().Shutdown(); n.Close() })
	c.nodes[i] = n
	return n
}

func name(i int) string { return fmt.Sprintf("n%d", i+1) }

// kill ends a node with no word to anyone.
func (c *cluster) kill(i int) {
	c.t.Helper()
	n := c.nodes[i]
	c.nodes[i] = nil
	n.Server().Shutdown()
	if err := n.Close(); err != nil {
		c.t.Error(err)
	}
}

// leader is which node leads a stream, as node asks.
func (c *cluster) leader(ask int, of string) int {
	c.t.Helper()
	js, err := jetstream.New(c.nodes[ask].Fabric())
	if err != nil {
		c.t.Fatal(err)
	}
	leader := ""
	eventually(c.t, func() string {
		s, err := js.Stream(c.t.Context(), of)
		if err == nil {
			leader = s.CachedInfo().Cluster.Leader
		}
		return text(err)
	})
	for i := range c.nodes {
		if name(i) == leader {
			return i
		}
	}
	c.t.Fatalf("the leader is %q", leader)
	return 0
}

func r3(o *sessions.Options) { o.Replicas = 3 }
