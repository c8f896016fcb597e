package session

import (
	"context"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// What is kept of a session's streams for clients that come back.
const (
	maxEvents     = 1024
	maxEventBytes = 1 << 20
	keepFor       = 5 * time.Minute

	// maxAllBytes is what all sessions of a layer may keep; while it is more, a
	// session that adds to it keeps no more than scarceBytes.
	maxAllBytes = 256 << 20
	scarceBytes = 16 << 10
)

// stream is the messages of one call, or of the session itself, and whoever
// takes them. It is guarded by its events' mutex.
type stream struct {
	ring
	name  string
	sent  uint64        // the highest number that was handed to a client
	over  bool          // nothing comes after what is in the ring
	since time.Duration // when it was over, or its last taker left
	taker *taker        // nil = none
	wake  chan struct{} // holds a token when there may be something to take
	room  chan struct{} // holds a token when something was taken
}

// events is what a session has beyond calls and answers: its streams.
type events struct {
	l *Layer
	s *session

	mu     sync.Mutex
	own    stream
	posts  []*post // in flight or kept
	pump   *pump   // takes the backend's own stream; nil = none
	count  int     // messages in all rings
	size   int     // and their bytes
	closed error   // why there is no more; nil = there is
	warned bool    // that messages were dropped
}

// eventsOf returns the session's events, which begin with the first use of them.
func (l *Layer) eventsOf(s *session) *events {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.events == nil {
		s.events = &events{l: l, s: s}
		s.events.own.name = ownStream(max(s.epoch, 1))
		if s.backend == "" || s.tag != 0 {
			// This instance, or process, may have given out numbers under this
			// epoch before; time goes on faster than they do.
			s.events.own.base = uint64(time.Now().UnixMicro())
		}
		s.events.own.sent = s.events.own.base
		if s.dead {
			s.events.closed = l.errGone(s.id)
		}
	}
	return s.events
}

// push puts a message of the server onto the stream of p, or the session's own if
// that is nil. It waits while a client takes the stream and is behind; where none
// does, the oldest messages go.
func (e *events) push(ctx context.Context, p *post, msg []byte) error {
	msg = slices.Clone(msg)
	e.mu.Lock()
	defer e.mu.Unlock()
	st := &e.own
	if p != nil {
		st = &p.stream
	}
	for st.taker != nil && len(st.list) > 0 && st.base >= st.taker.took && e.full(len(msg)) && e.closed == nil {
		room := makeOnce(&st.room)
		e.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
		e.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if e.closed != nil && p == nil {
		return e.closed
	}
	e.appendLocked(st, msg)
	if st.room != nil {
		nudge(st.room) // for others that wait
	}
	return nil
}

// add puts a message of this side onto the session's own stream, and waits for
// nobody.
func (e *events) add(msg []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed == nil {
		e.appendLocked(&e.own, msg)
	}
}

// appendLocked numbers a message and keeps it.
func (e *events) appendLocked(st *stream, msg []byte) (n uint64) {
	n = st.push(msg, e.l.now())
	e.count++
	e.size += len(msg)
	e.l.bytes.Add(int64(len(msg)))
	e.trimLocked(st)
	if st == &e.own && st.taker == nil && e.closed == nil {
		e.keep()
	}
	if e.l.opts.Events != nil {
		e.l.opts.Events.Append(e.s.id, st.name, n, msg)
	}
	if st.wake != nil {
		nudge(st.wake)
	}
	if e.closed != nil { // a call that goes on for its caller only
		e.popLocked(st)
	}
	return n
}

func (e *events) full(more int) bool { return e.count >= maxEvents || e.size+more > e.maxSize() }

// maxSize is how many bytes the session's rings may hold.
func (e *events) maxSize() int {
	if e.l.bytes.Load() > maxAllBytes {
		return scarceBytes
	}
	return maxEventBytes
}

// trimLocked keeps the bounds: what is over goes first, then the oldest of the
// stream that grows.
func (e *events) trimLocked(st *stream) {
	for e.count > maxEvents || e.count > 1 && e.size > e.maxSize() {
		if i := slices.IndexFunc(e.posts, func(p *post) bool { return p.over && p.taker == nil && &p.stream != st }); i >= 0 {
			e.removeLocked(e.posts[i])
			continue
		}
		if len(st.list) < 2 {
			return
		}
		unseen := st.base >= st.sent
		msg := e.popLocked(st)
		if unseen && st.taker == nil {
			e.dropped(msg)
		}
	}
}

func (e *events) popLocked(st *stream) []byte {
	msg := st.pop()
	e.count--
	e.size -= len(msg)
	e.l.bytes.Add(-int64(len(msg)))
	return msg
}

// dropped is for a message that no client will get. A server that asked
// something must not wait for the answer for ever.
func (e *events) dropped(msg []byte) {
	if !e.warned {
		e.warned = true
		e.l.log.Warn("messages to a client are dropped: it takes no stream and too many wait", "session", e.s.id, "bound", maxEvents)
	}
	m, err := jsonrpc.Parse(msg)
	if err != nil || m.Kind != jsonrpc.Request {
		return
	}
	refusal, err := jsonrpc.Parse(jsonrpc.NewError(m.ID, jsonrpc.CodeInternal, "no stream of the client took the request", nil))
	if err != nil {
		return
	}
	req := &router.Request{Server: e.l.opts.Server, Session: e.s.id, Message: refusal}
	e.l.background(func() {
		ctx, cancel := context.WithTimeout(e.l.ctx, backendTimeout)
		defer cancel()
		_, _ = e.l.message(ctx, req, router.Discard) // as good as can be done
	})
}

// removeLocked forgets the stream of a call.
func (e *events) removeLocked(p *post) {
	if i := slices.Index(e.posts, p); i >= 0 {
		e.posts = slices.Delete(e.posts, i, i+1)
	}
	for len(p.list) > 0 {
		e.popLocked(&p.stream)
	}
	if len(e.posts) == 0 {
		e.posts = nil
	}
}

// close ends the streams: takers get why, and calls go on for those who called
// them, unless they are cut.
func (e *events) close(cut bool, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed == nil {
		e.closed = why
	}
	if e.pump != nil {
		e.pump.cancel()
	}
	streams := []*stream{&e.own}
	for _, p := range e.posts {
		streams = append(streams, &p.stream)
		if cut {
			p.cancel(why)
		}
	}
	for _, st := range streams {
		for len(st.list) > 0 {
			e.popLocked(st)
		}
		if st.taker != nil {
			st.taker.cancel(why)
		}
		if st.room != nil {
			nudge(st.room)
		}
	}
	e.l.odd.Lock()
	delete(e.l.kept, e)
	e.l.odd.Unlock()
}

// keep has the events looked after: they hold something that expires.
func (e *events) keep() {
	e.l.odd.Lock()
	defer e.l.odd.Unlock()
	e.l.kept[e] = struct{}{}
}

// expire drops what is old, and reports whether there is nothing more to look
// after.
func (e *events) expire(now time.Duration) (idle bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range slices.Clone(e.posts) {
		if p.taker != nil || p.out != nil || now-p.since < keepFor {
			continue
		}
		if p.over {
			e.removeLocked(p)
		} else {
			p.cancel(errAbandoned)
		}
	}
	own := &e.own
	for len(own.list) > 0 && now-own.list[0].at >= keepFor && (own.taker == nil || own.base < own.sent) {
		e.popLocked(own)
	}
	if e.pump != nil && own.taker == nil && now-own.since >= keepFor {
		e.pump.cancel()
		e.pump = nil
	}
	return e.count == 0 && len(e.posts) == 0 && e.pump == nil
}

// sendEvent sends a message with its id, to whoever knows ids.
func sendEvent(ctx context.Context, out router.Stream, id string, msg []byte) error {
	if events, ok := out.(router.EventStream); ok {
		return events.SendEvent(ctx, id, msg)
	}
	return out.Send(ctx, msg)
}

// ownSink puts what the server sends outside of calls onto the session's own
// stream.
type ownSink struct {
	l    *Layer
	s    *session
	e    *events // nil = the session's, as it is then
	tag  uint64
	open func() // called when the server says that its stream is open; nil = no matter
}

func (o *ownSink) Send(ctx context.Context, msg []byte) error {
	if o.open != nil {
		o.open()
	}
	if len(msg) == 0 {
		return nil
	}
	e := o.e
	if e == nil {
		e = o.l.eventsOf(o.s)
	}
	return e.push(ctx, nil, tagAsk(o.tag, msg))
}
