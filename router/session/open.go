package session

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// open serves an initialize: a session begins at the backend, and then in the
// record. A backend that opens none is stateless, and so is the client then.
func (l *Layer) open(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	l.mu.RLock()
	held, closed := len(l.sessions), l.closed
	l.mu.RUnlock()
	switch {
	case closed:
		return nil, l.errClosing()
	case held >= l.opts.MaxSessions:
		return nil, l.errFull()
	}
	to, data := l.withData(ctx, "", 0)
	reply, err := l.call(to, req, out)
	if err != nil || reply.Session == "" {
		return reply, err
	}
	backend := reply.Session
	id := router.NewSessionID(l.opts.Instance)
	rec, err := l.opts.Keeper.Open(ctx, sessions.Record{
		ID:     id,
		Server: l.opts.Server, Instance: l.opts.Instance, Node: l.opts.Node(), Epoch: 1,
		Version: negotiated(reply.Body), OnMove: l.opts.OnMove, Principal: req.Principal,
		Initialize: slices.Clone(req.Message.Params),
	})
	if err != nil {
		l.endBackend(backend)
		l.background(func() { l.endRecord(l.ctx, id, 1) }) // it may have been written nevertheless
		return nil, l.errUnrecorded(err)
	}
	data.open(rec.ID, rec.Epoch)
	l.awake(l.now())
	s := &session{id: rec.ID, backend: backend, epoch: rec.Epoch, used: l.now(), sure: l.pauses.Load()}
	l.mu.Lock()
	closed = l.closed
	if !closed {
		l.sessions[s.id] = s
	}
	l.mu.Unlock()
	if closed {
		return nil, l.errClosing()
	}
	l.stats.opened.Add(1)
	opened := *reply
	opened.Session = s.id
	return &opened, nil
}

// errUnrecorded is for a session that the keeper does not take.
func (l *Layer) errUnrecorded(err error) error {
	l.log.Warn("session not opened: its record can't be written", "err", err)
	kind := router.ErrUnavailable
	var known *router.Error
	if errors.As(err, &known) {
		kind = known
	}
	return router.Errorf(kind, "the session can't be recorded: %v; it was not opened, send initialize again", err)
}

// negotiated reads the protocol version from the response to an initialize.
func negotiated(body []byte) string {
	m, err := jsonrpc.Parse(body)
	if err != nil {
		return ""
	}
	var r struct {
		Version string `json:"protocolVersion"`
	}
	_ = json.Unmarshal(m.Result, &r) // a result without one says nothing of versions
	return r.Version
}

// end serves the end of a session by its client. The record goes first: whatever
// becomes of the rest, the session can't come back.
func (l *Layer) end(ctx context.Context, req *router.Request) (*router.Reply, error) {
	rec, err := l.find(ctx, req.Session, req.Epoch) // End does nothing to a session that has moved on
	if err != nil {
		return nil, err
	}
	if rec.Instance != l.opts.Instance {
		return nil, router.Moved(req.Session, rec.Instance, rec.Epoch)
	}
	if err := l.opts.Keeper.End(ctx, l.opts.Server, req.Session, rec.Epoch); err != nil && !errors.Is(err, kv.ErrNotFound) {
		return nil, l.keeperFailed("end", req.Session, err)
	}
	l.endNoted(req.Session)
	l.mu.RLock()
	s := l.sessions[req.Session]
	l.mu.RUnlock()
	if s == nil {
		return &router.Reply{Status: http.StatusNoContent}, nil
	}
	return l.endHere(ctx, s, req), nil
}

// endHere ends a session whose record is gone. The client hears what the server
// said to it.
func (l *Layer) endHere(ctx context.Context, s *session, req *router.Request) *router.Reply {
	s.mu.Lock()
	backend := s.backend
	s.backend = "" // ended below, with the client's own request
	s.mu.Unlock()
	l.drop(s, true, l.errGone(s.id))
	if backend == "" {
		return &router.Reply{Status: http.StatusNoContent}
	}
	to := *req
	to.Session, to.Epoch = backend, 0
	reply, err := l.call(ctx, &to, router.Discard)
	if err != nil {
		if !errors.Is(err, router.ErrSessionNotFound) {
			l.log.Debug("backend session not ended", "session", s.id, "err", err)
			l.endBackend(backend) // the client may have gone in the middle of it
		}
		return &router.Reply{Status: http.StatusNoContent}
	}
	return reply
}

// endWorkers is how many records are ended at once.
const endWorkers = 16

// endRecords ends the records of sessions that are dropped or idle, until ctx
// ends. What is left, the nodes clean up when it has been idle for long.
func (l *Layer) endRecords(ctx context.Context, list []*session) {
	var wg sync.WaitGroup
	next := make(chan *session)
	for range min(endWorkers, len(list)) {
		wg.Go(func() {
			for s := range next {
				l.endRecord(ctx, s.id, s.epochNow())
			}
		})
	}
	for _, s := range list {
		next <- s
	}
	close(next)
	wg.Wait()
}

func (l *Layer) endRecord(ctx context.Context, id string, epoch uint64) {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if epoch == 0 || ctx.Err() != nil {
		return
	}
	l.endNoted(id)
	if err := l.opts.Keeper.End(ctx, l.opts.Server, id, epoch); err != nil && !errors.Is(err, kv.ErrNotFound) {
		l.log.Warn("record of an ended session is left", "session", id, "err", err)
	}
}

// endNoted is for every session that ends, other than by its end elsewhere.
func (l *Layer) endNoted(id string) {
	l.stats.ended.Add(1)
	if l.opts.Events != nil {
		l.opts.Events.Forget(id)
	}
}

func (s *session) epochNow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// keeperFailed is what a client hears when the keeper can't say or do something.
func (l *Layer) keeperFailed(verb, id string, err error) error {
	var known *router.Error
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return l.errGone(id)
	case errors.As(err, &known):
		return known
	}
	return router.Errorf(router.ErrUnavailable, "%s session %.80q: its record can't be reached: %v; nothing was executed, try again", verb, id, err)
}

// findPatience is how long the record may lag behind what the sender of a
// request has heard of it.
const findPatience = 300 * time.Millisecond

// find asks the keeper for a session's record, until it is of epoch at least.
func (l *Layer) find(ctx context.Context, id string, epoch uint64) (sessions.Record, error) {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		rec, err := l.opts.Keeper.Find(ctx, l.opts.Server, id)
		if err != nil {
			return rec, l.keeperFailed("find", id, err)
		}
		if rec.Epoch >= epoch {
			return rec, nil
		}
		if wait > findPatience {
			return rec, router.Errorf(router.ErrUnavailable, "session %s has moved on, but its record is not known here yet; nothing was executed, try again", id)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return rec, ctx.Err()
		}
	}
}
