package eras

import (
	"time"

	"ripstop/router"
)

// admit takes a place for a session to be opened; admitted gives it back.
func (w *wrapper) admit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch held := len(w.sessions) + w.opening; {
	case w.closed:
		return w.errClosing()
	case held >= w.opts.MaxSessions:
		return router.Errorf(router.ErrOverloaded, "instance %s holds %d sessions, its limit; end one or wait for idle ones to expire", w.opts.Instance, held)
	}
	w.opening++
	return nil
}

func (w *wrapper) admitted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opening--
}

// keep makes a session known under a fresh id.
func (w *wrapper) keep(s *session) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	s.id = router.NewSessionID(w.opts.Instance)
	s.used.Store(time.Now().UnixNano())
	w.sessions[s.id] = s
	w.open.Store(int64(len(w.sessions)))
	if len(w.sessions) == 1 {
		w.scheduleSweep()
	}
	return true
}

// session returns the session of that id, in use until release, or nil.
func (w *wrapper) session(id string) *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sessions[id]
	if s != nil {
		s.uses.Add(1)
	}
	return s
}

func (s *session) release() {
	s.used.Store(time.Now().UnixNano())
	s.uses.Add(-1)
}

// end ends a session.
func (w *wrapper) end(s *session) {
	w.mu.Lock()
	delete(w.sessions, s.id)
	w.open.Store(int64(len(w.sessions)))
	w.mu.Unlock()
	s.close()
}

func (s *session) close() { s.cancel() }

// scheduleSweep arms the timer that ends idle sessions. w.mu is held.
func (w *wrapper) scheduleSweep() {
	every := min(max(w.opts.IdleTimeout/8, 10*time.Millisecond), time.Minute)
	if w.sweeper == nil {
		w.sweeper = time.AfterFunc(every, w.sweep)
		return
	}
	w.sweeper.Reset(every)
}

func (w *wrapper) sweep() {
	var idle []*session
	w.mu.Lock()
	limit := time.Now().Add(-w.opts.IdleTimeout).UnixNano()
	for id, s := range w.sessions {
		if s.uses.Load() == 0 && s.used.Load() < limit {
			idle = append(idle, s)
			delete(w.sessions, id)
		}
	}
	w.open.Store(int64(len(w.sessions)))
	if len(w.sessions) > 0 && !w.closed {
		w.scheduleSweep()
	}
	w.mu.Unlock()
	for _, s := range idle {
		s.close()
	}
}
