package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// session is one session that this instance has, or is finding out about. There
// may be 100,000 of them, so it keeps nothing that its record does too.
type session struct {
	id string

	mu      sync.Mutex
	backend string        // the backend's id of it; "" = it must be made
	epoch   uint64        // under which this instance has it
	tag     uint64        // of the backend session, if it is not the one that the client itself opened; see asks.go
	used    time.Duration // when it last had something to do, by Layer.now
	sure    uint32        // Layer.pauses when the record last was known to name this instance
	calls   int32         // in flight
	dead    bool          // forgotten; look it up again
	flight  *flight       // what requests must wait for; nil = nothing
	drained chan struct{} // closed when calls is 0, while someone waits for that
	notice  *notice       // what the client is not told yet
	changes *changes      // nil = none were ever made
	events  *events       // nil = none were ever needed
}

// flight is something that requests of a session wait for.
type flight struct {
	done chan struct{}
	err  error
	busy bool // it waits for calls in flight, to which answers and cancellations still go
}

// use is a session while a request is served in it.
type use struct {
	s       *session
	backend string
	tag     uint64
	epoch   uint64
}

// maxSettles is how often a request finds that its session must be settled
// before it gives up: each time it has come from one state into another.
const maxSettles = 5

// enter returns the session that req names, ready to be used; leave must be
// called. Errors mean that nothing was executed.
func (l *Layer) enter(ctx context.Context, req *router.Request) (use, error) {
	for range maxSettles {
		s, err := l.lookup(req.Session)
		if err != nil {
			return use{}, err
		}
		now := l.now()
		l.awake(now)
		s.mu.Lock()
		if s.dead {
			s.mu.Unlock()
			l.remove(s)
			continue
		}
		if (s.flight == nil || s.flight.busy && belongs(req)) && s.backend != "" && req.Epoch <= s.epoch && s.sure == l.pauses.Load() {
			u := use{s, s.backend, s.tag, s.epoch}
			if req.Op != router.OpListen {
				s.calls++
			}
			s.used = now
			s.mu.Unlock()
			return u, nil
		}
		f := s.flight
		if f == nil {
			f = l.settle(s, req.Epoch, req.Principal)
		}
		s.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return use{}, fmt.Errorf("wait for session %s: %w", s.id, ctx.Err())
		}
		if f.err != nil {
			return use{}, f.err
		}
	}
	return use{}, router.Errorf(router.ErrUnavailable, "session %s keeps changing its state; nothing was executed, try again", req.Session)
}

// belongs reports whether a message is for a call in flight.
func belongs(req *router.Request) bool {
	return req.Op == router.OpMessage && req.Message.Kind != jsonrpc.Request
}

// leave ends a use.
func (l *Layer) leave(u use, op router.Op) {
	s := u.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = max(s.used, time.Duration(l.tick.Load()))
	if op == router.OpListen {
		return
	}
	if s.calls--; s.calls > 0 {
		return
	}
	if s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
	if s.dead && s.backend != "" {
		l.endBackend(s.backend)
		s.backend = ""
	}
}

// lookup returns the session of that id; one that is not known begins without a
// backend session.
func (l *Layer) lookup(id string) (*session, error) {
	l.mu.RLock()
	s, closed := l.sessions[id], l.closed
	l.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	if closed {
		return nil, l.errClosing()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, l.errClosing()
	case l.sessions[id] != nil:
		return l.sessions[id], nil
	case len(l.sessions) >= l.opts.MaxSessions:
		return nil, l.errFull()
	}
	s = &session{id: id, used: l.now()}
	l.sessions[id] = s
	return s, nil
}

func (l *Layer) errFull() error {
	return router.Errorf(router.ErrOverloaded, "instance %s of %q holds %d sessions, its limit; nothing was executed, try again later", l.opts.Instance, l.opts.Server, l.opts.MaxSessions)
}

func (l *Layer) remove(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.id] == s {
		delete(l.sessions, s.id)
	}
}

// lost notes that the backend does not know its session any more. It reports
// false if that is no news.
func (s *session) lost(u use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == u.backend {
		s.backend = ""
	}
}

// drop forgets a session. Its backend session ends when the calls in it have,
// or at once if cut; those that listen get why.
func (l *Layer) drop(s *session, cut bool, why error) {
	s.mu.Lock()
	s.dead = true
	backend := ""
	if cut || s.calls == 0 {
		backend, s.backend = s.backend, ""
	}
	s.mu.Unlock()
	s.close(cut, why)
	l.remove(s)
	if backend != "" {
		l.endBackend(backend)
	}
}

// kill is what becomes of a session when the layer closes.
func (s *session) kill(why error) {
	s.mu.Lock()
	s.dead = true
	s.backend = ""
	s.mu.Unlock()
	s.close(true, why)
}

func (s *session) close(cut bool, why error) {
	s.mu.Lock()
	e := s.events
	s.mu.Unlock()
	if e != nil {
		e.close(cut, why)
	}
}

// backendTimeout bounds the end of a backend session.
const backendTimeout = 10 * time.Second

// endBackend ends a backend session in the background.
func (l *Layer) endBackend(id string) {
	l.background(func() { // once closed, the backend ends all of them itself
		ctx, cancel := context.WithTimeout(l.ctx, backendTimeout)
		defer cancel()
		_, err := l.call(ctx, &router.Request{Op: router.OpEnd, Server: l.opts.Server, Session: id}, router.Discard)
		if err != nil && !errors.Is(err, router.ErrSessionNotFound) && l.ctx.Err() == nil {
			l.log.Debug("backend session not ended", "err", err)
		}
	})
}

func (l *Layer) errGone(id string) error {
	return router.Errorf(router.ErrSessionNotFound, "session %.80q of %q has ended or never was; send initialize to open one", id, l.opts.Server)
}
