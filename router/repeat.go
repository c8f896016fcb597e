package router

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"ripstop/router/jsonrpc"
)

// What may have been executed is not sent again, but for what can't do harm
// twice: reads, settings, and tools whose own annotations say so (MCP
// 2025-06-18, tools, "ToolAnnotations").

// repeats reports whether a method changes nothing, or the same again.
func repeats(method string) bool {
	switch method {
	case "initialize", "server/discover", "ping", "resources/read", "prompts/get", "completion/complete",
		"logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		return true
	}
	return strings.HasSuffix(method, "/list")
}

// maybeRepeatable reports whether it is worth asking whether req may be sent
// again.
func maybeRepeatable(req *Request) bool {
	m := req.Message
	switch {
	case m == nil:
		return true // the end of a session
	case m.Kind != jsonrpc.Request:
		return false
	}
	return m.Method == "tools/call" || repeats(m.Method)
}

// How long a server's answer about its tools counts, and how long it may take.
const (
	hintsFor   = time.Minute
	hintsWait  = 3 * time.Second
	hintsPages = 50
)

type hintKey struct{ server, principal string }

// hints are the tools of a server that may be called twice.
type hints struct {
	until time.Time
	safe  map[string]bool
}

// tools remembers which tools may be called twice.
type tools struct {
	hints sync.Map // of hintKey to *hints
}

// repeatable reports whether req may be sent again. For a tool it asks the
// instance that would get it, by send.
func (t *tools) repeatable(ctx context.Context, req *Request, send HandlerFunc) bool {
	m := req.Message
	if m == nil || m.Method != "tools/call" {
		return true
	}
	key := hintKey{req.Server, req.Principal}
	if h, ok := t.hints.Load(key); ok && time.Now().Before(h.(*hints).until) {
		return h.(*hints).safe[m.Name]
	}
	ctx, cancel := context.WithTimeout(ctx, hintsWait)
	defer cancel()
	h := &hints{until: time.Now().Add(hintsFor), safe: map[string]bool{}}
	if err := h.ask(ctx, send, req); err != nil {
		return false
	}
	t.hints.Store(key, h)
	return h.safe[m.Name]
}

// listID is the id of lists that the fabric asks for, for itself.
const listID = `"ripstop-tools"`

// Own reports whether a request is the fabric's own question, whose answer no
// client sees.
func Own(m *jsonrpc.Message) bool { return string(m.ID) == listID }

// ask lists the tools, as the caller of req sees them.
func (h *hints) ask(ctx context.Context, send HandlerFunc, req *Request) error {
	meta, err := listMeta(req)
	if err != nil {
		return err
	}
	cursor := ""
	for range hintsPages {
		params := map[string]any{}
		if meta != nil {
			params["_meta"] = meta
		}
		if cursor != "" {
			params["cursor"] = cursor
		}
		raw, err := json.Marshal(params)
		if err != nil {
			return err
		}
		m, err := jsonrpc.Parse(jsonrpc.NewRequest([]byte(listID), "tools/list", raw))
		if err != nil {
			return err
		}
		to := *req
		to.Message, to.StreamID, to.Params = m, "", nil
		reply, err := send(ctx, &to, Discard)
		if err != nil {
			return err
		}
		if cursor, err = h.take(reply.Body); err != nil || cursor == "" {
			return err
		}
	}
	return nil
}

// listMeta returns the metadata of a list in the name of req: in the modern era
// every request says who its client is and what it speaks.
func listMeta(req *Request) (map[string]json.RawMessage, error) {
	if req.Era != EraModern {
		return nil, nil
	}
	var params struct {
		Meta map[string]json.RawMessage `json:"_meta"`
	}
	if err := json.Unmarshal(req.Message.Params, &params); err != nil {
		return nil, err
	}
	for key := range params.Meta {
		if !strings.HasPrefix(key, "io.modelcontextprotocol/") { // a progress token is the call's
			delete(params.Meta, key)
		}
	}
	return params.Meta, nil
}

// Repeater sends requests again whose outcome is unknown, if they may be executed
// twice. Whoever routes them chooses the instance, each time anew.
type Repeater struct {
	Send HandlerFunc

	tools tools
}

var _ Handler = (*Repeater)(nil)

// Serve sends req, [maxTries] times at most.
func (r *Repeater) Serve(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	for try := 1; ; try++ {
		reply, err := r.Send(ctx, req, out)
		if !errors.Is(err, ErrOutcomeUnknown) || ctx.Err() != nil || try == maxTries || req.Op == OpListen || !maybeRepeatable(req) {
			return reply, err
		}
		if !r.tools.repeatable(ctx, req, r.Send) {
			return reply, err
		}
	}
}

func (h *hints) take(body []byte) (cursor string, err error) {
	m, err := jsonrpc.Parse(body)
	if err != nil {
		return "", err
	}
	var page struct {
		NextCursor string `json:"nextCursor"`
		Tools      []struct {
			Name        string `json:"name"`
			Annotations struct {
				ReadOnly   bool `json:"readOnlyHint"`
				Idempotent bool `json:"idempotentHint"`
			} `json:"annotations"`
		} `json:"tools"`
	}
	if m.Error != nil {
		return "", ErrBackend
	}
	if err := json.Unmarshal(m.Result, &page); err != nil {
		return "", err
	}
	for _, t := range page.Tools {
		if t.Annotations.ReadOnly || t.Annotations.Idempotent {
			h.safe[t.Name] = true
		}
	}
	return page.NextCursor, nil
}
