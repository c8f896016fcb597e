package eras

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Keys of _meta and params (MCP 2026-07-28, "Per-request metadata").
const (
	metaClientInfo   = "io.modelcontextprotocol/clientInfo"
	metaCapabilities = "io.modelcontextprotocol/clientCapabilities"
	metaLogLevel     = "io.modelcontextprotocol/logLevel"
	metaServerInfo   = "io.modelcontextprotocol/serverInfo"
	metaSubscription = "io.modelcontextprotocol/subscriptionId"

	keyRequests  = "inputRequests"
	keyResponses = "inputResponses"
	keyState     = "requestState"
)

var (
	emptyObject = []byte("{}")
	levels      = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"} // least severe first (RFC 5424)
)

// session is a legacy client's session with a server that knows none.
type session struct {
	w         *wrapper
	id        string
	server    string
	principal string
	caps      []byte // what the client can do, raw JSON
	info      []byte // its clientInfo, or nil
	offers    offers

	uses atomic.Int32 // requests and streams
	used atomic.Int64 // when the last of them ended, Unix nanoseconds

	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	mail   mailbox
	follow follow

	mu      sync.Mutex
	level   []byte             // of logging/setLevel, raw JSON
	flights map[string]*flight // by the client's id
	asks    map[string]chan *jsonrpc.Message
	lastAsk int64
}

// flight is a request of the client's in flight.
type flight struct {
	cancel    context.CancelFunc
	cancelled bool // by the client; guarded by session.mu
}

// offers is what of a server's capabilities this package acts on.
type offers struct {
	lists     []string // keys of subscriptions/listen
	subscribe bool
	logging   bool
}

// listChanges are the notifications of lists, by the key of subscriptions/listen
// that asks for them.
var listChanges = []struct{ capability, key, method string }{
	{"tools", "toolsListChanged", "notifications/tools/list_changed"},
	{"prompts", "promptsListChanged", "notifications/prompts/list_changed"},
	{"resources", "resourcesListChanged", "notifications/resources/list_changed"},
}

func offersOf(capabilities []byte) (o offers) {
	for _, l := range listChanges {
		if string(field(capabilities, l.capability, "listChanged")) == "true" {
			o.lists = append(o.lists, l.key)
		}
	}
	o.subscribe = string(field(capabilities, "resources", "subscribe")) == "true"
	o.logging = isObject(field(capabilities, "logging"))
	return o
}

// initialize answers a legacy client's initialize from server/discover.
func (w *wrapper) initialize(ctx context.Context, req *router.Request) (*router.Reply, error) {
	if err := w.admit(); err != nil {
		return nil, err
	}
	defer w.admitted()
	m := req.Message
	s := &session{w: w, server: req.Server, principal: req.Principal, caps: emptyObject, info: slices.Clone(field(m.Params, "clientInfo"))}
	if caps := field(m.Params, "capabilities"); isObject(caps) {
		s.caps = slices.Clone(caps)
	}
	version := text(field(m.Params, "protocolVersion"))
	if !slices.Contains(router.LegacyVersions, version) {
		version = router.LegacyVersions[0]
	}
	found, err := s.discover(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	body, err := initializeResult(found, version, req.Server)
	if err != nil {
		return nil, err
	}
	s.offers = offersOf(field(body, "capabilities"))
	s.ctx, s.cancel = context.WithCancel(w.ctx)
	s.mail.init()
	s.follow.s = s
	if !w.keep(s) {
		s.cancel()
		return nil, w.errClosing()
	}
	reply := result(m.ID, body)
	reply.Session = s.id
	return reply, nil
}

// discover asks the server what it is, as this client.
func (s *session) discover(ctx context.Context, id []byte) ([]byte, error) {
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(id, "server/discover", nil))
	if err != nil {
		return nil, err
	}
	m, err = jsonrpc.Parse(m.WithParamsMeta(s.meta()...))
	if err != nil {
		return nil, err
	}
	answer, err := answered(s.w.inner.Serve(ctx, s.request(m), router.Discard))
	var e *router.Error
	if errors.As(err, &e) && (e.Code == router.CodeUnsupportedVersion || e.Code == jsonrpc.CodeMethodNotFound) {
		s.w.forget()
		return nil, router.Errorf(router.ErrBackend, "server %q no longer speaks MCP %s: %s; nothing was executed, initialize again", s.server, router.Version20260728, e.Text)
	}
	if err != nil {
		return nil, err
	}
	return answer.Result, nil
}

