// Package jsonrpc reads a JSON-RPC 2.0 message only as far as routing needs,
// and edits it in place without re-encoding the rest.
//
// The fabric passes messages through byte for byte. What it must know (kind,
// id, method, the tool, prompt or resource named, the era markers of MCP
// 2026-07-28, progress tokens) is found by one pass over the bytes; what it
// must change (ids when several clients share one backend) is spliced.
//
// Parsing is strict where two readers could disagree, because permissions hang
// on what is read here: a repeated key, or a key that differs from a routed one
// only by case (Go's encoding/json would take it), is refused.
package jsonrpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Kind says what a message is.
type Kind uint8

// The kinds of JSON-RPC 2.0 message.
const (
	Request      Kind = iota + 1 // has a method and an id
	Notification                 // has a method, no id
	Response                     // has a result or an error
)

// MetaVersion is the params._meta key whose presence marks a request of the
// modern era (MCP 2026-07-28, "Per-request metadata").
const MetaVersion = "io.modelcontextprotocol/protocolVersion"

type span struct{ from, to int }

// Message is one parsed message. Its byte slices alias Raw; treat them as
// read-only.
type Message struct {
	Raw  []byte // the whole message, surrounding white space removed
	Kind Kind

	ID     []byte // raw JSON: a string or a number; nil for a notification; may be null in an error response
	Method string // "" for a response

	// Name is what a request is about: params.name of tools/call and
	// prompts/get, params.uri of resources/read, resources/subscribe and
	// resources/unsubscribe, params.taskId of tasks/*. Named tells an absent
	// name from an empty one.
	Name  string
	Named bool

	Version       string // params._meta[MetaVersion]; "" in the legacy era
	HasVersion    bool   // the key was there, though perhaps not a string
	ProgressToken []byte // raw params._meta.progressToken, or params.progressToken of notifications/progress
	CancelID      []byte // raw params.requestId of notifications/cancelled

	Params []byte // raw params, nil if absent
	Result []byte // raw result, nil if absent
	Error  []byte // raw error, nil if absent

	id, params, result, name, token, cancel span // offsets in Raw; meaningful where the slice above is set
}

// Error codes of JSON-RPC 2.0, section 5.1.
const (
	CodeParse          = -32700
	CodeInvalidRequest = -32600
	CodeMethodNotFound = -32601
	CodeInvalidParams  = -32602
	CodeInternal       = -32603
)

// ParseError says why bytes are not a message.
type ParseError struct {
	Code int    // CodeParse or CodeInvalidRequest
	Text string // the reason, for the sender
	ID   []byte // the request's raw id where it could still be read, for the error response
}

func (e *ParseError) Error() string { return e.Text }

func invalid(id []byte, format string, args ...any) *ParseError {
	return &ParseError{Code: CodeInvalidRequest, Text: "invalid request: " + fmt.Sprintf(format, args...), ID: id}
}

// nameKeys maps the methods whose subject carries a name to the key of params
// that holds it (MCP 2026-07-28, transports, "Mcp-Name").
func nameKey(method string) string {
	switch method {
	case "tools/call", "prompts/get":
		return "name"
	case "resources/read", "resources/subscribe", "resources/unsubscribe":
		return "uri"
	}
	if strings.HasPrefix(method, "tasks/") && method != "tasks/list" {
		return "taskId"
	}
	return ""
}

// IsBatch reports whether body holds a JSON array: a batch, which only MCP
// 2025-03-26 knows.
func IsBatch(body []byte) bool {
	b := bytes.TrimLeft(body, " \t\r\n")
	return len(b) > 0 && b[0] == '['
}

// SplitBatch returns the raw elements of a batch. The error is a *ParseError.
func SplitBatch(body []byte) ([][]byte, error) {
	s := scanner{buf: body}
	s.space()
	var out [][]byte
	if s.peek() != '[' {
		return nil, &ParseError{Code: CodeParse, Text: "parse error: not a JSON array"}
	}
	err := s.array(func(sp span) error {
		out = append(out, body[sp.from:sp.to])
		return nil
	})
	if err == nil {
		if s.space(); s.pos != len(body) {
			err = s.fail("data after the array")
		}
	}
	if err != nil {
		return nil, &ParseError{Code: CodeParse, Text: "parse error: " + err.Error()}
	}
	if len(out) == 0 {
		return nil, invalid(nil, "empty batch")
	}
	return out, nil
}

