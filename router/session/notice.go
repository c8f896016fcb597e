package session

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// metaReinitialized is set in the first result after a session's backend
// session was made anew: what the old one kept in its memory is gone.
const metaReinitialized = "ripstop/reinitialized"

// notice is what a client must be told of a backend session made anew.
type notice struct {
	cause   string
	epoch   uint64
	log     bool     // the server declares logging, and its client wants warnings
	changed []string // the kinds of list that the server declares changes of
}

func newNotice(cause string, rec sessions.Record, initialized []byte) *notice {
	n := &notice{cause: cause, epoch: rec.Epoch}
	type list struct {
		Changed bool `json:"listChanged"`
	}
	var r struct {
		Capabilities struct {
			Logging   json.RawMessage `json:"logging"`
			Tools     list            `json:"tools"`
			Prompts   list            `json:"prompts"`
			Resources list            `json:"resources"`
		} `json:"capabilities"`
	}
	_ = json.Unmarshal(initialized, &r) // what can't be read declares nothing
	n.log = len(r.Capabilities.Logging) > 0 && string(r.Capabilities.Logging) != "null" && wantsWarnings(rec.LogLevel)
	for kind, declared := range map[string]bool{"tools": r.Capabilities.Tools.Changed, "prompts": r.Capabilities.Prompts.Changed, "resources": r.Capabilities.Resources.Changed} {
		if declared {
			n.changed = append(n.changed, kind)
		}
	}
	slices.Sort(n.changed)
	return n
}

// wantsWarnings reads the params of a logging/setLevel (RFC 5424 levels).
func wantsWarnings(params []byte) bool {
	var p struct {
		Level string `json:"level"`
	}
	_ = json.Unmarshal(params, &p) // no level: the server's choice, as for its own messages
	return !slices.Contains([]string{"error", "critical", "alert", "emergency"}, p.Level)
}

// mark tells the client in the first result that the backend session is a new
// one, and before it in a log message.
func (l *Layer) mark(ctx context.Context, u use, reply *router.Reply, out router.Stream) *router.Reply {
	s := u.s
	s.mu.Lock()
	n := s.notice
	if n == nil || s.tag != u.tag {
		s.mu.Unlock()
		return reply
	}
	s.mu.Unlock()
	m, err := jsonrpc.Parse(reply.Body)
	if err != nil || m.Result == nil {
		return reply
	}
	s.mu.Lock()
	mine := s.notice == n
	if mine {
		s.notice = nil
	}
	s.mu.Unlock()
	if !mine {
		return reply
	}
	if n.log {
		text := "the server's session was made anew (" + n.cause + "): what it kept in memory is gone"
		params := `{"level":"warning","logger":"ripstop","data":` + jsonrpc.Quote(text) + `}`
		_ = out.Send(ctx, jsonrpc.NewRequest(nil, "notifications/message", []byte(params))) // a client that is gone hears nothing
	}
	marked := *reply
	marked.Body = m.WithResultMeta(metaReinitialized, []byte(`{"cause":`+jsonrpc.Quote(n.cause)+`,"epoch":`+strconv.FormatUint(n.epoch, 10)+`}`))
	return &marked
}

// announce puts onto the session's own stream what the client may have missed:
// whatever it listed or subscribed to may be different now.
func (l *Layer) announce(s *session, rec sessions.Record, n *notice) {
	if !rec.Initialized {
		return
	}
	var list [][]byte
	for _, kind := range n.changed {
		list = append(list, jsonrpc.NewRequest(nil, "notifications/"+kind+"/list_changed", nil))
	}
	for _, uri := range slices.Sorted(maps.Keys(rec.Subscriptions)) {
		list = append(list, jsonrpc.NewRequest(nil, "notifications/resources/updated", []byte(`{"uri":`+jsonrpc.Quote(uri)+`}`)))
	}
	if len(list) == 0 {
		return
	}
	e := l.eventsOf(s)
	for _, msg := range list {
		e.add(msg)
	}
}
