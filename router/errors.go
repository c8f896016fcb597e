package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"ripstop/router/jsonrpc"
)

// JSON-RPC error codes of the fabric, in the range that JSON-RPC 2.0 and MCP
// 2026-07-28 leave to implementations (-32000 to -32019).
const (
	CodeServerNotFound  = -32010 // no server of that name is registered
	CodeSessionNotFound = -32011 // the session ended, or never was
	CodeUnavailable     = -32012 // the server is known, but no instance answers now; nothing was executed
	CodeOutcomeUnknown  = -32013 // the call may or may not have been executed
	CodeOverloaded      = -32014 // a limit on calls or sessions is reached; nothing was executed
	CodeTooLarge        = -32015 // the message is larger than the fabric carries
	CodeBackend         = -32016 // the backend can't be started or doesn't speak MCP
	CodeRefused         = -32017 // the fabric won't carry this: subject and body disagree, not canonical, not allowed
	CodeMoved           = -32018 // the session is another instance's; nothing was executed. For routers: clients don't see it
)

// Codes that MCP 2026-07-28 defines.
const (
	CodeHeaderMismatch     = -32020
	CodeMissingCapability  = -32021
	CodeUnsupportedVersion = -32022
)

// Error is a failure meant for the client: a JSON-RPC error with the HTTP
// status it deserves.
type Error struct {
	Code   int
	Status int // HTTP status
	Text   string
	Data   json.RawMessage // nil = none
	Stream bool            // as in [Reply]: the backend had begun an event stream

	// Unreached says that the request got to nobody. If the instance is registered
	// all the same, the way to it may just not be known yet.
	Unreached bool

	routed string // the server whose instances a Router has tried in vain
}

func (e *Error) Error() string { return e.Text }

// Is makes errors.Is compare by code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Sentinels for errors.Is; what is returned carries its own text.
var (
	ErrServerNotFound  = &Error{Code: CodeServerNotFound, Status: http.StatusNotFound, Text: "server not found"}
	ErrSessionNotFound = &Error{Code: CodeSessionNotFound, Status: http.StatusNotFound, Text: "session not found"}
	ErrUnavailable     = &Error{Code: CodeUnavailable, Status: http.StatusServiceUnavailable, Text: "no live instance"}
	ErrOutcomeUnknown  = &Error{Code: CodeOutcomeUnknown, Status: http.StatusOK, Text: "outcome unknown"}
	ErrOverloaded      = &Error{Code: CodeOverloaded, Status: http.StatusTooManyRequests, Text: "overloaded"}
	ErrTooLarge        = &Error{Code: CodeTooLarge, Status: http.StatusRequestEntityTooLarge, Text: "message too large"}
	ErrBackend         = &Error{Code: CodeBackend, Status: http.StatusBadGateway, Text: "backend failed"}
	ErrMoved           = &Error{Code: CodeMoved, Status: http.StatusMisdirectedRequest, Text: "session has moved"}
	ErrRefused         = &Error{Code: CodeRefused, Status: http.StatusBadRequest, Text: "refused"}
)

// Errorf returns an error of kind's code and status with its own text.
func Errorf(kind *Error, format string, args ...any) *Error {
	e := *kind
	e.Text = fmt.Sprintf(format, args...)
	return &e
}

// UnsupportedVersion is the error MCP 2026-07-28 defines for a version the
// server does not speak.
func UnsupportedVersion(requested string, supported []string) *Error {
	data, _ := json.Marshal(map[string]any{"supported": supported, "requested": requested}) // strings always encode
	return &Error{Code: CodeUnsupportedVersion, Status: http.StatusBadRequest,
		Text: fmt.Sprintf("protocol version %q is not supported by this server", requested), Data: data}
}

// ErrorReply turns err into the reply a client sees. A *jsonrpc.ParseError
// keeps its code; anything else but *Error becomes an internal error.
func ErrorReply(id []byte, err error) *Reply {
	var e *Error
	var pe *jsonrpc.ParseError
	switch {
	case errors.As(err, &e):
	case errors.As(err, &pe):
		e = &Error{Code: pe.Code, Status: http.StatusBadRequest, Text: pe.Text}
		if id == nil {
			id = pe.ID
		}
	default:
		e = &Error{Code: jsonrpc.CodeInternal, Status: http.StatusInternalServerError, Text: err.Error()}
	}
	return &Reply{Body: jsonrpc.NewError(id, e.Code, e.Text, e.Data), Status: e.Status, Stream: e.Stream}
}
