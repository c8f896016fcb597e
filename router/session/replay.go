package session

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// made is a backend session that was made by replay.
type made struct {
	backend string
	tag     uint64
	result  []byte // of initialize
}

// replay makes a backend session from a record: it says again what the session's
// client has said. What the server asks meanwhile goes to the client.
func (l *Layer) replay(ctx context.Context, s *session, rec sessions.Record) (made, error) {
	m := made{tag: uint64(time.Now().UnixMicro())}
	ctx, _ = l.withData(ctx, s.id, rec.Epoch)
	r := replayer{l: l, rec: rec, out: &ownSink{l: l, s: s, tag: m.tag}}
	reply, err := r.say(ctx, jsonrpc.NewRequest(replayID, "initialize", rec.Initialize))
	if err != nil {
		return m, err
	}
	if m.result, err = result(reply); err != nil {
		return m, fmt.Errorf("initialize: %w", err)
	}
	if m.backend = reply.Session; m.backend == "" {
		return m, fmt.Errorf("initialize: the server opens no session any more")
	}
	if v := negotiated(reply.Body); v != rec.Version {
		l.log.Warn("server speaks another protocol version than it did to the session's client", "session", s.id, "was", rec.Version, "now", v)
	}
	r.backend = m.backend
	if err := r.restore(ctx); err != nil {
		l.endBackend(m.backend)
		return m, err
	}
	return m, nil
}

// replayID is the id of this side's own requests, none of which is in flight
// together with another, or with a client's, in a session.
var replayID = []byte(`"ripstop-replay"`)

type replayer struct {
	l       *Layer
	rec     sessions.Record
	backend string
	out     router.Stream
}

// say sends one message as the session's client.
func (r *replayer) say(ctx context.Context, raw []byte) (*router.Reply, error) {
	m, err := jsonrpc.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("replay: the record can't be said again: %w", err)
	}
	req := &router.Request{Server: r.l.opts.Server, Session: r.backend, Principal: r.rec.Principal, Message: m}
	if r.backend != "" {
		req.Version = r.rec.Version
	}
	return r.l.call(ctx, req, r.out)
}

// restore says all but initialize. What the server refuses now is logged: the
// session is of more use without it than not at all.
func (r *replayer) restore(ctx context.Context) error {
	if r.rec.Initialized {
		if _, err := r.say(ctx, jsonrpc.NewRequest(nil, "notifications/initialized", nil)); err != nil {
			return fmt.Errorf("notifications/initialized: %w", err)
		}
	}
	if r.rec.LogLevel != nil {
		if err := r.set(ctx, "logging/setLevel", r.rec.LogLevel); err != nil {
			return err
		}
	}
	for _, uri := range slices.Sorted(maps.Keys(r.rec.Subscriptions)) {
		if err := r.set(ctx, "resources/subscribe", r.rec.Subscriptions[uri]); err != nil {
			return err
		}
	}
	return nil
}

func (r *replayer) set(ctx context.Context, method string, params []byte) error {
	reply, err := r.say(ctx, jsonrpc.NewRequest(replayID, method, params))
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if _, err := result(reply); err != nil {
		r.l.log.Warn("server refuses what it had accepted in this session before", "session", r.rec.ID, "method", method, "err", err)
	}
	return nil
}

// result returns what a reply holds if it is not an error.
func result(r *router.Reply) ([]byte, error) {
	m, err := jsonrpc.Parse(r.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the server's answer can't be read (HTTP status %d): %w", r.Status, err)
	case m.Error != nil:
		return nil, fmt.Errorf("the server answered with error %.300s", m.Error)
	}
	return m.Result, nil
}
