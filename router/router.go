// Package router carries MCP over NATS: from the edge where a client comes in,
// through the choice of an instance, to the agent whose backend answers.
//
//	client ─ edge ──▶ Router ──▶ agent ──▶ backend (stdio child, HTTP upstream, Go server)
//	         (router/edge)   │   (router/agent)   (router/stdio, router/upstream)
//	                         └──▶ wire.Client ─ NATS ─▶ agent elsewhere
//
// Everything on that way is a [Handler]: an edge calls one, the [Router] is one
// and picks the next, a [Backend] is the last. So an instance attached to the
// edge's own node is called in process, and one elsewhere through NATS, by the
// same code.
//
// Where to look: a request enters in router/edge (HTTP), router/bridge (stdio)
// or router/agent (NATS subjects); it is routed in route.go; what is on the
// wire is in router/wire and docs/wire.md.
package router

import (
	"context"
	"encoding/json"

	"ripstop/router/jsonrpc"
)

// Op is what a client asks of a server, after the three HTTP methods of MCP's
// Streamable HTTP transport.
type Op uint8

// The operations.
const (
	OpMessage Op = iota // one JSON-RPC message (POST)
	OpListen            // the legacy session's own stream (GET)
	OpEnd               // end the legacy session (DELETE)
)

// Era is the protocol generation one request belongs to. It is decided for each
// request, never for a connection.
type Era uint8

// The eras.
const (
	EraLegacy Era = iota // 2025-11-25 and older: initialize, sessions
	EraModern            // 2026-07-28: stateless, metadata in every request
	EraBare              // neither a session nor modern metadata: one-shot, over NATS; the agent does any handshake
)

func (e Era) String() string {
	return [...]string{"legacy", "modern", "bare"}[e]
}

// Protocol versions, newest first, as the fabric knows them.
const (
	Version20260728 = "2026-07-28"
	Version20251125 = "2025-11-25"
	Version20250618 = "2025-06-18"
	Version20250326 = "2025-03-26"
	Version20241105 = "2024-11-05"
)

// LegacyVersions are the versions with sessions, newest first.
var LegacyVersions = []string{Version20251125, Version20250618, Version20250326, Version20241105}

// Request is one client message on its way to an instance. Handlers treat it as
// read-only.
type Request struct {
	Op       Op
	Server   string // logical server name
	Instance string // the instance it must reach; "" = any that is alive
	Session  string // Mcp-Session-Id; "" = none
	Era      Era
	Version  string // MCP-Protocol-Version exactly as the client sent it; "" = absent

	// Message is the JSON-RPC message of OpMessage; nil otherwise.
	Message *jsonrpc.Message

	Epoch       uint64            // of Session, as far as the sender knows; 0 = unknown
	StreamID    string            // of a legacy call whose messages may be asked for again by event id, see [EventStream]; "" = not
	LastEventID string            // OpListen: resume after this event; "" = from now
	Params      map[string]string // Mcp-Param-* headers as received, by canonical header name
	Principal   string            // who the edge says the caller is; "" = anonymous
}

// Anybody is the Principal of a caller with the token that all share.
const Anybody = "bearer"

// ID returns the raw id of the request's message, or nil.
func (r *Request) ID() []byte {
	if r.Message == nil {
		return nil
	}
	return r.Message.ID
}

// Method returns the JSON-RPC method, or "".
func (r *Request) Method() string {
	if r.Message == nil {
		return ""
	}
	return r.Message.Method
}

// Stream takes the messages that come before a reply: notifications, progress,
// and requests from the server to the client (sampling, elicitation, roots).
type Stream interface {
	// Send passes one JSON-RPC message towards the client. Messages arrive in
	// the order sent, before the reply. Send may block while the client is
	// slow, and fails when the client is gone; the handler should then stop.
	// It is safe for concurrent use, and keeps no reference to msg.
	//
	// An empty msg carries no message: it says that the stream is open, so
	// that an edge may answer the client before there is anything to send. A
	// handler of OpListen sends it as soon as it knows that it won't fail.
	Send(ctx context.Context, msg []byte) error
}

// EventStream is a Stream that knows events by id, so that its client can resume
// it elsewhere (MCP 2025-11-25, transports, "Resumability and Redelivery").
type EventStream interface {
	Stream

	// SendEvent is Send for a message with an event id. Without a message it
	// gives the id that stands before the first: where to resume from before
	// anything was sent.
	SendEvent(ctx context.Context, id string, msg []byte) error
}

// Discard is a Stream for callers that take only the reply.
var Discard Stream = discard{}

type discard struct{}

func (discard) Send(context.Context, []byte) error { return nil }

// Reply is the last word on a request.
type Reply struct {
	Body    []byte // JSON-RPC response; nil where there is none (202 Accepted, end of a stream)
	Status  int    // the HTTP status it deserves; 0 = 200, or 202 without a body
	Session string // the session this reply opened (initialize); "" otherwise
	Stream  bool   // the backend answered with an event stream, so an HTTP edge does too, though nothing came before Body
	EventID string // of Body, where it may be asked for again; "" = none
}

// Handler answers requests. It is the one interface of the data path.
type Handler interface {
	// Serve handles req and blocks until it is over: for a request until its
	// response, for OpListen until the stream ends. Cancelling ctx cancels the
	// request towards the server. Errors meant for the client are *Error;
	// any other error is reported as an internal one.
	Serve(ctx context.Context, req *Request, out Stream) (*Reply, error)
}

// HandlerFunc adapts a function to a Handler.
type HandlerFunc func(ctx context.Context, req *Request, out Stream) (*Reply, error)

// Serve calls f.
func (f HandlerFunc) Serve(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	return f(ctx, req, out)
}

// Info is what a backend says of itself, for the registry.
type Info struct {
	Name         string          `json:"name,omitempty"`    // serverInfo.name
	Version      string          `json:"version,omitempty"` // serverInfo.version
	Versions     []string        `json:"protocol_versions,omitempty"`
	Capabilities json.RawMessage `json:"capabilities,omitempty"`
}

// Backend is a handler that an agent attaches to the fabric as an instance.
type Backend interface {
	Handler

	// Probe asks the server what it is. It may start a process or a
	// connection, and keeps it only if it will be used again.
	Probe(ctx context.Context) (Info, error)

	// Close ends every session, process and connection the backend holds, and
	// returns when they are gone. It is idempotent.
	Close() error
}
