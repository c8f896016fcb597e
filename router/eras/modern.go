package eras

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// ownInfo is how this package introduces itself where no client does.
const ownInfo = `{"name":"ripstop","version":"1"}`

// asking is what a modern request says of its client.
type asking struct {
	caps  []byte // raw object
	info  []byte // raw object, or nil
	level string // of the log messages wanted; "" = none
}

// serveModern answers a modern request for a server that only speaks the legacy
// era.
func (w *wrapper) serveModern(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	if m.Kind != jsonrpc.Request {
		return accepted(), nil // a stateless server has nothing to be notified of: closing the stream cancels
	}
	who, err := w.readMeta(m)
	if err != nil {
		return nil, err
	}
	switch m.Method {
	case "server/discover":
		return w.discover(ctx, req)
	case methodListen:
		return w.subscriptionsListen(ctx, req, out)
	case "initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		return nil, refuse(jsonrpc.CodeMethodNotFound, http.StatusNotFound, "method not found: %s is none of MCP %s", m.Method, router.Version20260728)
	case "tools/call", "prompts/get", "resources/read":
		if state := field(m.Params, keyState); state != nil {
			return w.resume(ctx, req, who, state, out)
		}
		if who.canBeAsked() || who.level != "" {
			return w.hold(ctx, req, who, out)
		}
	}
	return w.anonymous(ctx, req, out)
}

// readMeta checks the metadata every modern request carries (MCP 2026-07-28,
// "Per-request metadata").
func (w *wrapper) readMeta(m *jsonrpc.Message) (who asking, err error) {
	missing := func(key string) error {
		return refuse(jsonrpc.CodeInvalidParams, http.StatusBadRequest, "invalid params: missing or invalid _meta field %q", key)
	}
	meta := field(m.Params, "_meta")
	if m.Version == "" {
		return who, missing(jsonrpc.MetaVersion)
	}
	if m.Version != router.Version20260728 {
		return who, router.UnsupportedVersion(m.Version, []string{router.Version20260728})
	}
	if who.caps = field(meta, metaCapabilities); !isObject(who.caps) {
		return who, missing(metaCapabilities)
	}
	if who.info = field(meta, metaClientInfo); who.info != nil && !isObject(who.info) {
		return who, missing(metaClientInfo)
	}
	if level := text(field(meta, metaLogLevel)); slices.Contains(levels, level) {
		who.level = level
	}
	return who, nil
}

func (a *asking) canBeAsked() bool {
	return can(a.caps, "elicitation/create") || can(a.caps, "sampling/createMessage") || can(a.caps, "roots/list")
}

// legacyParams returns a modern request's params without what only 2026-07-28
// knows; nil if nothing is left.
func legacyParams(params []byte) []byte {
	if params == nil {
		return nil
	}
	params = without(params, keyResponses, keyState)
	meta := field(params, "_meta")
	if meta == nil {
		return params
	}
	meta = without(meta, jsonrpc.MetaVersion, metaClientInfo, metaCapabilities, metaLogLevel)
	rest := without(params, "_meta")
	if len(members(meta)) > 0 {
		return with(rest, member("_meta", meta))
	}
	return rest
}

// anonymous sends a request by the session that callers without capabilities
// share: the one of bare requests.
func (w *wrapper) anonymous(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	plain, err := jsonrpc.Parse(jsonrpc.NewRequest(m.ID, m.Method, legacyParams(m.Params)))
	if err != nil {
		return nil, err
	}
	bare := &router.Request{Server: req.Server, Era: router.EraBare, Message: plain, Principal: req.Principal}
	reply, err := w.inner.Serve(ctx, bare, silent{out})
	if err != nil {
		return nil, err
	}
	return w.modernReply(reply, m.Method, m.ID), nil
}

// silent lets through what belongs to the request: not what the session's other
// users, or nobody in this era, asked for.
type silent struct{ out router.Stream }

// Send implements [router.Stream].
func (s silent) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return s.out.Send(ctx, nil)
	}
	if m, err := jsonrpc.Parse(msg); err == nil && m.Kind == jsonrpc.Notification && ofRequest(m.Method) {
		return s.out.Send(ctx, msg)
	}
	return nil
}

// ofRequest reports whether a legacy server's notification may stand on the stream
// of a modern request that wants no log messages.
func ofRequest(method string) bool {
	switch method {
	case "notifications/message", methodUpdated, "notifications/cancelled":
		return false
	}
	return !slices.ContainsFunc(listChanges, func(c struct{ capability, key, method string }) bool { return c.method == method })
}

