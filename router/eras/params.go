package eras

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// A tool of 2026-07-28 may want arguments in HTTP headers too (transports,
// "Mcp-Param-*"). A legacy client does not send them; so when the server misses
// one, this package looks up which the tool wants. A server that says so has
// executed nothing.

// mirrored is an argument that a tool wants in a header.
type mirrored struct {
	path   []string // of the argument
	header string
}

// maxTools is how many tools' headers are remembered, and maxPages how far one is
// looked for.
const (
	maxTools = 1024
	maxPages = 100
)

// tools remembers which headers tools want; most want none, and are not in it.
type tools struct {
	mu     sync.Mutex
	byName map[string][]mirrored
}

func (t *tools) get(name string) []mirrored {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byName[name]
}

func (t *tools) put(name string, all []mirrored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName == nil || len(t.byName) >= maxTools {
		t.byName = map[string][]mirrored{}
	}
	t.byName[name] = all
}

// missesHeader reports whether a server's reply says that a header is missing.
func missesHeader(m *jsonrpc.Message, reply *router.Reply) bool {
	if m.Method != "tools/call" || reply == nil || reply.Status != http.StatusBadRequest {
		return false
	}
	answer, err := jsonrpc.Parse(reply.Body)
	return err == nil && errorCode(answer) == router.CodeHeaderMismatch
}

// lookUp asks the server which headers a tool wants.
func (s *session) lookUp(ctx context.Context, name string) ([]mirrored, error) {
	var cursor []byte
	for range maxPages {
		params := emptyObject
		if cursor != nil {
			params = build(member("cursor", cursor))
		}
		m, err := jsonrpc.Parse(jsonrpc.NewRequest([]byte(`"ripstop-tools"`), "tools/list", params))
		if err == nil {
			m, err = jsonrpc.Parse(m.WithParamsMeta(s.meta()...))
		}
		if err != nil {
			return nil, err
		}
		answer, err := answered(s.w.inner.Serve(ctx, s.request(m), router.Discard))
		if err != nil {
			return nil, err
		}
		for _, tool := range elements(field(answer.Result, "tools")) {
			if text(field(tool, "name")) == name {
				all := mirroredIn(field(tool, "inputSchema", "properties"), nil)
				s.w.tools.put(name, all)
				return all, nil
			}
		}
		if cursor = field(answer.Result, "nextCursor"); text(cursor) == "" {
			break
		}
	}
	return nil, nil
}

func mirroredIn(properties []byte, path []string) (all []mirrored) {
	jsonrpc.EachMember(properties, func(key string, v []byte) {
		at := append(slices.Clone(path), key)
		if name := text(field(v, "x-mcp-header")); name != "" {
			all = append(all, mirrored{at, http.CanonicalHeaderKey("Mcp-Param-" + name)})
		}
		all = append(all, mirroredIn(field(v, "properties"), at)...)
	})
	return all
}

// headersFor returns the headers for a call's params.
func headersFor(all []mirrored, params []byte) map[string]string {
	out := map[string]string{}
	for _, m := range all {
		raw := field(field(params, "arguments"), m.path...)
		switch {
		case len(raw) == 0 || string(raw) == "null" || raw[0] == '{' || raw[0] == '[':
		case raw[0] == '"':
			out[m.header] = headerValue(text(raw))
		default:
			out[m.header] = string(raw)
		}
	}
	return out
}

// headerValue returns v as a header value (MCP 2026-07-28, "Header value
// encoding").
func headerValue(v string) string {
	const prefix, suffix = "=?base64?", "?="
	safe := v != "" && v == strings.TrimSpace(v) && !strings.HasPrefix(v, prefix) &&
		!strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' })
	if safe {
		return v
	}
	return prefix + base64.StdEncoding.EncodeToString([]byte(v)) + suffix
}
