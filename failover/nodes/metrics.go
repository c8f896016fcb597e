package nodes

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ripstop/failover"
)

// metrics are collected from the runner's view when they are asked for, so that
// no label outlives its node.
type metrics struct {
	r        *Runner
	duration prometheus.Histogram
	checks   *prometheus.CounterVec
	events   *prometheus.CounterVec
}

var (
	describe = func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	descUp       = describe("ripstop_cluster_nodes_up", "Nodes that are up, this one among them.")
	descKnown    = describe("ripstop_cluster_nodes", "Nodes that are known, up or down.")
	descVoters   = describe("ripstop_cluster_voters", "Nodes that vote.")
	descReached  = describe("ripstop_cluster_voters_reached", "Nodes that vote and are up, as this node sees it.")
	descSplit    = describe("ripstop_partition_detected", "1 while nodes that are not known to be dead can't be reached.")
	descLeader   = describe("ripstop_cluster_leader_known", "1 while this node knows who leads the meta group.")
	descNodeUp   = describe("ripstop_node_up", "1 if the node is up.", "node")
	descHealth   = describe("ripstop_node_health", "1 for the health that the node has.", "node", "health")
	descLatency  = describe("ripstop_node_latency_seconds", "Mean time of a check of the node, there and back.", "node")
	descSkew     = describe("ripstop_node_clock_skew_seconds", "The node's wall clock minus ours, as far as half a round trip does not explain it.", "node")
	descLastSeen = describe("ripstop_node_last_seen_timestamp_seconds", "When the node last answered.", "node")
)

func newMetrics(r *Runner) *metrics {
	return &metrics{
		r: r,
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ripstop_failover_duration_seconds", Help: "From the first sign that a node is lost to the end of what was done about it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 1.5, 2, 2.5, 5, 10, 20},
		}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ripstop_node_checks_total", Help: "Checks of other nodes."}, []string{"outcome"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ripstop_node_events_total", Help: "What was found about nodes."}, []string{"kind"}),
	}
}

func (m *metrics) checked(ok bool) {
	outcome := "ok"
	if !ok {
		outcome = "failed"
	}
	m.checks.WithLabelValues(outcome).Inc()
}

// count counts an event; acted is how long acting on it took.
func (m *metrics) count(e failover.Event, acted time.Duration) {
	m.events.WithLabelValues(string(e.Kind)).Inc()
	if e.Kind == failover.NodeDown {
		m.duration.Observe((e.Took + acted).Seconds())
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descKnown, descVoters, descReached, descSplit, descLeader, descNodeUp, descHealth, descLatency, descSkew, descLastSeen} {
		ch <- d
	}
	m.duration.Describe(ch)
	m.checks.Describe(ch)
	m.events.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	view, p := m.r.View(), m.r.Partition()
	ups, led := 0, false
	for _, n := range view {
		led = led || n.Leader
		gauge(descNodeUp, one(n.State == failover.Up), n.Name)
		for _, h := range []failover.Health{failover.Healthy, failover.Degraded, failover.Unhealthy} {
			gauge(descHealth, one(n.Health == h), n.Name, string(h))
		}
		if n.State == failover.Up {
			ups++
		}
		if n.Self || n.LastSeen.IsZero() {
			continue
		}
		gauge(descLastSeen, float64(n.LastSeen.UnixMilli())/1000, n.Name)
		if n.State == failover.Up {
			gauge(descLatency, n.Mean.Seconds(), n.Name)
			gauge(descSkew, n.Skew.Seconds(), n.Name)
		}
	}
	gauge(descUp, float64(ups))
	gauge(descKnown, float64(len(view)))
	gauge(descVoters, float64(p.Voters))
	gauge(descReached, float64(p.Reached))
	gauge(descSplit, one(p.Detected()))
	gauge(descLeader, one(led))
	m.duration.Collect(ch)
	m.checks.Collect(ch)
	m.events.Collect(ch)
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
