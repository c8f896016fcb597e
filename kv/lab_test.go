package kv_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/kv"
)

func logger() *slog.Logger {
	if os.Getenv("RIPSTOP_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// lab is one NATS server on which a test plays several nodes.
type lab struct {
	*fabric.Node
	region string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: logger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return &lab{n, "local"}
}

// node is what a node has of the registry.
type node struct {
	*kv.Registry
	registrar *kv.Registrar
	client    kv.RegistryClient
	id        string // of its NATS server; made up, since tests make agents up

	mu     sync.Mutex
	closed map[uint64]bool // connections that have ended
}

type nodeOptions struct {
	name        string
	incarnation uint64
	file        string
	every       time.Duration
	fabric      *nats.Conn // nil = the lab's
	agents      *nats.Conn
	replicas    int
	id          string // of its NATS server; "" = made of its name
}

func (l *lab) node(t testing.TB, name string) *node {
	t.Helper()
	n := l.nodeWith(t, nodeOptions{name: name})
	n.synced(t)
	return n
}

func (l *lab) nodeWith(t testing.TB, o nodeOptions) *node {
	t.Helper()
	if o.fabric == nil {
		o.fabric, o.agents = l.Fabric(), l.MCP()
	}
	if o.every == 0 {
		o.every = time.Hour // what a test does not ask for must not help it
	}
	reg, err := kv.OpenRegistry(kv.RegistryOptions{
		Fabric: o.fabric, Region: l.region, Replicas: o.replicas, Node: o.name, File: o.file, Every: o.every, Logger: logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Registry: reg, id: cmp.Or(o.id, strings.ToUpper(o.name)+"ID"), closed: map[uint64]bool{}, client: kv.RegistryClient{Conn: o.agents}}
	n.registrar, err = kv.NewRegistrar(reg, kv.RegistrarOptions{
		Agents: o.agents, ServerID: n.id, Incarnation: max(o.incarnation, 1), Open: n.open, SweepEvery: 50 * time.Millisecond, Logger: logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.stop(t) })
	return n
}

var stopped sync.Map // nodes that a test stopped itself

func (n *node) stop(t testing.TB) {
	if _, done := stopped.LoadOrStore(n, true); done {
		return
	}
	if err := errors.Join(n.registrar.Close(), n.Close()); err != nil {
		t.Error(err)
	}
}

// crash ends the node without a word to the bucket.
func (n *node) crash(t testing.TB) {
	t.Helper()
	stopped.Store(n, true)
	kv.Crash(n.registrar)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func (n *node) open(c kv.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.closed[c.ClientID]
}

// hangUp ends a connection; quietly if nobody is told.
func (n *node) hangUp(c kv.Conn, quietly bool) {
	n.mu.Lock()
	n.closed[c.ClientID] = true
	n.mu.Unlock()
	if !quietly {
		n.registrar.Disconnected(c)
	}
}

var connections atomic.Uint64

// instance makes an agent's registration up, for an agent connected to n.
func (n *node) instance(server, id string) kv.Instance {
	return kv.Instance{
		Server: server, Instance: id, Agent: "host/1", Transport: "go", Software: "test", Wire: 1, Run: "run-" + id, Seq: 1,
		Eras: []string{"legacy", "modern"}, Kinds: []string{"tools"},
		Info: kv.Info{Name: server, Version: "1.0.0", Capabilities: []byte(`{"tools":{"listChanged":true}}`)},
		Conn: kv.Conn{ServerID: n.id, ClientID: connections.Add(1)},
	}
}

// put registers i and fails the test if that fails.
func (n *node) put(t testing.TB, i kv.Instance) {
	t.Helper()
	if _, err := n.client.Put(t.Context(), i); err != nil {
		t.Fatal(err)
	}
}

// bucket opens the registry's bucket as any KV client would.
func (l *lab) bucket(t testing.TB) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(l.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	var b jetstream.KeyValue
	eventually(t, func() string {
		b, err = js.KeyValue(t.Context(), "registry_"+l.region+"_g1")
		return text(err)
	})
	return b
}

// write puts a record into the bucket past every registrar.
func (l *lab) write(t testing.TB, i kv.Instance) uint64 {
	t.Helper()
	data, err := kv.Encode(i)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := l.bucket(t).Put(t.Context(), i.Key(), data)
	if err != nil {
		t.Fatal(err)
	}
	return rev
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

// ids lists a server's instances as a registry shows them.
func ids(r interface{ Instances(string) []*kv.Instance }, server string) string {
	var out []string
	for _, i := range r.Instances(server) {
		out = append(out, i.Instance)
	}
	return strings.Join(out, " ")
}

// shows waits until r shows these instances of server.
func (n *node) shows(t testing.TB, server, want string) {
	t.Helper()
	eventually(t, func() string {
		if got := ids(n, server); got != want {
			return "instances of " + server + ": got " + got + ", want " + want
		}
		return ""
	})
}

// stored waits until the bucket has what the node wants it to have.
func (n *node) stored(t testing.TB) {
	t.Helper()
	eventually(t, func() string {
		if n.registrar.Pending() > 0 {
			return "the bucket does not follow"
		}
		return ""
	})
}

// synced waits until the bucket is there.
func (n *node) synced(t testing.TB) {
	t.Helper()
	eventually(t, func() string { return text(n.Sync(t.Context())) })
}

// keys lists what the bucket holds.
func (l *lab) keys(t testing.TB) string {
	t.Helper()
	keys, err := l.bucket(t).Keys(t.Context())
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		t.Fatal(err)
	}
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

// holds waits until the bucket holds exactly these keys.
func (l *lab) holds(t testing.TB, want string) {
	t.Helper()
	eventually(t, func() string {
		if got := l.keys(t); got != want {
			return "bucket: got " + got + ", want " + want
		}
		return ""
	})
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}
