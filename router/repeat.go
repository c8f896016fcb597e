package router

import (
	"context"
	"encoding/json"
	"strings"
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

// repeatable reports whether req may be sent again. For a tool it asks the
// instance that would get it.
func (f *Follower) repeatable(ctx context.Context, req *Request) bool {
	m := req.Message
	if m == nil || m.Method != "tools/call" {
		return true
	}
	key := hintKey{req.Server, req.Principal}
	if h, ok := f.hints.Load(key); ok && time.Now().Before(h.(*hints).until) {
		return h.(*hints).safe[m.Name]
	}
	ctx, cancel := context.WithTimeout(ctx, hintsWait)
	defer cancel()
	h := &hints{until: time.Now().Add(hintsFor), safe: map[string]bool{}}
	if err := h.ask(ctx, f.Send, req); err != nil {
		return false
	}
	f.hints.Store(key, h)
	return h.safe[m.Name]
}

// ask lists the tools, as the caller of req sees them.
func (h *hints) ask(ctx context.Context, send HandlerFunc, req *Request) error {
	cursor := ""
	for range hintsPages {
		params := []byte(`{}`)
		if cursor != "" {
			params = []byte(`{"cursor":` + jsonrpc.Quote(cursor) + `}`)
		}
		m, err := jsonrpc.Parse(jsonrpc.NewRequest([]byte(`"ripstop-tools"`), "tools/list", params))
		if err != nil {
			return err
		}
		to := *req
		to.Message, to.StreamID = m, ""
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
