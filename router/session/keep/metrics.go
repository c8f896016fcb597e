package keep

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ripstop/kv/sessions"
)

// stats counts what happened to sessions here.
type stats struct {
	moves   *prometheus.CounterVec
	took    *prometheus.HistogramVec
	cleaned *prometheus.CounterVec
}

func newStats() stats {
	return stats{
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ripstop_session_moves_total", Help: "Sessions this node has moved to another instance, by cause.",
		}, []string{"cause"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ripstop_session_move_duration_seconds", Help: "Time from the decision to move a session until its record was written, by cause.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"cause"}),
		cleaned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ripstop_session_cleaned_total", Help: "Sessions this node has ended because nobody will ask for them again, and data of ended ones it removed.",
		}, []string{"kind"}),
	}
}

func (s *stats) moved(cause string, took time.Duration) {
	s.moves.WithLabelValues(cause).Inc()
	s.took.WithLabelValues(cause).Observe(took.Seconds())
}

// Collector offers the counts to Prometheus.
func (k *Keep) Collector() prometheus.Collector { return collector{k} }

type collector struct{ k *Keep }

var (
	descSessions = prometheus.NewDesc("ripstop_session_records", "Session records this node knows.", nil, nil)
	descState    = prometheus.NewDesc("ripstop_sessions", "Sessions that this node knows, by state: active, their instance is there; waiting, it is gone.", []string{"state"}, nil)
	descAge      = prometheus.NewDesc("ripstop_session_records_pending_seconds", "Age of the oldest session record of this node that the bucket lacks; 0 if it lacks none.", nil, nil)
	descPending  = prometheus.NewDesc("ripstop_session_records_pending", "Session records of this node that the bucket lacks.", nil, nil)
)

func (c collector) parts() []prometheus.Collector {
	s := &c.k.stats
	return []prometheus.Collector{s.moves, s.took, s.cleaned}
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- descSessions
	out <- descPending
	out <- descState
	out <- descAge
	for _, p := range c.parts() {
		p.Describe(out)
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(descSessions, prometheus.GaugeValue, float64(c.k.store.Len()))
	out <- prometheus.MustNewConstMetric(descPending, prometheus.GaugeValue, float64(c.k.store.Pending()))
	c.states(out)
	for _, p := range c.parts() {
		p.Collect(out)
	}
}

func (c collector) states(out chan<- prometheus.Metric) {
	there := map[string]bool{}   // instances
	servers := map[string]bool{} // whose instances those are
	active, waiting := 0, 0
	c.k.store.Each(func(r *sessions.Record) bool {
		if !servers[r.Server] {
			servers[r.Server] = true
			for _, i := range c.k.opts.Registry.Instances(r.Server) {
				there[i.Instance] = true
			}
		}
		if there[r.Instance] {
			active++
		} else {
			waiting++
		}
		return true
	})
	age := 0.0
	if since := c.k.store.PendingSince(); !since.IsZero() {
		age = max(0, time.Since(since).Seconds())
	}
	out <- prometheus.MustNewConstMetric(descState, prometheus.GaugeValue, float64(active), "active")
	out <- prometheus.MustNewConstMetric(descState, prometheus.GaugeValue, float64(waiting), "waiting")
	out <- prometheus.MustNewConstMetric(descAge, prometheus.GaugeValue, age)
}
