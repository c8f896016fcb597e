package session

import (
	"context"
	"errors"
	"net/http"
	"time"

	"ripstop/router"
)

// openGrace is how long a listener's first word waits for the backend to say
// whether it offers a stream; not all do.
const openGrace = 30 * time.Millisecond

// listen serves a GET: the session's own stream, or what is left of a call's.
func (l *Layer) listen(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	u, err := l.enter(ctx, req)
	if err != nil {
		return nil, err
	}
	defer l.leave(u, req.Op)
	name, n, ok := parseEventID(req.LastEventID)
	if !ok && req.LastEventID != "" {
		return nil, errEventID(req.LastEventID)
	}
	epoch, own := ownEpoch(name)
	if ok && !own {
		return l.resume(ctx, u, name, n, out)
	}
	e := l.eventsOf(u.s)
	p := e.startPump(req)
	if p == nil {
		return nil, l.errClosing()
	}
	grace := time.NewTimer(openGrace)
	defer grace.Stop()
	select {
	case <-p.ready:
		if p.reply != nil || p.err != nil {
			return p.reply, p.err
		}
	case <-grace.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.mu.Lock()
	pos := e.own.sent
	current, _ := ownEpoch(e.own.name)
	if ok && epoch == current {
		pos = min(n, e.own.last())
	} else if ok {
		pos = e.own.base
	}
	e.mu.Unlock()
	before := func() error {
		e.startPump(req) // if it has stopped, since nobody listened
		if ok && epoch < current {
			return l.earlier(ctx, u.s.id, epoch, n, current, out)
		}
		return nil
	}
	return l.take(ctx, e, &e.own, pos, out, before)
}

// maxEpochs is how many epochs back the events of a session's own stream are
// looked for; they are kept for minutes only.
const maxEpochs = 16

// earlier sends the events of earlier owners.
func (l *Layer) earlier(ctx context.Context, id string, epoch, n, current uint64, out router.Stream) error {
	if epoch+maxEpochs < current {
		epoch, n = current-maxEpochs, 0
	}
	for ; epoch < current; epoch++ {
		if _, err := l.backfill(ctx, id, ownStream(epoch), n, 0, out); err != nil {
			return err
		}
		n = 0
	}
	return nil
}

// take passes a stream on, after a position, until it or the client is gone.
func (l *Layer) take(ctx context.Context, e *events, st *stream, pos uint64, out router.Stream, before func() error) (*router.Reply, error) {
	t, err := e.attach(ctx, st, pos)
	if err != nil {
		return nil, err
	}
	defer e.detach(st, t)
	if before != nil && t.ctx.Err() == nil {
		if err := before(); err != nil {
			return nil, err
		}
	}
	if err := sendEvent(t.ctx, out, eventID(st.name, pos), nil); err != nil {
		return nil, l.ended(ctx, t, err)
	}
	e.mu.Lock()
	base := st.base
	e.mu.Unlock()
	if pos < base {
		if _, err := l.backfill(t.ctx, e.s.id, st.name, pos, base, out); err != nil {
			return nil, l.ended(ctx, t, err)
		}
	}
	for {
		msg, id, ok := e.next(st, t)
		if !ok {
			break
		}
		if err := sendEvent(t.ctx, out, id, msg); err != nil {
			return nil, l.ended(ctx, t, err)
		}
		e.took(st, t)
	}
	if err := l.ended(ctx, t, nil); err != nil {
		return nil, err
	}
	return &router.Reply{Status: http.StatusOK}, nil
}

// ended says why a taker is at its end; nil if the stream is simply over.
func (l *Layer) ended(ctx context.Context, t *taker, err error) error {
	cause := context.Cause(t.ctx)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case cause == nil:
		return err
	case cause == errTakenOver, errors.Is(cause, router.ErrSessionNotFound):
		return nil // the client has another stream, or no session
	}
	return cause
}

