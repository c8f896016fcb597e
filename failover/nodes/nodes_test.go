package nodes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"ripstop/failover"
	"ripstop/failover/nodes"
)

var quick = failover.Config{Interval: 250 * time.Millisecond, Timeout: 200 * time.Millisecond, Stability: 80 * time.Millisecond, Slow: time.Second, Software: "v1.4.0", Wire: []int{1}}

// member is a node of a test's cluster.
type member struct {
	*nodes.Runner
	name    string
	srv     *server.Server
	conn    *nats.Conn
	metrics *prometheus.Registry

	mu     sync.Mutex
	report nodes.NodeReport
	hung   chan struct{} // Self blocks until it is closed; nil = it does not
	skew   atomic.Int64
	events []string
}

func (m *member) self() nodes.NodeReport {
	m.mu.Lock()
	hung, r := m.hung, m.report
	m.mu.Unlock()
	if hung != nil {
		<-hung
	}
	return r
}

func (m *member) set(f func(r *nodes.NodeReport)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.report)
}

func (m *member) sees(name string) nodes.NodeState {
	for _, n := range m.View() {
		if n.Name == name {
			return n
		}
	}
	return nodes.NodeState{}
}

// await waits until cond holds, which events and checks make true.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (m *member) awaitState(t testing.TB, name string, state failover.State, health failover.Health) {
	t.Helper()
	await(t, fmt.Sprintf("%s sees %s %s %s", m.name, name, state, health), func() bool {
		n := m.sees(name)
		return n.State == state && n.Health == health
	})
}

// startServers runs n clustered servers without JetStream.
func startServers(t testing.TB, n int) []*server.Server {
	t.Helper()
	var list []*server.Server
	var seed *url.URL
	for i := range n {
		o := &server.Options{}
		if err := o.ProcessConfigString(`system_account: SYS, accounts: {SYS: {users: [{user: sys, password: s}]}, FABRIC: {users: [{user: fabric, password: f}]}}`); err != nil {
			t.Fatal(err)
		}
		o.ServerName, o.Host, o.Port, o.NoSigs, o.NoLog = fmt.Sprintf("n%d", i+1), "127.0.0.1", server.RANDOM_PORT, true, true
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: server.RANDOM_PORT}
		if seed != nil {
			o.Routes = []*url.URL{seed}
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("server is not ready")
		}
		if seed == nil {
			seed = &url.URL{Scheme: "nats-route", Host: net.JoinHostPort("127.0.0.1", fmt.Sprint(s.ClusterAddr().Port))}
		}
		list = append(list, s)
	}
	return list
}

func connect(t testing.TB, s *server.Server, user, password string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo(user, password), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func join(t testing.TB, s *server.Server, voters []string, change func(*nodes.Options)) *member {
	t.Helper()
	m := &member{name: s.Name(), srv: s, conn: connect(t, s, "fabric", "f"), metrics: prometheus.NewRegistry()}
	m.report = nodes.NodeReport{Region: "local", Role: failover.Voter, ServerID: s.ID(), Incarnation: 1, Started: time.Now(), Ready: true}
	o := nodes.Options{
		Conn: m.conn, Name: m.name, Self: m.self, Voters: voters, Config: quick, Metrics: m.metrics,
		Logger: slog.New(slog.DiscardHandler),
		Wall:   func() time.Time { return time.Now().Add(time.Duration(m.skew.Load())) },
	}
	if change != nil {
		change(&o)
	}
	var err error
	if m.Runner, err = nodes.Open(o); err != nil {
		t.Fatal(err)
	}
	m.OnChange(func(e failover.Event) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.events = append(m.events, fmt.Sprintf("%s %s %s", e.Kind, e.Node, e.Cause))
	})
	t.Cleanup(func() {
		if err := m.Close(); err != nil && m.conn.IsConnected() {
			t.Error(err)
		}
	})
	return m
}

// startCluster joins n members, and waits until all see all.
func startCluster(t testing.TB, n int) []*member {
	t.Helper()
	var members []*member
	for _, s := range startServers(t, n) {
		members = append(members, join(t, s, []string{"n1", "n2", "n3"}, nil))
	}
	for _, m := range members {
		for _, other := range members {
			m.awaitState(t, other.name, failover.Up, failover.Healthy)
		}
	}
	return members
}

func TestNodesFindEachOther(t *testing.T) {
	ms := startCluster(t, 3)
	ms[2].set(func(r *nodes.NodeReport) { r.Instances, r.MetaLeader = 7, "n3" })
	ms[2].Changed()
	await(t, "n1 has heard of n3's change", func() bool { return ms[0].sees("n3").Report.Instances == 7 })
	n := ms[0].sees("n3")
	if n.Latency <= 0 || n.Mean <= 0 || n.LastSeen.IsZero() || n.Report.Software != "v1.4.0" || n.Report.ServerID != ms[2].srv.ID() {
		t.Errorf("n1 sees n3 as %+v", n)
	}
	if self := ms[2].sees("n3"); !self.Self || !self.Leader || self.State != failover.Up {
		t.Errorf("n3 sees itself as %+v", self)
	}
	if p := ms[0].Partition(); p.Detected() || p.Reached != 3 || p.Minority {
		t.Errorf("partition: %+v", p)
	}
}

