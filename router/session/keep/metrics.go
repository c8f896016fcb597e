package keep

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stats counts what happened to sessions here.
type stats struct {
	moves   *prometheus.CounterVec
	took    prometheus.Histogram
	cleaned *prometheus.CounterVec
}

func newStats() stats {
	return stats{
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ripstop_session_moves_total", Help: "Sessions this node has moved to another instance, by cause.",
		}, []string{"cause"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ripstop_session_move_duration_seconds", Help: "Time from the decision to move a session until its record was written.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
		cleaned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ripstop_session_cleaned_total", Help: "Sessions this node has ended because nobody will ask for them again, and data of ended ones it removed.",
		}, []string{"kind"}),
	}
}

func (s *stats) moved(cause string, took time.Duration) {
	s.moves.WithLabelValues(cause).Inc()
	if took > 0 {
		s.took.Observe(took.Seconds())
	}
}

// Collector offers the counts to Prometheus.
func (k *Keep) Collector() prometheus.Collector { return collector{k} }

type collector struct{ k *Keep }

var (
	descSessions = prometheus.NewDesc("ripstop_session_records", "Session records this node knows.", nil, nil)
	descPending  = prometheus.NewDesc("ripstop_session_records_pending", "Session records of this node that the bucket lacks.", nil, nil)
)

func (c collector) parts() []prometheus.Collector {
	s := &c.k.stats
	return []prometheus.Collector{s.moves, s.took, s.cleaned}
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- descSessions
	out <- descPending
	for _, p := range c.parts() {
		p.Describe(out)
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(descSessions, prometheus.GaugeValue, float64(c.k.store.Len()))
	out <- prometheus.MustNewConstMetric(descPending, prometheus.GaugeValue, float64(c.k.store.Pending()))
	for _, p := range c.parts() {
		p.Collect(out)
	}
}
