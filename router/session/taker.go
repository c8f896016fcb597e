package session

import (
	"context"
	"time"
)

// taker is a client's GET.
type taker struct {
	ctx    context.Context // ends when another takes over, or with the session; its cause says why
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it no longer sends
	pos    uint64        // up to where it has been given the stream
	took   uint64        // and has passed it on
}

// takeOverWait is how long a taker waits for the one before to end.
const takeOverWait = 200 * time.Millisecond

// attach makes the caller the stream's taker, from after pos. The one before
// ends; attach returns when it has sent its last message.
func (e *events) attach(ctx context.Context, st *stream, pos uint64) (*taker, error) {
	t := &taker{done: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	e.mu.Lock()
	if e.closed != nil {
		defer e.mu.Unlock()
		t.cancel(e.closed)
		return nil, e.closed
	}
	before := st.taker
	st.taker = t
	t.pos = min(pos, st.last())
	t.took = t.pos
	makeOnce(&st.wake)
	e.mu.Unlock()
	e.keep() // what it is sent expires
	if before != nil {
		before.cancel(errTakenOver)
		late := time.NewTimer(takeOverWait)
		defer late.Stop()
		select {
		case <-before.done:
		case <-late.C: // it is stuck in a write to a client that is gone
		case <-t.ctx.Done():
		}
	}
	return t, nil
}

func (e *events) detach(st *stream, t *taker) {
	e.mu.Lock()
	if st.taker == t {
		st.taker = nil
		st.since = e.l.now()
		if st.room != nil {
			nudge(st.room)
		}
	}
	closed := e.closed != nil
	e.mu.Unlock()
	t.cancel(nil)
	close(t.done)
	if !closed {
		e.keep()
	}
}

// next returns the next message for t, waiting for one. It reports false at the
// end of the stream, or when t's context has ended.
func (e *events) next(st *stream, t *taker) (msg []byte, id string, ok bool) {
	for t.ctx.Err() == nil {
		e.mu.Lock()
		msg, n, ok := st.after(t.pos)
		if ok {
			t.pos = n
			e.mu.Unlock()
			return msg, eventID(st.name, n), true
		}
		over := st.over
		e.mu.Unlock()
		if over {
			return nil, "", false
		}
		select {
		case <-st.wake:
		case <-t.ctx.Done():
		}
	}
	nudge(st.wake) // for the one that took over
	return nil, "", false
}

// took notes that t's client was sent what next returned last.
func (e *events) took(st *stream, t *taker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.took = t.pos
	st.sent = max(st.sent, t.pos)
	if st.room != nil {
		nudge(st.room)
	}
}

func makeOnce(c *chan struct{}) chan struct{} {
	if *c == nil {
		*c = make(chan struct{}, 1)
	}
	return *c
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
