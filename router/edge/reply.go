package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

var (
	typeJSON   = []string{"application/json"}
	retryAfter = []string{"1"}
)

// settle turns what the handler returned into the reply a client sees.
func (x *exchange) settle(ctx context.Context, id []byte, reply *router.Reply, err error) *router.Reply {
	if err != nil {
		return x.errorReply(ctx, id, err)
	}
	if reply == nil {
		reply = &router.Reply{}
	}
	if len(reply.Body) != 0 || x.kind == oneway && reply.Status < 400 || x.kind == listening && reply.Status < 400 {
		return reply
	}
	if reply.Status < 400 {
		lost := router.ErrorReply(id, router.Errorf(router.ErrOutcomeUnknown, "server %q ended the request without a response; it may have been carried out", x.req.Server))
		lost.Stream = reply.Stream
		return lost
	}
	failed := router.Errorf(router.ErrBackend, "server %q answered with HTTP status %d and no message", x.req.Server, reply.Status)
	failed.Status = reply.Status
	return router.ErrorReply(id, failed)
}

// errorReply makes a reply of an error. One that only says that the context
// ended is replaced by what a client can act on.
func (x *exchange) errorReply(ctx context.Context, id []byte, err error) *router.Reply {
	var known *router.Error
	if errors.As(err, &known) {
		return router.ErrorReply(id, err)
	}
	switch cause := context.Cause(ctx); {
	case cause == errDraining && x.kind == listening:
		return &router.Reply{}
	case cause == errAborted && x.canResume():
		return &router.Reply{} // its client finds the rest at another node
	case cause == errDraining:
		err = router.Errorf(router.ErrUnavailable, "this node is shutting down; subscribe again, another node will answer")
	case cause == errAborted:
		err = router.Errorf(router.ErrOutcomeUnknown, "this node shut down before server %q answered; the request may have been carried out", x.req.Server)
	case cause == nil:
		x.edge.log.Error("request failed", "server", x.req.Server, "method", x.method, "error", err)
	}
	return router.ErrorReply(id, err)
}

// finish answers with a settled reply.
func (x *exchange) finish(reply *router.Reply) {
	streaming, gone := x.close()
	switch {
	case gone:
		x.edge.metrics.observe(x, outcomeDisconnected)
	case streaming || (len(x.held) != 0 || reply.Stream) && x.streamable(reply):
		x.finishStream(reply)
	default:
		x.answer(reply)
	}
}

// streamable reports whether a reply may still become a stream, which has status
// 200.
func (x *exchange) streamable(reply *router.Reply) bool {
	return (x.kind == call || x.kind == opening) && len(reply.Body) != 0 && x.status(reply) == http.StatusOK
}

// status is the HTTP status of a reply that has a body.
func (x *exchange) status(reply *router.Reply) int {
	if reply.Status >= 200 && reply.Status <= 599 {
		return reply.Status
	}
	if code, failed := errorCode(reply.Body); failed && x.era == eraModern {
		return modernStatus(code)
	}
	return http.StatusOK
}

// finishStream sends the last event. It is not flushed: net/http sends it with
// the end of the body, in one write.
func (x *exchange) finishStream(reply *router.Reply) {
	if !x.streaming {
		x.openStream(reply.Session)
		x.edge.metrics.streams.Dec() // close is done already
	}
	for _, msg := range x.held {
		if x.writeEvent("", msg) != nil {
			break
		}
	}
	result := outcomeOK
	if code, failed := errorCode(reply.Body); failed {
		result = outcomeOf(0, code)
	}
	// A GET stream just ends: an error there would answer no request.
	if len(reply.Body) != 0 && x.kind != listening && x.writeEvent(reply.EventID, reply.Body) != nil {
		result = outcomeDisconnected
	}
	x.edge.metrics.observe(x, result)
}

