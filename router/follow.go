package router

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"
)

// Sessions says where sessions are; the node keeps their records.
type Sessions interface {
	// Owner returns the instance that has a session, from memory. A session it
	// has not heard of may be with the instance that its id names.
	Owner(session string) (instance string, epoch uint64, known bool)

	// Locate returns the instance that has the session, and moves the session
	// first if that instance is gone: see session.Keeper. It fails with
	// ErrSessionNotFound or ErrUnavailable.
	Locate(ctx context.Context, server, session, avoid string, epoch uint64) (instance string, now uint64, err error)
}

// maxFollows is how many instances a session's request is sent to. Each but the
// first follows a move of the session, or waited for one.
const maxFollows = 4

// followRetry is how long a stream waits before it looks for its session again
// when no instance has it now.
const followRetry = 500 * time.Millisecond

// Follower sends the requests of sessions to the instances that have them, and
// after them when they move.
type Follower struct {
	Sessions Sessions

	// Send hands req to the instance it names. It fails with ErrUnavailable if
	// that is gone, ErrMoved if the session is not there.
	Send func(ctx context.Context, req *Request, out Stream) (*Reply, error)

	tools tools
}

// Serve sends req, which has a session, to its owner. What was executed nowhere
// is sent on to the next owner, and so is what may be executed twice.
func (f *Follower) Serve(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	to := *req
	to.Instance, to.Epoch = f.owner(req.Session)
	if to.Instance == "" {
		return nil, sessionGone(req)
	}
	if req.Op == OpListen {
		return f.listen(ctx, &to, out)
	}
	for try := 1; ; try++ {
		reply, err := f.Send(ctx, &to, out)
		if err == nil || ctx.Err() != nil || !f.follows(err) {
			return reply, err
		}
		if try == maxFollows {
			if errors.Is(err, ErrMoved) { // of no meaning to a client
				err = Errorf(ErrUnavailable, "session %.64q is on the move; nothing was executed, try again", req.Session)
			}
			return nil, err
		}
		lost := errors.Is(err, ErrOutcomeUnknown)
		if lost && !maybeRepeatable(req) {
			return nil, err
		}
		if lerr := f.locate(ctx, &to, err); lerr != nil {
			if lost {
				return nil, err
			}
			return nil, lerr
		}
		if lost && !f.tools.repeatable(ctx, &to, f.Send) {
			return nil, err
		}
	}
}

func (f *Follower) owner(session string) (string, uint64) {
	if instance, epoch, known := f.Sessions.Owner(session); known {
		return instance, epoch
	}
	return SessionInstance(session), 0
}

// follows reports whether err says that the session may be elsewhere.
func (f *Follower) follows(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case CodeMoved, CodeUnavailable, CodeServerNotFound, CodeOutcomeUnknown:
		return true
	}
	return false
}

// locate makes to name the instance that has the session now, after err.
func (f *Follower) locate(ctx context.Context, to *Request, err error) error {
	if instance, epoch, ok := MovedTo(err); ok && epoch > to.Epoch {
		to.Instance, to.Epoch = instance, epoch
		return nil
	}
	instance, epoch, lerr := f.Sessions.Locate(ctx, to.Server, to.Session, to.Instance, to.Epoch)
	if errors.Is(lerr, ErrSessionNotFound) {
		return sessionGone(to)
	}
	if lerr != nil {
		return lerr
	}
	to.Instance, to.Epoch = instance, epoch
	return nil
}

// movedData is the data of an ErrMoved.
type movedData struct {
	Instance string `json:"instance"`
	Epoch    uint64 `json:"epoch"`
}

// Moved is the error of an instance that does not have a session: instance has
// it, under epoch, as far as is known ("" = not).
func Moved(session, instance string, epoch uint64) *Error {
	e := Errorf(ErrMoved, "session %.80q is not here; nothing was executed", session)
	if instance != "" {
		e.Data, _ = json.Marshal(movedData{instance, epoch}) // always encodes
	}
	return e
}

// MovedTo reads what an ErrMoved says of the session's owner.
func MovedTo(err error) (instance string, epoch uint64, ok bool) {
	var e *Error
	var d movedData
	if !errors.As(err, &e) || e.Code != CodeMoved || json.Unmarshal(e.Data, &d) != nil {
		return "", 0, false
	}
	return d.Instance, d.Epoch, d.Instance != ""
}

// listen serves the session's own stream, which goes on wherever the session
// goes, after the last event that was passed on.
func (f *Follower) listen(ctx context.Context, to *Request, out Stream) (*Reply, error) {
	watch := &eventWatch{out: out, last: to.LastEventID}
	for {
		reply, err := f.Send(ctx, to, watch)
		if err == nil || ctx.Err() != nil || !f.follows(err) {
			return reply, err
		}
		to.LastEventID = watch.lastID()
		for {
			lerr := f.locate(ctx, to, err)
			if lerr == nil {
				break
			}
			if !errors.Is(lerr, ErrUnavailable) {
				return nil, lerr
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(followRetry):
			}
		}
	}
}

// eventWatch is a stream that remembers the last event that went through it.
type eventWatch struct {
	out Stream

	mu   sync.Mutex
	last string
}

var _ EventStream = (*eventWatch)(nil)

func (w *eventWatch) Send(ctx context.Context, msg []byte) error { return w.out.Send(ctx, msg) }

func (w *eventWatch) SendEvent(ctx context.Context, id string, msg []byte) error {
	var err error
	if events, ok := w.out.(EventStream); ok {
		err = events.SendEvent(ctx, id, msg)
	} else {
		err = w.out.Send(ctx, msg)
	}
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.last = id
	}
	return err
}

func (w *eventWatch) lastID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}
