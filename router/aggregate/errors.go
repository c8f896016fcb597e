package aggregate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// codeNoResource is "resource not found" of the legacy era (2025-11-25,
// resources, "Error Handling").
const codeNoResource = -32002

// clientError is an answer every MCP server gives with HTTP status 200.
func clientError(code int, format string, args ...any) *router.Error {
	return &router.Error{Code: code, Status: http.StatusOK, Text: fmt.Sprintf(format, args...)}
}

func invalidParams(format string, args ...any) *router.Error {
	return clientError(jsonrpc.CodeInvalidParams, format, args...)
}

func invalidRequest(format string, args ...any) *router.Error {
	e := clientError(jsonrpc.CodeInvalidRequest, format, args...)
	e.Status = http.StatusBadRequest
	return e
}

// noMethod is the answer to a method that can't be carried. The modern era
// wants HTTP status 404 with it; in the legacy era that would end the session.
func noMethod(era router.Era, method string) *router.Error {
	e := clientError(jsonrpc.CodeMethodNotFound,
		"method %q is not served for all servers at once; ask one server, under its own name", clip(method))
	if era == router.EraModern {
		e.Status = http.StatusNotFound
	}
	return e
}

func uriData(uri string) json.RawMessage {
	return json.RawMessage(`{"uri":` + jsonrpc.Quote(uri) + `}`)
}

// answer returns a member's reply as a parsed response, or why there is none:
// err, or the member's own error response as a *router.Error.
func answer(server string, reply *router.Reply, err error) (*jsonrpc.Message, error) {
	if err != nil {
		return nil, err
	}
	if reply == nil || len(reply.Body) == 0 {
		return nil, router.Errorf(router.ErrBackend, "server %s sent no response", server)
	}
	m, err := parseReply(server, reply.Body)
	if err != nil {
		return nil, err
	}
	if m.Error == nil {
		return m, nil
	}
	var e struct {
		Code    int             `json:"code"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if json.Unmarshal(m.Error, &e) != nil {
		return nil, router.Errorf(router.ErrBackend, "server %s sent an error that is none: %s", server, clip(string(m.Error)))
	}
	return nil, &router.Error{Code: e.Code, Status: orDefault(reply.Status, http.StatusOK), Text: e.Message, Data: e.Data}
}

func parseReply(server string, body []byte) (*jsonrpc.Message, error) {
	m, err := jsonrpc.Parse(body)
	switch {
	case err != nil:
		return nil, router.Errorf(router.ErrBackend, "server %s sent a response that can't be read: %v", server, err)
	case m.Kind != jsonrpc.Response:
		return nil, router.Errorf(router.ErrBackend, "server %s sent a %q where its response belongs", server, m.Method)
	}
	return m, nil
}

// codeOf returns the JSON-RPC code of an error, or 0.
func codeOf(err error) int {
	if e, ok := errors.AsType[*router.Error](err); ok {
		return e.Code
	}
	return 0
}

// passing reports whether err says nothing about what the member speaks: it was
// not reached, or not in time.
func passing(err error) bool {
	switch codeOf(err) {
	case router.CodeUnavailable, router.CodeServerNotFound, router.CodeOverloaded,
		router.CodeOutcomeUnknown, router.CodeTooLarge, router.CodeSessionNotFound, 0:
		return true
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// gone reports whether the member's reply says that its session is no more, so
// that nothing was executed.
func gone(reply *router.Reply, err error) bool {
	if err != nil {
		return errors.Is(err, router.ErrSessionNotFound)
	}
	if reply == nil || reply.Status != http.StatusNotFound {
		return false
	}
	_, err = answer("", reply, nil)
	switch codeOf(err) {
	case jsonrpc.CodeMethodNotFound, router.CodeServerNotFound:
		return false
	}
	return true
}

// settle makes a member's failure fit for the client of a legacy session: a
// status of 404 would tell it that its own session is gone. The reply returned
// is the caller's to change.
func settle(server string, reply *router.Reply, err error) (*router.Reply, error) {
	if gone(reply, err) {
		return nil, router.Errorf(router.ErrUnavailable, "server %s lost its session twice in a row; nothing was executed, try again", server)
	}
	if err != nil {
		if e, ok := errors.AsType[*router.Error](err); ok && e.Status == http.StatusNotFound {
			plain := *e
			plain.Status = http.StatusOK
			err = &plain
		}
		return nil, err
	}
	if reply == nil {
		return nil, router.Errorf(router.ErrBackend, "server %s sent no response", server)
	}
	own := *reply
	own.Session = ""
	if own.Status == http.StatusNotFound {
		own.Status = http.StatusOK
	}
	return &own, nil
}
