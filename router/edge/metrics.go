package edge

import (
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// outcome labels how a request ended.
type outcome uint8

const (
	outcomeOK           outcome = iota
	outcomeRPCError             // the server answered with a JSON-RPC error
	outcomeRefused              // the edge or the fabric would not carry it (4xx)
	outcomeUnauthorized         // 401 or 403
	outcomeNotFound             // no such server
	outcomeNoSession            // the session ended, or never was
	outcomeUnavailable          // no instance answers, or the node drains
	outcomeUnknown              // it may or may not have been executed
	outcomeOverloaded           // a limit is reached
	outcomeTooLarge             //
	outcomeBackend              // the backend failed
	outcomeInternal             // the fabric failed (5xx)
	outcomeDisconnected         // the client did not wait for the answer
)

var outcomeNames = [...]string{"ok", "rpc_error", "refused", "unauthorized", "server_not_found", "session_not_found",
	"unavailable", "outcome_unknown", "overloaded", "too_large", "backend_error", "internal_error", "disconnected"}

var outcomeByCode = map[int]outcome{
	router.CodeServerNotFound:  outcomeNotFound,
	router.CodeSessionNotFound: outcomeNoSession,
	router.CodeUnavailable:     outcomeUnavailable,
	router.CodeOutcomeUnknown:  outcomeUnknown,
	router.CodeOverloaded:      outcomeOverloaded,
	router.CodeTooLarge:        outcomeTooLarge,
	router.CodeBackend:         outcomeBackend,
	router.CodeRefused:         outcomeRefused,
	router.CodeHeaderMismatch:  outcomeRefused,
}

// outcomeOf classifies an error by its JSON-RPC code and HTTP status.
func outcomeOf(status, code int) outcome {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return outcomeUnauthorized
	case outcomeByCode[code] != outcomeOK:
		return outcomeByCode[code]
	case status >= 500:
		return outcomeInternal
	}
	return outcomeRPCError
}

// methods are the JSON-RPC methods that metrics tell apart; what a client
// invents is "other", so that it can't fill the node's memory with labels.
var methods = map[string]bool{
	"initialize": true, "ping": true, "server/discover": true, "subscriptions/listen": true,
	"tools/list": true, "tools/call": true, "prompts/list": true, "prompts/get": true,
	"resources/list": true, "resources/templates/list": true, "resources/read": true,
	"resources/subscribe": true, "resources/unsubscribe": true, "completion/complete": true, "logging/setLevel": true,
	"tasks/list": true, "tasks/get": true, "tasks/result": true, "tasks/cancel": true, "tasks/update": true,
	"notifications/initialized": true, "notifications/cancelled": true, "notifications/progress": true,
	"notifications/roots/list_changed": true,
}

func methodLabel(m *jsonrpc.Message) string {
	switch {
	case m.Kind == jsonrpc.Response:
		return "response"
	case methods[m.Method]:
		return m.Method
	}
	return "other"
}

// maxSeries bounds the label combinations kept, should ever a handler answer
// for any server name.
const maxSeries = 4096

type series struct {
	server, method string
	era            era
	outcome        outcome
	timed          bool // the handler was called, and for something that ends
}

type counters struct {
	requests prometheus.Counter
	duration prometheus.Observer // nil if not timed
}

// metrics counts requests. Its collectors exist without a registerer too, so
// that nothing has to ask.
type metrics struct {
	inFlight prometheus.Gauge
	streams  prometheus.Gauge
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec

	mu   sync.RWMutex
	seen map[series]counters
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	m := &metrics{seen: make(map[series]counters)}
	m.requests = register(reg, log, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ripstop_http_requests_total",
		Help: "MCP requests over HTTP, by server, JSON-RPC method, protocol era and outcome.",
	}, []string{"server", "method", "era", "outcome"}))
	m.duration = register(reg, log, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "ripstop_http_request_duration_seconds",
		Help:    "Time from a request's head to the end of its answer, without streams that have no end of their own.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"server", "method"}))
	m.inFlight = register(reg, log, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ripstop_http_requests_in_flight",
		Help: "MCP requests being handled, streams included.",
	}))
	m.streams = register(reg, log, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ripstop_http_streams_open",
		Help: "Answers being sent as server-sent events.",
	}))
	return m
}

// register registers c, or returns the collector that another edge of this
// process has registered before.
func register[C prometheus.Collector](reg prometheus.Registerer, log *slog.Logger, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if had, ok := already.ExistingCollector.(C); ok {
			return had
		}
	}
	if err != nil {
		log.Error("register metrics", "error", err)
	}
	return c
}

// observe counts an exchange that is over. A server's name is a label only if
// the handler knows the server.
func (m *metrics) observe(x *exchange, o outcome) {
	s := series{server: "unknown", method: x.method, era: x.era, outcome: o, timed: x.called && !x.endless && x.kind != listening}
	if x.called && o != outcomeNotFound {
		s.server = x.req.Server
	}
	m.mu.RLock()
	c, ok := m.seen[s]
	m.mu.RUnlock()
	if !ok {
		c = m.counters(s)
	}
	c.requests.Inc()
	if s.timed {
		c.duration.Observe(time.Since(x.start).Seconds())
	}
}

func (m *metrics) counters(s series) counters {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) >= maxSeries {
		s.server, s.method = "unknown", "other"
	}
	c, ok := m.seen[s]
	if !ok {
		c.requests = m.requests.WithLabelValues(s.server, s.method, eraNames[s.era], outcomeNames[s.outcome])
		if s.timed {
			c.duration = m.duration.WithLabelValues(s.server, s.method)
		}
		m.seen[s] = c
	}
	return c
}
