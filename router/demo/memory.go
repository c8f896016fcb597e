package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/session"
)

// Limits of what one session can remember.
const (
	maxKeys  = 64
	maxValue = 4 << 10 // bytes, of a key too
)

// memory keeps values by session. Behind a fabric they are data of the session
// (see kept.go), which outlives this process; elsewhere they are in its memory,
// and gone when it is.
type memory struct {
	server *mcp.Server

	mu       sync.Mutex
	sessions map[*mcp.ServerSession]map[string]string
	sweepAt  int // number of sessions at which ended ones are swept out
}

type rememberIn struct {
	Key   string `json:"key" jsonschema:"the name to remember the value by"`
	Value string `json:"value" jsonschema:"what to remember"`
}

type rememberOut struct {
	Key      string `json:"key"`
	Replaced bool   `json:"replaced" jsonschema:"whether there was a value before"`
}

type recallIn struct {
	Key string `json:"key" jsonschema:"the name given to remember"`
}

type recallOut struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func addMemory(s *mcp.Server) {
	m := &memory{server: s, sessions: map[*mcp.ServerSession]map[string]string{}, sweepAt: 64}
	mcp.AddTool(s, &mcp.Tool{
		Name: "remember", Title: "Remember", Description: "Keeps a value in this session, until it ends.",
		Annotations: &mcp.ToolAnnotations{IdempotentHint: true, DestructiveHint: new(true), OpenWorldHint: new(false)},
	}, m.remember)
	mcp.AddTool(s, &mcp.Tool{
		Name: "recall", Title: "Recall", Description: "Returns a value that remember was given in this session.",
		Annotations: &mcp.ToolAnnotations{ReadOnlyHint: true, IdempotentHint: true, OpenWorldHint: new(false)},
	}, m.recall)
}

// errNoSession answers requests of 2026-07-28, which is also what a bare
// request becomes: the SDK makes a session for each, and forgets it.
func errNoSession(req *mcp.CallToolRequest) error {
	if req.ProtocolVersion() < router.Version20260728 {
		return nil
	}
	return fmt.Errorf("there is no session to keep values in: requests of MCP %s, and requests sent without a handshake, stand alone. "+
		"Open a session with initialize (protocol version %s or older) and send the Mcp-Session-Id it returns with every request",
		router.Version20260728, router.Version20251125)
}

func (m *memory) remember(ctx context.Context, req *mcp.CallToolRequest, in rememberIn) (*mcp.CallToolResult, rememberOut, error) {
	var out rememberOut
	data, lasting := session.DataFrom(ctx)
	if err := errNoSession(req); err != nil && !lasting {
		return nil, out, err
	}
	if in.Key == "" || len(in.Key) > maxValue || len(in.Value) > maxValue {
		return nil, out, fmt.Errorf("key and value hold up to %d bytes each, and the key at least one", maxValue)
	}
	if lasting {
		out.Key = in.Key
		var err error
		out.Replaced, err = keep(ctx, data, in.Key, in.Value)
		return nil, out, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.sessions[req.Session]
	_, out.Replaced = kept[in.Key]
	switch {
	case kept == nil:
		m.sweep()
		kept = map[string]string{}
		m.sessions[req.Session] = kept
	case !out.Replaced && len(kept) >= maxKeys:
		return nil, out, errFull
	}
	kept[in.Key] = in.Value
	out.Key = in.Key
	return nil, out, nil
}

func (m *memory) recall(ctx context.Context, req *mcp.CallToolRequest, in recallIn) (*mcp.CallToolResult, recallOut, error) {
	data, lasting := session.DataFrom(ctx)
	if err := errNoSession(req); err != nil && !lasting {
		return nil, recallOut{}, err
	}
	if lasting {
		value, err := kept(ctx, data, in.Key)
		return nil, recallOut{Key: in.Key, Value: value}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.sessions[req.Session]
	value, ok := kept[in.Key]
	if !ok {
		return nil, recallOut{}, errUnknown(in.Key, slices.Sorted(maps.Keys(kept)))
	}
	return nil, recallOut{Key: in.Key, Value: value}, nil
}

var errFull = fmt.Errorf("this session remembers %d values already, which is the limit; replace one of them", maxKeys)

func errUnknown(key string, known []string) error {
	list := strings.Join(known, ", ")
	if list == "" {
		list = "nothing yet"
	}
	return fmt.Errorf("no value is remembered as %q in this session (remembered: %s)", key, list)
}

// sweep forgets sessions that ended, which the SDK does not announce. It runs
// when their number has doubled, so its cost is spread. m.mu is held.
func (m *memory) sweep() {
	if len(m.sessions) < m.sweepAt {
		return
	}
	live := liveSessions(m.server)
	maps.DeleteFunc(m.sessions, func(s *mcp.ServerSession, _ map[string]string) bool { return !live[s] })
	m.sweepAt = max(64, 2*len(m.sessions))
}