// initializeResult makes a result of initialize of one of server/discover. What
// only 2026-07-28 knows is left out.
func initializeResult(found []byte, version, server string) ([]byte, error) {
	caps := field(found, "capabilities")
	if !isObject(caps) {
		return nil, router.Errorf(router.ErrBackend, "server %q answered server/discover without capabilities", server)
	}
	info := field(found, "_meta", metaServerInfo)
	if !isObject(info) {
		info = field(found, "serverInfo")
	}
	if !isObject(info) {
		info = build(quoted("name", server), quoted("version", ""))
	}
	all := []jsonrpc.Member{
		quoted("protocolVersion", version),
		member("capabilities", without(caps, "extensions")),
		member("serverInfo", info),
	}
	if says := field(found, "instructions"); text(says) != "" {
		all = append(all, member("instructions", says))
	}
	return build(all...), nil
}

// meta returns the metadata of the session's requests.
func (s *session) meta() []jsonrpc.Member {
	s.mu.Lock()
	level := s.level
	s.mu.Unlock()
	all := []jsonrpc.Member{quoted(jsonrpc.MetaVersion, router.Version20260728), member(metaCapabilities, s.caps)}
	if isObject(s.info) {
		all = append(all, member(metaClientInfo, s.info))
	}
	if level != nil {
		all = append(all, member(metaLogLevel, level))
	}
	return all
}

// request returns a modern request of the session's.
func (s *session) request(m *jsonrpc.Message) *router.Request {
	return &router.Request{
		Server: s.server, Era: router.EraModern, Version: router.Version20260728,
		Message: m, Principal: s.principal,
	}
}

// serve takes whatever comes for the session.
func (s *session) serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	switch req.Op {
	case router.OpEnd:
		s.w.end(s)
		return &router.Reply{Status: http.StatusNoContent}, nil
	case router.OpListen:
		return s.listen(ctx, out)
	}
	m := req.Message
	if m == nil {
		return nil, errors.New("request without a message")
	}
	switch m.Kind {
	case jsonrpc.Response:
		s.answer(m)
		return accepted(), nil
	case jsonrpc.Notification: // what else a client may say has no counterpart in 2026-07-28
		if m.Method == "notifications/cancelled" {
			s.cancelled(m.CancelID)
		}
		return accepted(), nil
	}
	ctx, f, err := s.begin(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	defer s.finish(m.ID, f)
	reply, err := s.handle(ctx, req, out)
	s.mu.Lock()
	cancelled := f.cancelled
	s.mu.Unlock()
	switch {
	case cancelled: // and so not to be answered
		return &router.Reply{}, nil
	case err != nil && s.ctx.Err() != nil && s.w.ctx.Err() == nil:
		return nil, router.Errorf(router.ErrSessionNotFound, "session %q has ended; send initialize again", s.id)
	}
	return reply, err
}

// begin makes a request known, so that it can be cancelled.
func (s *session) begin(ctx context.Context, id []byte) (context.Context, *flight, error) {
	ctx, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(s.ctx, cancel)
	f := &flight{cancel: func() { unlink(); cancel() }}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights == nil {
		s.flights = map[string]*flight{}
	}
	if s.flights[string(id)] != nil {
		f.cancel()
		return nil, nil, refuse(jsonrpc.CodeInvalidRequest, http.StatusBadRequest, "invalid request: id %.64s is in flight already", id)
	}
	s.flights[string(id)] = f
	return ctx, f, nil
}

func (s *session) finish(id []byte, f *flight) {
	f.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flights, string(id))
}

func (s *session) cancelled(id []byte) {
	s.mu.Lock()
	f := s.flights[string(id)]
	if f != nil {
		f.cancelled = true
	}
	s.mu.Unlock()
	if f != nil {
		f.cancel()
	}
}

func (s *session) handle(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	switch m.Method {
	case "ping":
		return result(m.ID, emptyObject), nil
	case "initialize":
		return nil, refuse(jsonrpc.CodeInvalidRequest, http.StatusBadRequest, "invalid request: this session is initialized already")
	case "logging/setLevel":
		return s.setLevel(m)
	case "resources/subscribe", "resources/unsubscribe":
		return s.subscribe(ctx, m)
	}
	if err := s.mail.flush(ctx, out); err != nil {
		return nil, err
	}
	return s.call(ctx, req, out)
}

func (s *session) setLevel(m *jsonrpc.Message) (*router.Reply, error) {
	level := field(m.Params, "level")
	switch {
	case !s.offers.logging:
		return nil, refuse(jsonrpc.CodeMethodNotFound, http.StatusOK, "method not found: this server logs nothing to clients")
	case !slices.Contains(levels, text(level)):
		return nil, refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: unknown log level %.40s; use one of %v", level, levels)
	}
	s.mu.Lock()
	s.level = slices.Clone(level)
	s.mu.Unlock()
	return result(m.ID, emptyObject), nil
}

// can reports whether a client with these capabilities may be asked method.
func can(caps []byte, method string) bool {
	switch method {
	case "elicitation/create":
		return isObject(field(caps, "elicitation"))
	case "sampling/createMessage":
		return isObject(field(caps, "sampling"))
	case "roots/list":
		return isObject(field(caps, "roots"))
	}
	return false
}
