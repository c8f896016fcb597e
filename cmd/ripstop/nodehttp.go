package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ripstop/failover"
	"ripstop/router/edge"
)

// serveHTTP offers the edge and the node's own pages on l.
func (n *node) serveHTTP(l net.Listener) error {
	s := n.settings
	users := n.guard.Authenticate
	if len(s.Users) == 0 {
		users = nil
	}
	n.edge = edge.New(edge.Options{
		Handler: n.guard, AllServers: allServers, Users: users,
		Token:          func() string { return *n.token.Load() },
		AllowedOrigins: s.AllowedOrigins, AllowedHosts: s.AllowedHosts,
		Logger: n.log, Metrics: n.metrics,
	})
	mux := http.NewServeMux()
	mux.Handle("/mcp", s.certified(n.edge))
	mux.Handle("/mcp/", s.certified(n.edge))
	mux.HandleFunc("GET /health", n.health)
	mux.HandleFunc("GET /ready", n.readiness)
	mux.Handle("GET /metrics", s.certified(promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{})))
	mux.HandleFunc("/", notFound)
	n.http = edge.NewServer(l.Addr().String(), mux)
	n.http.ErrorLog = slog.NewLogLogger(n.log.Handler(), slog.LevelDebug) // handshakes that fail
	n.httpURL = "http://" + reachable(l.Addr().String())
	serve := n.http.Serve
	if s.TLS != nil {
		n.httpURL = "https://" + reachable(l.Addr().String())
		n.http.TLSConfig = s.tlsConfig()
		serve = func(l net.Listener) error { return n.http.ServeTLS(l, "", "") }
	}
	n.wg.Go(func() {
		if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.failed <- fmt.Errorf("serve HTTP: %w", err)
		}
	})
	return nil
}

// reachable turns an address that listens on every interface into one that can
// be called from here.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "not found; MCP is at /mcp and /mcp/{server}, the node at /health, /ready and /metrics", http.StatusNotFound)
}

// state is what /health and /ready answer.
type state struct {
	Status  string   `json:"status"` // "ok", or what is wrong
	Node    string   `json:"node"`
	Region  string   `json:"region"`
	Mode    string   `json:"mode"` // standalone, voter or relay
	Gate    string   `json:"gate"` // writable, read_only or standalone: whether buckets can be written from here
	Version string   `json:"version"`
	Servers []string `json:"servers"`
	Nodes   []string `json:"nodes_up,omitempty"`
	Reason  string   `json:"reason,omitempty"`
}

func (n *node) state() (s state, gateErr error) {
	s = state{Status: "ok", Node: n.fabric.Name(), Region: n.fabric.Region(), Mode: "standalone", Version: buildVersion(), Servers: n.members()}
	s.Gate, gateErr = n.gate()
	if n.fabric.Clustered() {
		s.Mode = string(n.report().Role)
		for _, other := range n.nodes.Load().View() {
			if other.State == failover.Up {
				s.Nodes = append(s.Nodes, other.Name)
			}
		}
	}
	return s, gateErr
}

// health answers 200 while the node can do its work, 503 with a reason else: it
// is on the side of a partition that can't write, it reaches nobody, or its
// store has failed.
func (n *node) health(w http.ResponseWriter, _ *http.Request) {
	s, gateErr := n.state()
	if err := errors.Join(n.fabric.StorageError(), gateErr); err != nil {
		s.Status, s.Reason = "unhealthy", err.Error()
	}
	writeState(w, s)
}

// readiness answers 200 once the node has caught up and everything it hosts is
// registered, and 503 while it drains.
func (n *node) readiness(w http.ResponseWriter, _ *http.Request) {
	s, gateErr := n.state()
	switch waiting, lacks := n.unregistered(), n.catchingUp(); {
	case n.draining.Load():
		s.Status, s.Reason = "draining", "the node is shutting down"
	case gateErr != nil:
		s.Status, s.Reason = "starting", gateErr.Error()
	case lacks != "":
		s.Status, s.Reason = "starting", lacks
	case waiting != "":
		s.Status, s.Reason = "starting", "server "+waiting+" is not registered yet"
	}
	writeState(w, s)
}

// unregistered names a server of this node's own that is not in the registry
// yet; "" if there is none.
func (n *node) unregistered() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.agents {
		select {
		case <-a.Registered():
		default:
			return a.Server()
		}
	}
	return ""
}

func writeState(w http.ResponseWriter, s state) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if s.Status != "ok" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(s) // the client is gone if this fails
}
