// Package edge is where ordinary MCP clients come in: Streamable HTTP on
// /mcp/{server}, and on /mcp for all servers as one. It turns every HTTP
// request into [router.Request]s for one [router.Handler], and what that
// handler sends back into HTTP.
//
// The era (MCP 2026-07-28, or 2025-11-25 and older) is decided for each request
// by its own headers and body, never for a connection: see era.go. How an
// answer becomes JSON or a stream of server-sent events is in exchange.go, and
// what becomes of a stream that lasts as long as its client in long.go.
//
// A client that disconnects cancels its request in the modern era, and ends
// its stream in both. In the legacy era a disconnect is not a cancel (MCP
// 2025-11-25, transports, "Sending Messages to the Server"): the edge lets go of
// the call, and the session layer (router/session) keeps it going, and its
// messages for the client to come back for.
package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ripstop/router"
)

// Limits and times. Those of the answer count for each write or pause, so that
// a stream may last for ever.
const (
	DefaultMaxBody = 16 << 20 // bytes; MCP SDKs accept messages of up to 4 to 16 MiB

	maxBatch   = 100 // messages in one batch
	maxSession = 256 // bytes of Mcp-Session-Id; ids are 37, those of other servers below 100
	maxEventID = 1024

	bodyTimeout   = 30 * time.Second // for each bodyStep bytes of a request body
	bodyStep      = 64 << 10
	unreadTimeout = 5 * time.Second  // for the body of a request that is refused without it
	writeTimeout  = 30 * time.Second // for each writeStep bytes of an answer
	writeStep     = 256 << 10

	listenGrace    = 50 * time.Millisecond // how long a GET stays undecided when the handler neither fails nor says it is open
	firstKeepalive = 3 * time.Second       // below the shortest client timeout known (5 s)
	keepalive      = 15 * time.Second      // below the usual 30 to 60 s of proxies
	abortGrace     = 2 * time.Second       // how long Shutdown waits for calls that it cancelled
)

// Options configure an Edge. They are not changed after New.
type Options struct {
	// Handler gets every request. Required.
	Handler router.Handler

	// AllServers is the server name that /mcp, without a name, stands for. If
	// empty, /mcp answers 404.
	AllServers string

	// Token returns the bearer token that clients must send; if it is nil or
	// returns "", none is needed. It is called for each request, so that a
	// token can be changed while running.
	Token func() string

	// Users returns whom a bearer token other than Token's belongs to, which
	// becomes [router.Request.Principal]. While it is not nil, a token is
	// needed.
	Users func(token string) (name string, ok bool)

	// AllowedOrigins are the browser origins ("https://app.example.com") that
	// may call, beyond those on loopback when the request arrives there; "*"
	// allows any. A request without an Origin is no browser's.
	AllowedOrigins []string

	// AllowedHosts are the Host values ("mcp.local", any port, or
	// "mcp.local:8080") taken beyond localhost where requests arrive on a
	// loopback address; elsewhere Host is not checked.
	AllowedHosts []string

	// Loopback says that requests arrive on a loopback address even if their
	// local address does not show it, as behind a proxy or on a Unix socket.
	Loopback bool

	// MaxBody is the largest request body in bytes; if zero, DefaultMaxBody.
	MaxBody int64

	// Logger gets what no client hears of; if nil, nothing is logged.
	Logger *slog.Logger

	// Metrics takes the ripstop_http_* collectors; if nil, none are kept.
	Metrics prometheus.Registerer
}

// Edge serves MCP's Streamable HTTP transport. It is an [http.Handler] for /mcp
// and everything below.
type Edge struct {
	handler    router.Handler
	allServers string
	token      func() string
	users      func(token string) (name string, ok bool)
	origins    map[string]bool
	hosts      map[string]bool
	loopback   bool
	maxBody    int64
	log        *slog.Logger
	metrics    *metrics
	flights    flights
}

var _ http.Handler = (*Edge)(nil)