// pump takes the backend's own stream from the first listener on, so that
// nothing is lost while a client looks for another edge.
type pump struct {
	cancel context.CancelFunc
	again  context.CancelFunc // ends the one listen under way; guarded by events.mu, as tag is
	tag    uint64             // of the backend session listened to
	ready  chan struct{}      // closed when the stream is open, or can't be had
	once   bool               // ready is closed
	reply  *router.Reply      // why it can't be had: the backend's own words
	err    error
}

func (e *events) startPump(req *router.Request) *pump {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pump != nil {
		return e.pump
	}
	ctx, cancel := context.WithCancel(e.l.ctx)
	p := &pump{cancel: cancel, ready: make(chan struct{})}
	e.own.since = e.l.now()
	to := *req
	to.LastEventID, to.StreamID, to.Epoch = "", "", 0
	if e.closed != nil || !e.l.background(func() {
		defer cancel()
		e.run(ctx, p, &to)
	}) {
		cancel()
		return nil
	}
	e.pump = p
	return p
}

// open closes p.ready, with the reason why there is no stream if there is one.
func (e *events) open(p *pump, reply *router.Reply, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !p.once {
		p.once, p.reply, p.err = true, reply, err
		close(p.ready)
	}
}

// relisten makes the session's pump listen at the backend session there is now.
func (l *Layer) relisten(s *session, tag uint64) {
	s.mu.Lock()
	e := s.events
	s.mu.Unlock()
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pump != nil && e.pump.again != nil && e.pump.tag != tag {
		e.pump.again()
	}
}

// Pauses of a pump whose stream ends as soon as it is open.
const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
	goodFor  = 10 * time.Second
)

// run listens at the backend until there is no use in it.
func (e *events) run(ctx context.Context, p *pump, req *router.Request) {
	defer e.stopped(p)
	pause := minPause
	for {
		began := time.Now()
		reply, err := e.listenOnce(ctx, p, req)
		if ctx.Err() != nil {
			return
		}
		gone := errors.Is(err, router.ErrSessionNotFound)
		refused := err != nil && !gone || reply != nil && reply.Status >= 300
		switch {
		case refused:
			e.open(p, reply, err)
			e.stop(p, err)
			return
		case gone && e.unwanted(p):
			return
		}
		if time.Since(began) > goodFor {
			pause = minPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// listenOnce listens at the backend session as it is now, and makes it anew if
// it is gone and a client listens: it may wait for what it subscribed to.
func (e *events) listenOnce(ctx context.Context, p *pump, req *router.Request) (*router.Reply, error) {
	u, err := e.l.enter(ctx, req)
	if err != nil {
		return nil, err
	}
	defer e.l.leave(u, req.Op)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	p.again, p.tag = cancel, u.tag
	e.mu.Unlock()
	to := *req
	to.Session = u.backend
	sink := &ownSink{l: e.l, e: e, tag: u.tag, open: func() { e.open(p, nil, nil) }}
	reply, err := e.l.call(ctx, &to, sink)
	if errors.Is(err, router.ErrSessionNotFound) {
		u.s.lost(u)
	}
	if err != nil && ctx.Err() != nil {
		return nil, nil // told to listen again
	}
	return reply, err
}

// taken reports whether a client takes the session's own stream.
func (e *events) taken() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.own.taker != nil
}

// unwanted stops the pump if no client listens.
func (e *events) unwanted(p *pump) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.own.taker == nil && e.pump == p {
		e.pump = nil
	}
	return e.own.taker == nil
}

// stop ends the pump, and with it the client's listening, with why if that is
// anything to act upon.
func (e *events) stop(p *pump, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pump == p {
		e.pump = nil
	}
	if e.own.taker == nil {
		return
	}
	if why == nil {
		why = errTakenOver
	}
	e.own.taker.cancel(why)
}

// stopped is what is left to do when a pump has ended.
func (e *events) stopped(p *pump) {
	e.mu.Lock()
	why := e.closed
	if e.pump == p {
		e.pump = nil
	}
	e.mu.Unlock()
	if why == nil {
		why = router.Errorf(router.ErrUnavailable, "the session's stream ended before it was open; try again")
	}
	e.open(p, nil, why)
}
