package session

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// recall sends what is left of the stream of a call that this instance has
// nothing of: it ran elsewhere, or long ago. A client that waits for an answer
// which is nowhere is told that there will be none.
func (l *Layer) recall(ctx context.Context, id, name string, n uint64, out router.Stream) (*router.Reply, error) {
	r := &recalled{out: out, n: n}
	if err := sendEvent(ctx, out, eventID(name, n), nil); err != nil {
		return nil, err
	}
	whole, err := l.backfill(ctx, id, name, n, 0, r)
	if err != nil {
		return nil, err
	}
	if request := requestOf(name); whole && request != nil && !r.answered {
		lost := router.Errorf(router.ErrOutcomeUnknown, "outcome unknown: the instance of %q that worked on this call is gone, or has forgotten it; it may or may not have been executed", l.opts.Server)
		if err := sendEvent(ctx, out, eventID(name, r.n+1), router.ErrorReply(request, lost).Body); err != nil {
			return nil, err
		}
	}
	return &router.Reply{Status: http.StatusOK}, nil
}

// recalled is a stream that takes note of what goes through it.
type recalled struct {
	out      router.Stream
	n        uint64 // of the last message
	answered bool   // it was the response
}

func (r *recalled) Send(ctx context.Context, msg []byte) error { return r.out.Send(ctx, msg) }

func (r *recalled) SendEvent(ctx context.Context, id string, msg []byte) error {
	if err := sendEvent(ctx, r.out, id, msg); err != nil {
		return err
	}
	_, r.n, _ = parseEventID(id)
	m, err := jsonrpc.Parse(msg)
	r.answered = err == nil && m.Kind == jsonrpc.Response
	return nil
}

// requestOf returns the id of the call that a stream's name ends in, or nil: see
// docs/wire.md, "Mcp-Stream-Id".
func requestOf(stream string) []byte {
	_, enc, ok := strings.Cut(stream, "-")
	if !ok {
		return nil
	}
	id, err := base64.RawURLEncoding.DecodeString(enc)
	if err != nil {
		return nil
	}
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(id, "ping", nil))
	if err != nil || m.Kind != jsonrpc.Request || string(m.ID) != string(id) {
		return nil // a client may have made it up
	}
	return m.ID
}

// loadTimeout bounds reading what the log has of a stream.
const loadTimeout = 5 * time.Second

// backfill sends what the log has of a stream after a number, up to another; 0 =
// to its end. It reports whether the log could be read; err is of out.
func (l *Layer) backfill(ctx context.Context, id, name string, after, until uint64, out router.Stream) (whole bool, err error) {
	if l.opts.Events == nil {
		return true, nil
	}
	limited, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var failed error
	err = l.opts.Events.Load(limited, id, name, after, func(n uint64, msg []byte) error {
		if n <= after || until != 0 && n > until {
			return nil
		}
		failed = sendEvent(ctx, out, eventID(name, n), msg)
		return failed
	})
	if err != nil && failed == nil { // what comes live is of more use than nothing
		l.log.Warn("events of a stream can't be read; there is a gap", "session", id, "stream", name, "after", after, "err", err)
	}
	return err == nil, failed
}