// New returns an Edge. It panics without a handler.
func New(o Options) *Edge {
	if o.Handler == nil {
		panic("edge: New without a Handler")
	}
	e := &Edge{
		handler: o.Handler, allServers: o.AllServers, token: o.Token, users: o.Users, loopback: o.Loopback,
		origins: lowerSet(o.AllowedOrigins), hosts: lowerSet(o.AllowedHosts),
		maxBody: o.MaxBody, log: o.Logger,
	}
	if e.maxBody <= 0 {
		e.maxBody = DefaultMaxBody
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.flights.idle = make(chan struct{})
	e.metrics = newMetrics(o.Metrics, e.log)
	return e
}

// NewServer returns an HTTP server with the timeouts an edge needs. It has no
// ReadTimeout and no WriteTimeout, since streams may last for ever: the edge
// sets a deadline for every read of a body and every write of an answer.
func NewServer(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
}

// ServeHTTP answers one request.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := newExchange(e, w, r)
	if r.ContentLength != 0 {
		x.unread = true
		_ = x.rc.SetReadDeadline(x.start.Add(bodyTimeout)) // not supported = no deadline
	}
	if err := e.admit(x, r); err != nil {
		x.refuse(err)
		return
	}
	var err error
	switch r.Method {
	case http.MethodPost:
		err = e.post(x, r)
	case http.MethodGet:
		err = e.get(x, r)
	case http.MethodDelete:
		err = e.delete(x, r)
	case http.MethodOptions:
		x.preflight(r)
	default:
		x.w.Header()["Allow"] = allowAll
		err = refused(http.StatusMethodNotAllowed, "method %.20q is not part of MCP; use POST, GET or DELETE", r.Method)
	}
	if err != nil {
		x.refuse(err)
	}
}

// route sets the server that the path names.
func (e *Edge) route(x *exchange, path string) error {
	rest, ok := strings.CutPrefix(path, "/mcp")
	if !ok || rest != "" && rest[0] != '/' {
		return router.Errorf(router.ErrServerNotFound, "no MCP server at %.100q; use /mcp/{server}", path)
	}
	name := strings.TrimSuffix(strings.TrimPrefix(rest, "/"), "/")
	if name == "" {
		if e.allServers == "" {
			return router.Errorf(router.ErrServerNotFound, "no server is served at /mcp; use /mcp/{server}")
		}
		x.req.Server = e.allServers
		return nil
	}
	if err := router.CheckServerName(name); err != nil {
		return router.Errorf(router.ErrServerNotFound, "%.300s", err.Error())
	}
	x.req.Server = name
	return nil
}

// get opens the legacy session's own stream.
func (e *Edge) get(x *exchange, r *http.Request) error {
	if isModern(first(r.Header, hdrVersion)) {
		x.w.Header()["Allow"] = allowPost
		return refused(http.StatusMethodNotAllowed, "MCP %s has no GET stream; use POST subscriptions/listen", router.Version20260728)
	}
	if _, sse := accepts(r.Header["Accept"]); !sse {
		return refused(http.StatusNotAcceptable, "Accept must admit text/event-stream for GET")
	}
	x.kind, x.req.Op, x.method = listening, router.OpListen, "listen"
	discardBody(r)
	if err := e.legacySession(x, r, "GET"); err != nil {
		return err
	}
	x.req.LastEventID = first(r.Header, hdrLastEventID)
	if len(x.req.LastEventID) > maxEventID || !visible(x.req.LastEventID, 0x20) {
		return refused(http.StatusBadRequest, "Last-Event-ID must be up to %d printable ASCII characters", maxEventID)
	}
	return x.runLong(r)
}

// delete ends a legacy session.
func (e *Edge) delete(x *exchange, r *http.Request) error {
	if isModern(first(r.Header, hdrVersion)) {
		x.w.Header()["Allow"] = allowPost
		return refused(http.StatusMethodNotAllowed, "MCP %s has no sessions to DELETE", router.Version20260728)
	}
	x.kind, x.req.Op, x.method = oneway, router.OpEnd, "end"
	discardBody(r)
	if err := e.legacySession(x, r, "DELETE"); err != nil {
		return err
	}
	return x.run()
}

// legacySession reads the headers that GET and DELETE share.
func (e *Edge) legacySession(x *exchange, r *http.Request, method string) error {
	x.era = eraLegacy
	var err error
	if x.req.Version, err = version(r.Header); err != nil {
		return err
	}
	if err := checkLegacyVersion(x.req.Version); err != nil {
		return err
	}
	if x.req.Session, err = session(r.Header); err != nil {
		return err
	}
	if x.req.Session == "" {
		return refused(http.StatusBadRequest, "%s needs the Mcp-Session-Id header that the answer to initialize gave", method)
	}
	return nil
}

// refused is an error that no JSON-RPC code but the fabric's own fits.
func refused(status int, format string, args ...any) *router.Error {
	err := router.Errorf(router.ErrRefused, format, args...)
	err.Status = status
	return err
}

// call runs the handler, and makes of a panic the internal error it is: one bad
// message must not take the node's other clients along.
func (e *Edge) call(ctx context.Context, req *router.Request, out router.Stream) (reply *router.Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("handler panicked", "server", req.Server, "method", req.Method(), "panic", p, "stack", stack())
			reply, err = nil, errPanicked
		}
	}()
	return e.handler.Serve(ctx, req, out)
}

var errPanicked = errors.New("internal error: the handler failed; its node's log says why")