// cacheable reports whether results of method say how long they hold (MCP
// 2026-07-28, "Caching").
func cacheable(method string) bool {
	switch method {
	case "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read", "server/discover":
		return true
	}
	return false
}

// modernReply turns a legacy server's reply into a modern one.
func (w *wrapper) modernReply(reply *router.Reply, method string, id []byte) *router.Reply {
	if reply == nil { // ended without an answer
		return &router.Reply{}
	}
	own := *reply
	own.Status, own.Session = 0, ""
	m, err := jsonrpc.Parse(reply.Body)
	switch {
	case err != nil: // the edge will say what is wrong with it
	case m.Error != nil:
		own.Body = modernError(m, id)
	case m.Result != nil:
		own.Body = jsonrpc.NewResult(id, w.modernResult(m.Result, method))
	}
	return &own
}

func (w *wrapper) modernResult(raw []byte, method string) []byte {
	if !isObject(raw) {
		return raw
	}
	defaults := []jsonrpc.Member{quoted("resultType", "complete")}
	if cacheable(method) { // whatever a legacy server says: it can't mean what 2026-07-28 does
		raw = with(raw, member("ttlMs", []byte("0")), quoted("cacheScope", "private"))
	}
	if info := w.greets.info(); info != nil {
		meta := field(raw, "_meta")
		if meta == nil {
			defaults = append(defaults, member("_meta", build(member(metaServerInfo, info))))
		} else if isObject(meta) {
			raw = with(raw, member("_meta", withDefaults(meta, member(metaServerInfo, info))))
		}
	}
	return withDefaults(raw, defaults...)
}

// modernError returns an error response with the code that 2026-07-28 has for it:
// it no longer has one of its own for resources that are not there.
func modernError(m *jsonrpc.Message, id []byte) []byte {
	body := m.Error
	if errorCode(m) == -32002 {
		body = with(body, member("code", []byte("-32602")))
	}
	return append(append(append([]byte(`{"jsonrpc":"2.0","id":`), id...), `,"error":`...), append(slices.Clone(body), '}')...)
}

// greeting is what the server last answered to an initialize of this package's.
type greeting struct {
	mu     sync.Mutex
	result []byte
	at     time.Time
	probed []byte // serverInfo by Probe, or nil
}

// greetingHolds is how long a result of initialize answers server/discover.
const greetingHolds = time.Minute

func (g *greeting) set(result []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.result, g.at = slices.Clone(result), time.Now()
}

func (g *greeting) get() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.at) > greetingHolds {
		return nil
	}
	return g.result
}

// info returns the server's serverInfo, or nil.
func (g *greeting) info() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if info := field(g.result, "serverInfo"); isObject(info) {
		return info
	}
	return g.probed
}

func (g *greeting) know(info router.Info) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if info.Name != "" {
		g.probed = build(quoted("name", info.Name), quoted("version", info.Version))
	}
}

// greet returns a result of initialize that is not old.
func (w *wrapper) greet(ctx context.Context, server, principal string) ([]byte, error) {
	if hello := w.greets.get(); hello != nil {
		return hello, nil
	}
	s, err := w.pool.fresh(ctx, server, principal, &asking{caps: emptyObject})
	if err != nil {
		return nil, err
	}
	w.pool.put(s)
	if hello := w.greets.get(); hello != nil {
		return hello, nil
	}
	return nil, errors.New("the server's greeting is lost")
}

// discover answers server/discover from initialize.
func (w *wrapper) discover(ctx context.Context, req *router.Request) (*router.Reply, error) {
	hello, err := w.greet(ctx, req.Server, req.Principal)
	if err != nil {
		return nil, err
	}
	var versions []string
	if !w.opts.Fallback {
		versions = append(versions, router.Version20260728)
	}
	if v := text(field(hello, "protocolVersion")); v != "" {
		versions = append(versions, v)
	}
	caps := field(hello, "capabilities")
	if !isObject(caps) {
		caps = emptyObject
	}
	all := []jsonrpc.Member{
		member("supportedVersions", quotedList(versions)),
		member("capabilities", without(caps, "tasks")), // those of 2025-11-25 are others than the extension's
	}
	if says := field(hello, "instructions"); text(says) != "" {
		all = append(all, member("instructions", says))
	}
	return result(req.Message.ID, w.modernResult(build(all...), "server/discover")), nil
}