func TestGoodByeActsAtOnce(t *testing.T) {
	ms := startCluster(t, 3)
	sub, err := ms[1].conn.SubscribeSync("ripstop.v1.events.node_down")
	if err != nil {
		t.Fatal(err)
	}
	if err := ms[1].conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := ms[2].Close(); err != nil {
		t.Fatal(err)
	}
	ms[0].awaitState(t, "n3", failover.Down, failover.Unhealthy)
	if n := ms[0].sees("n3"); n.Cause != failover.Stopped {
		t.Errorf("n3 is down because %q (%v)", n.Cause, n.Reasons)
	}
	m, err := sub.NextMsg(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var e nodes.Event
	if err := json.Unmarshal(m.Data, &e); err != nil || e.Node != "n3" || e.Observer == "" || e.Region != "local" || e.Reason == "" {
		t.Errorf("event %s (%v)", m.Data, err)
	}
	if err := ms[2].Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestServerShutdownActsAtOnce(t *testing.T) {
	ms := startCluster(t, 3)
	if err := ms[0].WatchSystem(connect(t, ms[0].srv, "sys", "s")); err != nil {
		t.Fatal(err)
	}
	ms[2].srv.Shutdown()
	ms[0].awaitState(t, "n3", failover.Down, failover.Unhealthy)
	if n := ms[0].sees("n3"); n.Cause != failover.Stopped {
		t.Errorf("n3 is down because %q (%v)", n.Cause, n.Reasons)
	}
}

func TestHungNodeIsFoundAndComesBack(t *testing.T) {
	ms := startCluster(t, 3)
	hung := make(chan struct{})
	ms[2].mu.Lock()
	ms[2].hung = hung
	ms[2].mu.Unlock()
	ms[0].awaitState(t, "n3", failover.Down, failover.Unhealthy)
	if n := ms[0].sees("n3"); n.Cause != failover.Checks {
		t.Errorf("n3 is down because %q (%v)", n.Cause, n.Reasons)
	}
	if p := ms[0].Partition(); !p.Detected() || !slices.Equal(p.Lost, []string{"n3"}) || p.Minority {
		t.Errorf("partition: %+v", p)
	}
	want(t, ms[0].metrics, "ripstop_partition_detected", 1)
	want(t, ms[0].metrics, "ripstop_cluster_nodes_up", 2)
	ms[2].mu.Lock()
	ms[2].hung = nil
	ms[2].mu.Unlock()
	close(hung)
	ms[0].awaitState(t, "n3", failover.Up, failover.Healthy)
	want(t, ms[0].metrics, "ripstop_partition_detected", 0)
	want(t, ms[0].metrics, "ripstop_cluster_nodes_up", 3)
	ms[0].mu.Lock()
	defer ms[0].mu.Unlock()
	var about []string
	for _, e := range ms[0].events {
		if strings.HasPrefix(e, "node_down n3") || strings.HasPrefix(e, "node_up n3") && len(about) > 0 {
			about = append(about, e)
		}
	}
	if !slices.Equal(about, []string{"node_down n3 checks failed", "node_up n3 "}) {
		t.Errorf("events: %q", ms[0].events)
	}
}

func TestDeadRoute(t *testing.T) {
	ms := startCluster(t, 2)
	ms[0].RouteDown("n2", true)
	if n := ms[0].sees("n2"); n.State != failover.Down || n.Cause != failover.Dead {
		t.Errorf("n2 is %s because %q", n.State, n.Cause)
	}
	await(t, "the failover is counted", func() bool { return value(t, ms[0].metrics, "ripstop_failover_duration_seconds") == 1 })
	ms[0].RouteUp("n2")
	ms[0].awaitState(t, "n2", failover.Up, failover.Healthy)
	// A blip: lost and back within the window.
	ms[0].RouteDown("n2", false)
	ms[0].RouteUp("n2")
	if n := ms[0].sees("n2"); n.State != failover.Up || n.Suspect {
		t.Errorf("after a blip n2 is %s, suspect %t", n.State, n.Suspect)
	}
}

func TestClockAndVersions(t *testing.T) {
	ms := startCluster(t, 1)
	s := ms[0].srv
	late := join(t, s, nil, func(o *nodes.Options) { o.Name = "late node.1" })
	late.skew.Store(int64(-7 * time.Second))
	join(t, s, nil, func(o *nodes.Options) { o.Name, o.Config.Wire = "stranger", []int{9} })
	join(t, s, nil, func(o *nodes.Options) { o.Name, o.Config.Software = "old", "v1.2.0" })
	for name, w := range map[string]struct {
		health failover.Health
		reason string
	}{
		"late node.1": {failover.Degraded, "behind ours"},
		"stranger":    {failover.Unhealthy, "wire version 9"},
		"old":         {failover.Degraded, "it runs v1.2.0, this node v1.4.0"},
	} {
		ms[0].awaitState(t, name, failover.Up, w.health)
		if n := ms[0].sees(name); !strings.Contains(strings.Join(n.Reasons, ";"), w.reason) {
			t.Errorf("%s: reasons %q lack %q", name, n.Reasons, w.reason)
		}
	}
}

func TestDrainIsToldBeforeTheNextCheck(t *testing.T) {
	ms := startCluster(t, 2)
	ms[1].set(func(r *nodes.NodeReport) { r.Draining = true })
	ms[1].Changed()
	ms[0].awaitState(t, "n2", failover.Up, failover.Degraded)
	if !ms[0].sees("n2").Draining {
		t.Error("n2 is not draining")
	}
}

func TestRefreshAndOperatorView(t *testing.T) {
	ms := startCluster(t, 2)
	ms[1].set(func(r *nodes.NodeReport) { r.Clients, r.Leads = 3, []string{"KV_a"} })
	list := ms[0].AdminNodes(t.Context())
	if len(list) != 3 { // n3 is expected to vote, and was never seen
		t.Fatalf("nodes: %+v", list)
	}
	if n := list[1]; n.Name != "n2" || n.Clients != 3 || !slices.Equal(n.Leads, []string{"KV_a"}) || n.State != "up" || n.Role != "voter" {
		t.Errorf("n2: %+v", n)
	}
	if n := list[2]; n.Name != "n3" || n.State != "down" || n.Role != "voter" {
		t.Errorf("n3: %+v", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	ms[0].Refresh(ended) // returns, though n3 does not answer
}

func TestRemovedNodeIsForgottenByAll(t *testing.T) {
	ms := startCluster(t, 3)
	if err := ms[2].Close(); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms[:2] { // its last word was heard: one that comes late would make it known again
		await(t, m.name+" has heard n3's good-bye", func() bool { return m.sees("n3").Cause == failover.Stopped })
	}
	ms[0].Forget("n3")
	for _, m := range ms[:2] {
		await(t, m.name+" has forgotten n3", func() bool { return m.sees("n3").Name == "" })
		if p := m.Partition(); p.Voters != 2 || p.Reached != 2 {
			t.Errorf("%s knows %d voters and reaches %d", m.name, p.Voters, p.Reached)
		}
	}
	ms[1].Forget("n1") // who is told to be gone itself goes on, and is soon known again
	ms[1].awaitState(t, "n1", failover.Up, failover.Healthy)
}

func TestBadAnnouncements(t *testing.T) {
	ms := startCluster(t, 1)
	for _, subject := range []string{"ripstop.v1.node.hello", "ripstop.v1.node.bye", "ripstop.v1.node.n1.hello"} {
		for _, body := range []string{"", "{", "[]", `{"report":{"name":""}}`, `{"report":{"name":"n1","server_id":"other"}}`, `{"report":7}`} {
			if err := ms[0].conn.Publish(subject, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One that lies about its name is never up: another answers in its place.
	lie := connect(t, ms[0].srv, "fabric", "f")
	if _, err := lie.Subscribe("ripstop.v1.node.ghost.status", func(m *nats.Msg) { _ = m.Respond([]byte(`{"name":"n9"}`)) }); err != nil {
		t.Fatal(err)
	}
	if err := lie.Publish("ripstop.v1.node.hello", []byte(`{"report":{"name":"ghost","server_id":"x"}}`)); err != nil {
		t.Fatal(err)
	}
	await(t, "ghost is known", func() bool { return ms[0].sees("ghost").Name == "ghost" })
	ms[0].Refresh(t.Context())
	if n := ms[0].sees("ghost"); n.State != failover.Down {
		t.Errorf("ghost is %s", n.State)
	}
	if n := ms[0].sees("n1"); n.State != failover.Up || n.Report.ServerID != ms[0].srv.ID() {
		t.Errorf("n1 is %+v", n)
	}
}

func TestBadConfig(t *testing.T) {
	c := quick
	c.Timeout = c.Interval
	s := startServers(t, 1)[0]
	_, err := nodes.Open(nodes.Options{Conn: connect(t, s, "fabric", "f"), Name: "n1", Self: func() nodes.NodeReport { return nodes.NodeReport{} }, Config: c, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "health check timeout") {
		t.Errorf("error %v", err)
	}
}

// value returns a metric without labels; of a histogram, how often it observed.
func value(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			if h := m.GetHistogram(); h != nil {
				return float64(h.GetSampleCount())
			}
			return m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func want(t testing.TB, reg *prometheus.Registry, name string, v float64) {
	t.Helper()
	if got := value(t, reg, name); got != v {
		t.Errorf("%s = %g, want %g", name, got, v)
	}
}