// answer writes a reply that no stream precedes.
func (x *exchange) answer(reply *router.Reply) {
	h := x.w.Header()
	if reply.Session != "" {
		h[hdrSession] = []string{reply.Session}
	}
	body, status := reply.Body, reply.Status
	switch {
	case x.kind == oneway && status < 400:
		body = nil // there is nothing to answer
		if status < 200 || status >= 300 {
			status = http.StatusAccepted
			if x.req.Op == router.OpEnd {
				status = http.StatusNoContent
			}
		}
	case x.kind == listening && status < 400 && len(body) == 0:
		h["Content-Type"], h["Cache-Control"], h["X-Accel-Buffering"] = typeSSE, cacheSSE, noBuffering
		status = http.StatusOK
	case len(body) == 0: // a batch of nothing but notifications
		status = http.StatusAccepted
	default:
		status = x.status(reply)
	}
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h["Retry-After"] = retryAfter
	}
	result := outcomeOK
	if code, failed := errorCode(body); failed || status >= 400 {
		result = outcomeOf(status, code)
	}
	if result == outcomeRPCError && !x.called {
		result = outcomeRefused
	}
	if x.writeBody(status, body) != nil {
		result = outcomeDisconnected
	}
	x.edge.metrics.observe(x, result)
}

func (x *exchange) writeBody(status int, body []byte) error {
	if len(body) == 0 {
		x.w.WriteHeader(status)
		return nil
	}
	h := x.w.Header()
	h["Content-Type"] = typeJSON
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	x.w.WriteHeader(status)
	return x.write(body)
}

// refuse answers a request that never reached the handler.
func (x *exchange) refuse(err error) {
	if x.unread {
		// net/http reads the body before it answers, so that a client that
		// sends all before it reads is not cut off.
		_ = x.rc.SetReadDeadline(time.Now().Add(unreadTimeout))
	}
	x.kind = call
	x.answer(router.ErrorReply(x.id(), err))
}

// modernStatus is the HTTP status of an error (MCP 2026-07-28, Streamable HTTP;
// -32602 as in go-sdk).
func modernStatus(code int) int {
	switch code {
	case jsonrpc.CodeMethodNotFound:
		return http.StatusNotFound
	case jsonrpc.CodeParse, jsonrpc.CodeInvalidRequest, jsonrpc.CodeInvalidParams,
		router.CodeHeaderMismatch, router.CodeMissingCapability, router.CodeUnsupportedVersion:
		return http.StatusBadRequest
	}
	return http.StatusOK
}

// errorCode reports whether a response is an error, and its code. It reads no
// further than the first of "result" and "error", which is what makes it cheap
// enough for every reply.
func errorCode(body []byte) (code int, failed bool) {
	rest := skipSpace(body)
	if len(rest) == 0 || rest[0] != '{' {
		return 0, false
	}
	for {
		rest = skipSpace(rest[1:]) // the brace or comma
		key, after := cutString(rest)
		rest = skipSpace(after)
		if len(rest) == 0 || rest[0] != ':' {
			return slowErrorCode(body)
		}
		rest = skipSpace(rest[1:])
		switch {
		case string(key) == `"result"`:
			return 0, false
		case string(key) == `"error"`:
			return slowErrorCode(body)
		case len(rest) != 0 && rest[0] == '"':
			_, rest = cutString(rest)
		default:
			rest = rest[scalarEnd(rest):]
		}
		rest = skipSpace(rest)
		if len(rest) == 0 || rest[0] != ',' {
			return slowErrorCode(body)
		}
	}
}

// slowErrorCode is errorCode for errors and for what is written in a way that
// errorCode does not know.
func slowErrorCode(body []byte) (code int, failed bool) {
	m, err := jsonrpc.Parse(body)
	if err != nil || m.Error == nil {
		return 0, false
	}
	var e struct{ Code int }
	_ = json.Unmarshal(m.Error, &e) // no code = 0: still an error
	return e.Code, true
}

func skipSpace(b []byte) []byte {
	for len(b) != 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\r' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// cutString cuts a JSON string without escapes, quotes included, off b. It
// returns nothing if there is none.
func cutString(b []byte) (str, rest []byte) {
	if len(b) < 2 || b[0] != '"' {
		return nil, nil
	}
	end := bytes.IndexByte(b[1:], '"')
	if end < 0 || bytes.IndexByte(b[1:1+end], '\\') >= 0 {
		return nil, nil
	}
	return b[:end+2], b[end+2:]
}

// scalarEnd returns where a number or literal ends; 0 for anything else.
func scalarEnd(b []byte) int {
	for i, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '-' && c != '+' && c != '.' && c != 'E' {
			return i
		}
	}
	return len(b)
}

func stack() string { return string(debug.Stack()) }
