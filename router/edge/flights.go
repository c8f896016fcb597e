package edge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ripstop/router"
)

// flights holds the exchanges that are with the handler, so that Shutdown can
// wait for them and end them: the HTTP server does not know of those whose
// connection was taken over from it.
type flights struct {
	mu       sync.Mutex
	first    *exchange
	count    int
	draining bool
	closed   bool          // no more of any kind
	idle     chan struct{} // closed with closed
}

// enter adds x. While draining it takes only what calls in flight may wait for:
// notifications, responses to the server's requests, the end of a session.
func (f *flights) enter(x *exchange) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.draining && x.kind != oneway {
		return router.Errorf(router.ErrUnavailable, "this node is shutting down; nothing was executed, try again and another node will answer")
	}
	if x.next = f.first; x.next != nil {
		x.next.prev = x
	}
	f.first = x
	f.count++
	return nil
}

func (f *flights) leave(x *exchange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		f.first = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	}
	x.prev, x.next = nil, nil
	f.count--
	f.closeIfIdle()
}

func (f *flights) closeIfIdle() {
	if f.draining && f.count == 0 && !f.closed {
		f.closed = true
		close(f.idle)
	}
}

// drain lets nothing more in that would start work, and ends what has no end
// of its own.
func (f *flights) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	for x := f.first; x != nil; x = x.next {
		if x.endless || x.kind == listening {
			x.cancel(errDraining)
		}
	}
	f.closeIfIdle()
}

// abort cancels everything and returns how much that is.
func (f *flights) abort() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for x := f.first; x != nil; x = x.next {
		x.cancel(errAborted)
	}
	return f.count
}

// Shutdown drains the edge: new requests get 503 with Retry-After, streams that
// would last for ever end, and calls in flight are waited for until ctx ends.
// Then the streams of those whose clients can resume them elsewhere end, the rest
// are cancelled, their clients hear "outcome unknown", and Shutdown returns an
// error. The HTTP server is shut down after it, by its owner: it does not know of
// all streams. Shutdown may be called more than once.
func (e *Edge) Shutdown(ctx context.Context) error {
	e.flights.drain()
	select {
	case <-e.flights.idle:
		return nil
	case <-ctx.Done():
	}
	n := e.flights.abort()
	if n == 0 {
		return nil
	}
	grace := time.NewTimer(abortGrace)
	defer grace.Stop()
	select {
	case <-e.flights.idle:
		return fmt.Errorf("drain HTTP edge: %d requests cancelled: %w", n, ctx.Err())
	case <-grace.C:
		return fmt.Errorf("drain HTTP edge: %d requests cancelled, some did not end within %v: %w", n, abortGrace, ctx.Err())
	}
}
