package main

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"ripstop/fabric/raft"
	"ripstop/failover"
)

// collect registers the node's own metrics. Those of the edge, of the node
// monitor and of Go are registered by their owners.
func (n *node) collect() {
	gauge := func(name, help string, f func() float64) {
		n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	gauge("ripstop_registry_servers", "MCP servers that have an instance.", func() float64 { return float64(len(n.members())) })
	gauge("ripstop_registry_instances", "Instances in the registry.", func() float64 { return float64(n.registry.Len()) })
	gauge("ripstop_registry_age_seconds", "Since the registry here was last known to be what its bucket holds.", func() float64 { return n.registry.Age().Seconds() })
	gauge("ripstop_registry_pending_writes", "Registrations of this node that its bucket does not have yet.", func() float64 { return float64(n.registrar.Pending()) })
	gauge("ripstop_nats_connections", "Clients connected to the embedded NATS server, the node's own among them.", func() float64 { return float64(n.fabric.Connections()) })
	gauge("ripstop_storage_healthy", "Whether JetStream's store can be written: 1 or 0.", func() float64 { return oneIf(n.fabric.StorageError() == nil) })
	gauge("ripstop_session_replication_lag_seconds", "For how long the replicas on this node have lacked something committed; 0 when they lack nothing.", func() float64 { return n.lag.age(time.Now()).Seconds() })
	n.metrics.MustRegister(newGateCollector(n), newRaftCollector(n.fabric.Server()))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ripstop_build_info", Help: "Always 1; the labels say what runs."}, []string{"version", "node", "region"})
	info.WithLabelValues(buildVersion(), n.fabric.Name(), n.fabric.Region()).Set(1)
	n.metrics.MustRegister(info)
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// replicaLag knows since when a replica on this node is behind.
type replicaLag struct{ since atomic.Pointer[time.Time] }

// look is told of the groups every now and then.
func (l *replicaLag) look(groups []raft.Group, now time.Time) {
	behind := false
	for _, g := range groups {
		if !g.Member || g.Leads {
			continue
		}
		behind = behind || g.CatchingUp || g.Leader == ""
		for _, p := range g.Peers {
			behind = behind || p.Self && (!p.Current || p.Lag > 0)
		}
	}
	switch {
	case !behind:
		l.since.Store(nil)
	case l.since.Load() == nil:
		l.since.Store(&now)
	}
}

func (l *replicaLag) age(now time.Time) time.Duration {
	if since := l.since.Load(); since != nil {
		return now.Sub(*since)
	}
	return 0
}

// lagBearable is how long a replica may lack something before its node is not
// ready: under load each lacks the last entries for a moment.
const lagBearable = time.Second

// newRoute is for how long a node waits for the one at the other end of a route
// to be found up. One that is not by then has a problem of its own.
const newRoute = 5 * time.Second

// catchingUp says what this node still lacks to serve as well as the others; ""
// if nothing.
func (n *node) catchingUp() string {
	switch {
	case n.lag.age(time.Now()) > lagBearable:
		return "replicas on this node still catch up"
	case n.fabric.Clustered() && n.registry.Stale():
		return "the registry on this node is not known to be current"
	case n.fabric.Clustered() && n.registrar.Pending() > 0:
		return "not all registrations of this node are in the bucket"
	}
	return n.unused()
}

// unused names a node that is connected and not used yet, if this node is why:
// it has just started, or all the others were down to it. Else the newcomer says
// of itself that it is not ready. If every node said so, a load balancer would
// have none left whenever one starts.
func (n *node) unused() string {
	routes, w := n.fabric.Routes(), n.nodes.Load()
	if routes == nil || w == nil || n.joined.Load() {
		return ""
	}
	up := usedNodes(w.View())
	for _, p := range routes.Peers() {
		if !up[p.Name] && time.Since(p.Since) < newRoute {
			return "node " + p.Name + " has a route and is not used yet"
		}
	}
	n.joined.Store(len(up) > 0)
	return ""
}

// usedNodes are the others that are up.
func usedNodes(view []failover.NodeState) map[string]bool {
	up := map[string]bool{}
	for _, s := range view {
		if !s.Self && s.State == failover.Up {
			up[s.Name] = true
		}
	}
	return up
}

// gateCollector says in which state the write gate is, as one series a state.
type gateCollector struct {
	n    *node
	desc *prometheus.Desc
}

func newGateCollector(n *node) *gateCollector {
	return &gateCollector{n, prometheus.NewDesc("ripstop_write_gate", "1 for the state the write gate is in: whether buckets can be written from this node.", []string{"state"}, nil)}
}

func (c *gateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *gateCollector) Collect(ch chan<- prometheus.Metric) {
	is, _ := c.n.gate()
	for _, state := range []string{failover.GateWritable, failover.GateReadOnly, failover.GateStandalone, failover.GateFenced} {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, oneIf(is == state), state)
	}
}

// raftCollector says how JetStream and its Raft groups do on this node. A group
// is named by its stream; the meta group by "_meta_".
type raftCollector struct {
	srv *server.Server

	leader, known, lag, size, term, streams, bytes, apiErrors *prometheus.Desc
}

func newRaftCollector(srv *server.Server) *raftCollector {
	group := []string{"group"}
	desc := func(name, help string, labels []string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &raftCollector{
		srv:       srv,
		leader:    desc("ripstop_raft_leader", "1 if this node leads the group.", group),
		known:     desc("ripstop_raft_leader_known", "1 if this node knows who leads the group.", group),
		lag:       desc("ripstop_raft_lag_entries", "Committed entries that this node has not applied.", group),
		size:      desc("ripstop_raft_votes", "Votes of the group.", group),
		term:      desc("ripstop_raft_term", "Term of the group: it grows with every election.", group),
		streams:   desc("ripstop_jetstream_streams", "Streams with a replica on this node.", nil),
		bytes:     desc("ripstop_jetstream_store_bytes", "Bytes that JetStream keeps on this node.", nil),
		apiErrors: desc("ripstop_jetstream_api_errors_total", "Requests to JetStream that this node refused.", nil),
	}
}

func (c *raftCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.leader, c.known, c.lag, c.size, c.term, c.streams, c.bytes, c.apiErrors} {
		ch <- d
	}
}

func (c *raftCollector) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	seen := map[string]bool{}
	for _, g := range raft.Groups(c.srv) {
		name := g.Stream
		if g.Name == raft.MetaGroup {
			name = raft.MetaGroup
		}
		if name == "" || g.Consumer != "" || seen[name] {
			continue
		}
		seen[name] = true
		put(c.leader, prometheus.GaugeValue, oneIf(g.Leads), name)
		put(c.known, prometheus.GaugeValue, oneIf(g.Leader != ""), name)
		put(c.lag, prometheus.GaugeValue, float64(g.Committed-min(g.Committed, g.Applied)), name)
		put(c.size, prometheus.GaugeValue, float64(g.Size), name)
		put(c.term, prometheus.CounterValue, float64(g.Term), name)
	}
	js, err := c.srv.Jsz(nil)
	if err != nil || js.Disabled {
		return // a relay
	}
	put(c.streams, prometheus.GaugeValue, float64(js.Streams))
	put(c.bytes, prometheus.GaugeValue, float64(js.Store))
	put(c.apiErrors, prometheus.CounterValue, float64(js.API.Errors))
}
