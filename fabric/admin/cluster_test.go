package admin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric/addrtest"
	"ripstop/fabric/admin"
	"ripstop/fabric/raft"
)

func TestMain(m *testing.M) {
	if err := raft.LAN().Scale(2).Apply(); err != nil { // room for the race detector
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// lab is a cluster of servers, each with an admin service.
type lab struct {
	servers   []*server.Server
	services  []*admin.Service
	client    *admin.Client
	drained   chan string // nodes that were told to drain
	removed   chan string
	forgotten sync.Map
	imported  string
	exported  []byte
	failWith  error // of Export, in the middle
}

// AdminNodes says what is up, as the node monitor would.
func (l *lab) AdminNodes(context.Context) []admin.Node {
	var list []admin.Node
	for _, s := range l.servers {
		n := admin.Node{Name: s.Name(), Role: "voter", State: "up", Health: admin.Healthy, Ready: true, Software: "v1.0.0", ServerID: s.ID(), Latency: 0.001}
		if !s.Running() {
			n.State, n.Health, n.Reasons, n.Ready = "down", admin.Unhealthy, []string{"down: it was stopped"}, false
		}
		list = append(list, n)
	}
	return list
}

func (l *lab) Forget(node string) {
	l.forgotten.Store(node, true)
}

func (l *lab) PlanRemove(context.Context, string) ([]string, error) {
	return []string{"nobody votes in its place"}, nil
}

func (l *lab) Removing(context.Context, string) ([]string, error) { return nil, nil }

func (l *lab) Removed(_ context.Context, node string) ([]string, error) {
	l.removed <- node
	return []string{"the roster has two voters"}, nil
}

const accounts = `
	system_account: SYS
	accounts: {
		SYS: {users: [{user: sys, password: s}]}
		FABRIC: {jetstream: enabled, users: [
			{user: fabric, password: f}
			{user: operator, password: o, permissions: {publish: ["$SRV.>", "ripstop.v1.admin.>"], subscribe: ["_INBOX.>"]}}
			{user: nobody, password: n, permissions: {publish: ["nothing"], subscribe: ["_INBOX.>"]}}
		]}
	}`

func startLab(t testing.TB, size int) *lab {
	t.Helper()
	l := &lab{drained: make(chan string, 1), removed: make(chan string, 1), exported: []byte("nothing")}
	ports := freePorts(t, size)
	var routes []*url.URL
	for _, p := range ports {
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	for i := range size {
		o := &server.Options{}
		if err := o.ProcessConfigString(accounts); err != nil {
			t.Fatal(err)
		}
		o.ServerName, o.Host, o.Port, o.NoSigs, o.NoLog = fmt.Sprintf("n%d", i+1), "127.0.0.1", server.RANDOM_PORT, true, true
		o.JetStream, o.StoreDir, o.JetStreamDomain = true, t.TempDir(), "local"
		if size > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i], PoolSize: -1}
			o.Routes = routes
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start() // returns when the server listens; Shutdown waits
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		l.servers = append(l.servers, s)
	}
	for _, s := range l.servers {
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("server is not ready")
		}
	}
	l.makeBucket(t, size)
	for _, s := range l.servers {
		l.serve(t, s, size > 1)
	}
	l.client = &admin.Client{Conn: connect(t, l.servers[0], "operator", "o")}
	return l
}

func (l *lab) serve(t testing.TB, s *server.Server, clustered bool) {
	t.Helper()
	svc, err := admin.Open(admin.Options{
		Conn: connect(t, s, "fabric", "f"), System: connect(t, s, "sys", "s"), Node: s.Name(), Region: "local",
		Clustered: clustered, Version: "v1.0.0", Nodes: l, Roster: l, SpoolDir: t.TempDir(),
		Drain: func(string) error {
			l.drained <- s.Name()
			return nil
		},
		Export: l.export, Import: l.importFrom, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	l.services = append(l.services, svc)
}

func (l *lab) makeBucket(t testing.TB, replicas int) {
	t.Helper()
	js, err := jetstream.New(connect(t, l.servers[0], "fabric", "f"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the bucket", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "things_local_g1", Replicas: replicas})
		return err == nil || errors.Is(err, jetstream.ErrBucketExists)
	})
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		ports = append(ports, addrtest.ReservePort(t))
	}
	return ports
}

func connect(t testing.TB, s *server.Server, user, password string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo(user, password), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// awaitStatus asks until the status is as wanted.
func (l *lab) awaitStatus(t testing.TB, what string, cond func(s admin.Status) bool) admin.Status {
	t.Helper()
	var s admin.Status
	await(t, what, func() bool {
		var err error
		if s, err = l.client.Status(t.Context()); err != nil {
			t.Fatalf("status: %v", err)
		}
		return cond(s)
	})
	return s
}

func group(s admin.Status, name string) admin.Group {
	i := slices.IndexFunc(s.Groups, func(g admin.Group) bool { return g.Name == name })
	if i < 0 {
		return admin.Group{}
	}
	return s.Groups[i]
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