// Parse reads one message. The error is a *ParseError.
func Parse(body []byte) (*Message, error) {
	m := &Message{}
	s := scanner{buf: body}
	s.space()
	start := s.pos
	if s.peek() != '{' {
		if _, err := s.value(); err != nil {
			return nil, &ParseError{Code: CodeParse, Text: "parse error: " + err.Error()}
		}
		return nil, invalid(nil, "a message is a JSON object")
	}
	top, err := m.topLevel(&s)
	if err == nil {
		end := s.pos
		if s.space(); s.pos != len(body) {
			err = s.fail("data after the message")
		}
		m.Raw = body[start:end:end]
	}
	if err != nil {
		if pe, ok := err.(*ParseError); ok {
			return nil, pe
		}
		return nil, &ParseError{Code: CodeParse, Text: "parse error: " + err.Error()}
	}
	m.rebase(start)
	if err := m.classify(top); err != nil {
		return nil, err
	}
	if m.Params != nil {
		if err := m.readParams(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// rebase turns offsets into body into offsets into Raw.
func (m *Message) rebase(start int) {
	for _, sp := range []*span{&m.id, &m.params, &m.result} {
		sp.from -= start
		sp.to -= start
	}
}

// seen is a set of the top-level keys met.
type seen uint8

const (
	sawVersion seen = 1 << iota
	sawID
	sawMethod
	sawParams
	sawResult
	sawError
)

var topKeys = []string{"jsonrpc", "id", "method", "params", "result", "error"}

func (m *Message) topLevel(s *scanner) (seen, error) {
	var have seen
	err := s.object(func(k span) error {
		i, err := matchKey(s.buf, k, topKeys)
		if err != nil {
			return err
		}
		v, err := s.value()
		if err != nil || i < 0 {
			return err
		}
		bit := seen(1) << i
		if have&bit != 0 {
			return invalid(nil, "key %q appears twice", topKeys[i])
		}
		have |= bit
		raw := s.buf[v.from:v.to:v.to]
		switch bit {
		case sawVersion:
			if string(raw) != `"2.0"` {
				return invalid(nil, `jsonrpc must be "2.0"`)
			}
		case sawID:
			m.ID, m.id = raw, v
		case sawMethod:
			if raw[0] != '"' {
				return invalid(m.ID, "method must be a string")
			}
			m.Method = unquote(raw)
		case sawParams:
			m.Params, m.params = raw, v
		case sawResult:
			m.Result, m.result = raw, v
		case sawError:
			m.Error = raw
		}
		return nil
	})
	return have, err
}

// classify decides the kind and checks what JSON-RPC and MCP demand of it.
func (m *Message) classify(have seen) error {
	id := m.ID
	if have&sawID != 0 && !validID(id) {
		id = nil
	}
	switch {
	case have&sawVersion == 0:
		return invalid(id, `jsonrpc: "2.0" is missing`)
	case have&sawMethod != 0 && have&(sawResult|sawError) != 0:
		return invalid(id, "a message is a request or a response, not both")
	case have&sawMethod != 0:
		return m.classifyCall(have, id)
	case have&(sawResult|sawError) == 0:
		return invalid(id, "no method, result or error")
	case have&sawResult != 0 && have&sawError != 0:
		return invalid(id, "a response has a result or an error, not both")
	case have&sawID == 0, id == nil && (have&sawError == 0 || string(m.ID) != "null"):
		return invalid(nil, "a response needs the id of its request")
	}
	m.Kind = Response
	return nil
}

func (m *Message) classifyCall(have seen, id []byte) error {
	if m.Method == "" {
		return invalid(id, "method is empty")
	}
	if have&sawParams != 0 && m.Params[0] != '{' {
		return invalid(id, "params must be an object")
	}
	if have&sawID == 0 {
		m.Kind = Notification
		return nil
	}
	if id == nil {
		return invalid(nil, "id must be a string or an integer")
	}
	m.Kind = Request
	return nil
}

// validID reports whether raw is a string or an integer (MCP: "the ID MUST be
// a string or integer, and MUST NOT be null").
func validID(raw []byte) bool {
	if len(raw) == 0 {
		return false
	}
	if raw[0] == '"' {
		return true
	}
	return (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9') && !bytes.ContainsAny(raw, ".eE")
}

// paramKeys returns the keys of params that routing reads for method, _meta
// first.
func paramKeys(method string) []string {
	switch method {
	case "notifications/cancelled":
		return []string{"_meta", "requestId"}
	case "notifications/progress":
		return []string{"_meta", "progressToken"}
	}
	if k := nameKey(method); k != "" {
		return []string{"_meta", k}
	}
	return []string{"_meta"}
}

func (m *Message) readParams() error {
	keys := paramKeys(m.Method)
	s := scanner{buf: m.Raw[:m.params.to], pos: m.params.from}
	var have seen
	err := s.object(func(k span) error {
		i, err := matchKey(s.buf, k, keys)
		if err != nil {
			return err
		}
		if i >= 0 {
			if have&(1<<i) != 0 {
				return invalid(m.ID, "params key %q appears twice", keys[i])
			}
			have |= 1 << i
		}
		if i == 0 && s.peek() == '{' {
			return m.readMeta(&s)
		}
		v, err := s.value()
		if err != nil || i != 1 {
			return err
		}
		return m.takeParam(keys[1], v)
	})
	if pe, ok := err.(*ParseError); ok && pe.ID == nil {
		pe.ID = m.ID
	}
	return err
}

// takeParam keeps the one value of params that routing needs for this method.
func (m *Message) takeParam(key string, v span) error {
	raw := m.Raw[v.from:v.to:v.to]
	switch {
	case key == "requestId":
		if validID(raw) {
			m.CancelID, m.cancel = raw, v
		}
	case key == "progressToken":
		if validID(raw) {
			m.ProgressToken, m.token = raw, v
		}
	case raw[0] != '"':
		return &ParseError{Code: CodeInvalidParams, Text: fmt.Sprintf("invalid params: %s must be a string", key), ID: m.ID}
	default:
		m.Name, m.Named, m.name = unquote(raw), true, v
		if strings.ContainsRune(m.Name, utf8.RuneError) {
			return invalid(m.ID, "params.%s holds U+FFFD or half a surrogate pair, which has no one spelling", key)
		}
	}
	return nil
}

var metaKeys = []string{MetaVersion, "progressToken"}

func (m *Message) readMeta(s *scanner) error {
	var have seen
	return s.object(func(k span) error {
		i, err := matchKey(s.buf, k, metaKeys)
		if err != nil {
			return err
		}
		v, err := s.value()
		if err != nil || i < 0 {
			return err
		}
		if have&(1<<i) != 0 {
			return invalid(m.ID, "_meta key %q appears twice", metaKeys[i])
		}
		have |= 1 << i
		raw := s.buf[v.from:v.to:v.to]
		switch {
		case i == 0:
			m.HasVersion = true
			if raw[0] == '"' {
				m.Version = unquote(raw)
			}
		case i == 1 && m.Kind == Request && validID(raw):
			m.ProgressToken, m.token = raw, v
		}
		return nil
	})
}

// matchKey returns the index in keys of the key at k, -1 if it is none of them,
// and an error if it is one but for case or escapes.
func matchKey(buf []byte, k span, keys []string) (int, error) {
	raw := buf[k.from+1 : k.to-1]
	for i, key := range keys {
		if string(raw) == key {
			return i, nil
		}
	}
	plain := raw
	if bytes.IndexByte(raw, '\\') >= 0 {
		plain = []byte(unquote(buf[k.from:k.to]))
	}
	i := slices.IndexFunc(keys, func(key string) bool { return len(plain) < 64 && strings.EqualFold(key, string(plain)) })
	if i >= 0 {
		return -1, invalid(nil, "key %s stands for %q but is not written so", buf[k.from:k.to], keys[i])
	}
	return -1, nil
}

// unquote decodes a raw JSON string already known to be valid.
func unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
