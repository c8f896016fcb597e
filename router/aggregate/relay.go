package aggregate

import (
	"bytes"
	"context"
	"slices"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// relay takes what a member sends before its reply, and passes it on as the
// aggregate's.
type relay struct {
	b      *Backend
	server string
	out    router.Stream

	// ask returns the member's request to the client (sampling, elicitation,
	// roots) as the client gets it, or nil if there is nobody to ask. A nil ask
	// drops requests.
	ask func(m *jsonrpc.Message) []byte
	// withdraw likewise for the member's cancellation of one.
	withdraw func(m *jsonrpc.Message) []byte

	// For members called in another era than the client's:
	token   []byte // the client's own progress token; nil = it is unchanged
	atLeast string // the least severe log message wanted; "" = all
	silent  bool   // no log messages wanted
}

var _ router.Stream = (*relay)(nil)

// Send implements router.Stream.
func (r *relay) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return r.out.Send(ctx, msg) // a sign of life
	}
	m, err := jsonrpc.Parse(msg)
	if err != nil {
		r.b.log.Warn("message dropped: it can't be read", "server", r.server, "err", err)
		return nil
	}
	if body := r.rewrite(m); body != nil {
		return r.out.Send(ctx, body)
	}
	return nil
}

func (r *relay) rewrite(m *jsonrpc.Message) []byte {
	switch {
	case m.Kind == jsonrpc.Response:
		return nil // a response is a reply, never before it
	case m.Kind == jsonrpc.Request:
		if r.ask == nil {
			return nil
		}
		return r.ask(m)
	}
	switch m.Method {
	case "notifications/cancelled":
		if r.withdraw == nil {
			return nil
		}
		return r.withdraw(m)
	case "notifications/progress":
		if r.token != nil {
			return m.Edit(jsonrpc.Edit{ProgressToken: r.token})
		}
	case "notifications/message":
		if r.silent || r.atLeast != "" && !severe(m, r.atLeast) {
			return nil
		}
	}
	return rewriteNotification(r.server, m)
}

// levels of log messages, least severe first (RFC 5424).
var levels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}

// severe reports whether a log message is at least as severe as level.
func severe(m *jsonrpc.Message, level string) bool {
	e := edit(m.Raw)
	own, _ := e.str(e.field(e.root(), "params", "level"))
	return slices.Index(levels, own) >= slices.Index(levels, level)
}

// internal returns a request or notification of the backend's own; method and
// params come from this package.
func internal(id []byte, method string, params []byte) *jsonrpc.Message {
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(id, method, params))
	if err != nil {
		panic("aggregate: own message can't be read: " + err.Error())
	}
	return m
}

// hasInputRequired reports whether a reply asks the client for input (MCP
// 2026-07-28, multi round-trip requests).
func hasInputRequired(body []byte) bool {
	if !bytes.Contains(body, []byte(`"input_required"`)) {
		return false
	}
	m, err := jsonrpc.Parse(body)
	if err != nil || m.Result == nil {
		return false
	}
	e := edit(m.Result)
	kind, _ := e.str(e.field(e.root(), "resultType"))
	return kind == "input_required"
}
