package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
)

// settle starts finding out whether a session is this instance's, and makes its
// backend session if it is and has none. s.mu is held. It does not hang on the
// request that caused it, since others may wait by the time that is cancelled.
func (l *Layer) settle(s *session, epoch uint64, principal string) *flight {
	f := &flight{done: make(chan struct{})}
	started := l.background(func() {
		ctx, cancel := context.WithTimeout(l.ctx, l.opts.AdoptTimeout)
		defer cancel()
		f.err = l.resolve(ctx, s, epoch, principal)
		if f.err != nil && l.ctx.Err() != nil {
			f.err = l.errClosing()
		}
		l.land(s, f)
	})
	if !started {
		f.err = l.errClosing()
		close(f.done)
		return f
	}
	s.flight = f
	return f
}

// land ends a flight. A session that came to nothing is forgotten.
func (l *Layer) land(s *session, f *flight) {
	s.mu.Lock()
	if s.flight == f {
		s.flight = nil
	}
	empty := f.err != nil && s.backend == "" && s.events == nil && s.changes == nil
	s.dead = s.dead || empty
	s.mu.Unlock()
	if empty {
		l.remove(s)
	}
	close(f.done)
}

// resolve asks the keeper whose the session is, and acts upon it. epoch is what
// a request has heard.
func (l *Layer) resolve(ctx context.Context, s *session, epoch uint64, principal string) error {
	pauses := l.pauses.Load() // before the record is read, which may be during the next one
	rec, err := l.find(ctx, s.id, epoch)
	if errors.Is(err, router.ErrSessionNotFound) {
		l.drop(s, true, err)
		return err
	}
	if err != nil {
		return err
	}
	if rec.Instance != l.opts.Instance {
		err := router.Moved(s.id, rec.Instance, rec.Epoch)
		if s.epochNow() != 0 {
			l.stats.deposed.Add(1)
			l.log.Info("session has another owner", "session", s.id, "owner", rec.Instance, "epoch", rec.Epoch)
		}
		l.drop(s, false, err)
		return err
	}
	if l.departed(s.id, rec.Epoch) {
		err := router.Moved(s.id, "", 0)
		l.drop(s, false, err)
		return err
	}
	s.mu.Lock()
	held := s.backend != "" && s.epoch == rec.Epoch
	if held {
		s.sure = pauses
	}
	s.mu.Unlock()
	if held {
		return nil
	}
	return l.adopt(ctx, s, rec, pauses, principal)
}

// adopt gives the session a backend session made by replay.
func (l *Layer) adopt(ctx context.Context, s *session, rec sessions.Record, pauses uint32, principal string) error {
	if rec.OnMove == sessions.OnMoveEnd || rec.OnMove == "" && l.opts.OnMove == sessions.OnMoveEnd {
		return l.endLost(ctx, s, rec)
	}
	cause := l.leaveEpoch(s, rec)
	if principal != "" {
		rec.Principal = principal
	}
	s.pending(&rec)
	made, err := l.replay(ctx, s, rec)
	if err != nil {
		l.log.Warn("session can't be made anew here", "session", s.id, "epoch", rec.Epoch, "err", err)
		return router.Errorf(router.ErrUnavailable, "session %s can't be made anew at instance %s: %v; nothing was executed", s.id, l.opts.Instance, err)
	}
	n := newNotice(cause, rec, made.result)
	s.mu.Lock()
	if s.dead { // ended meanwhile
		s.mu.Unlock()
		l.endBackend(made.backend)
		return l.errGone(s.id)
	}
	s.backend, s.tag, s.epoch, s.sure, s.notice = made.backend, made.tag, rec.Epoch, pauses, n
	s.used = l.now()
	s.mu.Unlock()
	l.stats.reinitialized.Add(1)
	l.log.Info("session reinitialized", "session", s.id, "epoch", rec.Epoch, "cause", cause)
	l.announce(s, rec, n)
	l.relisten(s, made.tag)
	return nil
}

// leaveEpoch gives up what the session had here under an earlier epoch, and
// returns why the new backend session is made.
func (l *Layer) leaveEpoch(s *session, rec sessions.Record) (cause string) {
	s.mu.Lock()
	old, was, e := s.backend, s.epoch, s.events
	s.backend = ""
	if was == rec.Epoch {
		s.mu.Unlock()
		return "the server's session was gone"
	}
	s.epoch = rec.Epoch
	s.events = nil
	s.mu.Unlock()
	if e != nil {
		e.close(false, router.Moved(s.id, rec.Instance, rec.Epoch))
	}
	if old != "" {
		l.endBackend(old)
	}
	if rec.Cause == "" {
		return "the session has moved"
	}
	return rec.Cause
}

// endLost ends a session whose state was in what is gone.
func (l *Layer) endLost(ctx context.Context, s *session, rec sessions.Record) error {
	err := l.opts.Keeper.End(ctx, l.opts.Server, s.id, rec.Epoch)
	if err != nil && !errors.Is(err, kv.ErrNotFound) {
		return l.keeperFailed("end", s.id, err)
	}
	l.endNoted(s.id)
	gone := router.Errorf(router.ErrSessionNotFound, "session %s of %q ended: the server's process or session that held its state is gone; send initialize to open another", s.id, l.opts.Server)
	l.drop(s, true, gone)
	return gone
}

// departure is a session that was released for another instance to take.
type departure struct {
	epoch uint64
	until time.Duration
}

// departureFor is how long a session that was released is not taken back at the
// epoch it had: its mover is about to raise that.
const departureFor = 5 * time.Second

func (l *Layer) departed(id string, epoch uint64) bool {
	l.odd.Lock()
	defer l.odd.Unlock()
	d, ok := l.left[id]
	return ok && epoch <= d.epoch && l.now() < d.until
}

// Release gives a session up for a planned move: it waits for the calls in
// flight, to which answers still go while new ones wait for it, and ends the backend session. Requests are
// then told that the session has moved. If ctx ends first, the session stays.
// One that is not held here is released already.
func (l *Layer) Release(ctx context.Context, id string) error {
	for {
		l.mu.RLock()
		s := l.sessions[id]
		l.mu.RUnlock()
		if s == nil {
			return nil
		}
		s.mu.Lock()
		if s.dead {
			s.mu.Unlock()
			return nil
		}
		if f := s.flight; f != nil {
			s.mu.Unlock()
			select {
			case <-f.done:
			case <-ctx.Done():
				return fmt.Errorf("release session %s: %w", id, ctx.Err())
			}
			continue
		}
		return l.release(ctx, s)
	}
}

// release is entered with s.mu held.
func (l *Layer) release(ctx context.Context, s *session) error {
	f := &flight{done: make(chan struct{}), busy: true}
	s.flight = f
	drained := make(chan struct{})
	if s.calls == 0 {
		close(drained)
	} else {
		s.drained = drained
	}
	epoch := s.epoch
	s.mu.Unlock()
	defer l.land(s, f)
	select {
	case <-drained:
	case <-ctx.Done():
		s.mu.Lock()
		n := s.calls
		s.drained = nil
		s.mu.Unlock()
		return fmt.Errorf("release session %s: %d calls are in flight: %w", s.id, n, ctx.Err())
	}
	l.odd.Lock()
	l.left[s.id] = departure{epoch, l.now() + departureFor}
	l.odd.Unlock()
	f.err = router.Moved(s.id, "", 0)
	l.drop(s, false, f.err) // a call may be about to enter again, having found its backend session gone
	return nil
}
