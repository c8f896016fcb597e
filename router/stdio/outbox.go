package stdio

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Bounds of what waits for a session's own stream.
const (
	maxQueued      = 256
	maxQueuedBytes = 1 << 20
)

// note is one message for a session's own stream.
type note struct {
	msg []byte
	ask int64 // the id of the child's request that it is; 0 = a notification
}

// outbox holds a session's own stream: the messages that belong to no request,
// and the one listener that takes them.
type outbox struct {
	mu       sync.Mutex
	queue    []note
	size     int
	dropped  limiter
	closed   bool
	wake     chan struct{} // made with the first listener
	listener *listener     // nil = none
}

type listener struct {
	ctx    context.Context // ends when another takes over
	cancel context.CancelFunc
	done   chan struct{} // closed when it no longer sends
}

// push queues a message, which must be the outbox's to keep. When the queue is
// full the oldest messages are dropped; the requests among them are returned.
func (o *outbox) push(n note, log *slog.Logger) (asks []int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	for len(o.queue) > 0 && (len(o.queue) >= maxQueued || o.size+len(n.msg) > maxQueuedBytes) {
		old := o.popLocked()
		if old.ask != 0 {
			asks = append(asks, old.ask)
		}
		if skipped, ok := o.dropped.allow(time.Now()); ok {
			log.Warn("message to client dropped: no stream takes it and too many wait", "waiting", len(o.queue)+1, "not_logged", skipped)
		}
	}
	o.queue = append(o.queue, n)
	o.size += len(n.msg)
	if o.wake != nil {
		nudge(o.wake)
	}
	return asks
}

func (o *outbox) popLocked() note {
	n := o.queue[0]
	o.queue[0] = note{}
	o.queue = o.queue[1:]
	o.size -= len(n.msg)
	if len(o.queue) == 0 {
		o.queue = nil // and its array
	}
	return n
}

func (o *outbox) attached() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.listener != nil
}

// attach makes the caller the listener. The one before ends; attach returns
// when it has sent its last message.
func (o *outbox) attach(ctx context.Context) *listener {
	l := &listener{done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(ctx)
	o.mu.Lock()
	before := o.listener
	if o.wake == nil {
		o.wake = make(chan struct{}, 1)
	}
	if o.closed {
		l.cancel()
	}
	o.listener = l
	o.mu.Unlock()
	if before != nil {
		before.cancel()
		select {
		case <-before.done:
		case <-l.ctx.Done():
		}
	}
	return l
}

func (o *outbox) detach(l *listener) {
	o.mu.Lock()
	if o.listener == l {
		o.listener = nil
	}
	o.mu.Unlock()
	l.cancel()
	close(l.done)
}

// next returns the oldest message, waiting for one. It reports false when the
// listener has ended.
func (o *outbox) next(l *listener) (note, bool) {
	for l.ctx.Err() == nil {
		o.mu.Lock()
		if len(o.queue) > 0 {
			n := o.popLocked()
			o.mu.Unlock()
			return n, true
		}
		o.mu.Unlock()
		select {
		case <-o.wake:
		case <-l.ctx.Done():
		}
	}
	nudge(o.wake) // for the one that took over
	return note{}, false
}

// putBack returns a message that could not be sent, for the next listener.
func (o *outbox) putBack(n note) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.queue = append([]note{n}, o.queue...)
	o.size += len(n.msg)
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.queue, o.size = true, nil, 0
	if o.listener != nil {
		o.listener.cancel()
	}
}
