package session

import (
	"sync"
	"time"
)

// A process that stood still (SIGSTOP, a paused machine) may have lost its
// sessions to others meanwhile. It must not serve them before it has asked.
const (
	tickEvery = 500 * time.Millisecond
	pauseOver = 2 * time.Second // longer than a busy machine makes a tick wait; sessions move later than that
)

// watch takes note that time goes on.
func (l *Layer) watch() {
	every := time.NewTicker(tickEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			l.awake(l.now())
			l.tick.Store(int64(l.now()))
		case <-l.ctx.Done():
			return
		}
	}
}

// awake notices when the process stood still until now.
func (l *Layer) awake(now time.Duration) {
	last := l.tick.Load()
	if now-time.Duration(last) > pauseOver && l.tick.CompareAndSwap(last, int64(now)) {
		l.Doubt()
		l.log.Warn("this process stood still; its sessions are confirmed before they are served", "for", now-time.Duration(last))
	}
}

// Doubt has every session confirmed before it is served again: after the
// instance was cut off from its node, its sessions may be others'.
func (l *Layer) Doubt() {
	l.paused.Store(int64(l.now()))
	l.pauses.Add(1)
}

// pausedFor is how long what comes in may have been sent before a pause.
const pausedFor = 3 * time.Second

// Paused reports whether the process has just gone on after it stood still, or
// was believed to, so that what comes in may be old.
func (l *Layer) Paused() bool {
	now := l.now()
	l.awake(now)
	at := l.paused.Load()
	return at != 0 && now-time.Duration(at) < pausedFor
}

// Moved says that a session is under epoch now. If it is held here under a lower
// one, its streams end and its next request is checked.
func (l *Layer) Moved(id string, epoch uint64) {
	l.mu.RLock()
	s := l.sessions[id]
	l.mu.RUnlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	old := !s.dead && s.flight == nil && s.epoch < epoch // a flight asks the keeper anyway
	if old {
		s.sure = l.pauses.Load() - 1
	}
	s.mu.Unlock()
	if old {
		l.background(func() { l.confirm(s) })
	}
}

// tidyEvery is how often what lasts too long is looked for.
const (
	tidyEvery   = time.Second
	expireEvery = 5 * time.Second
)

// tidy ends what is idle or old, and tries again what failed.
func (l *Layer) tidy() {
	every := time.NewTicker(min(tidyEvery, max(l.opts.Idle/8, 10*time.Millisecond)))
	defer every.Stop()
	pauses := l.pauses.Load()
	idleEvery := min(max(l.opts.Idle/8, 10*time.Millisecond), 15*time.Second)
	idleLast, oldLast := l.now(), l.now()
	for {
		select {
		case <-every.C:
		case <-l.ctx.Done():
			return
		}
		now := l.now()
		if p := l.pauses.Load(); p != pauses {
			pauses = p
			l.confirmStreams()
		}
		l.saveAgain()
		if now-oldLast >= expireEvery {
			oldLast = now
			l.expire(now)
		}
		if now-idleLast >= idleEvery {
			idleLast = now
			l.endIdle(now)
		}
	}
}

// expire drops what is kept of streams and departures for long enough.
func (l *Layer) expire(now time.Duration) {
	l.odd.Lock()
	list := make([]*events, 0, len(l.kept))
	for e := range l.kept {
		list = append(list, e)
	}
	for id, d := range l.left {
		if now >= d.until {
			delete(l.left, id)
		}
	}
	l.odd.Unlock()
	for _, e := range list {
		if e.expire(now) {
			l.odd.Lock()
			delete(l.kept, e)
			l.odd.Unlock()
		}
	}
}

// endIdle ends the sessions that nobody uses any more.
func (l *Layer) endIdle(now time.Duration) {
	var idle []*session
	for _, s := range l.held() {
		s.mu.Lock()
		if !s.dead && s.flight == nil && s.calls == 0 && now-s.used >= l.opts.Idle && !s.listening() {
			s.dead = true // now, while no request can find it and begin
			idle = append(idle, s)
		}
		s.mu.Unlock()
	}
	if len(idle) == 0 {
		return
	}
	l.log.Debug("sessions end: they are idle", "sessions", len(idle), "for", l.opts.Idle)
	for _, s := range idle {
		l.drop(s, true, l.errGone(s.id))
	}
	l.endRecords(l.ctx, idle)
}

// listening reports whether a client has the session's own stream. s.mu is held.
func (s *session) listening() bool {
	return s.events != nil && s.events.taken()
}

// confirmStreams settles the sessions that clients listen to: those send
// nothing by which it would be noticed that the session has moved.
func (l *Layer) confirmStreams() {
	var wg sync.WaitGroup
	next := make(chan *session)
	for range endWorkers {
		wg.Go(func() {
			for s := range next {
				l.confirm(s)
			}
		})
	}
	for _, s := range l.held() {
		s.mu.Lock()
		listening := s.listening()
		s.mu.Unlock()
		if listening {
			next <- s
		}
	}
	close(next)
	wg.Wait()
}

func (l *Layer) confirm(s *session) {
	s.mu.Lock()
	if s.dead || s.sure == l.pauses.Load() {
		s.mu.Unlock()
		return
	}
	f := s.flight
	if f == nil {
		f = l.settle(s, 0, "")
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-l.ctx.Done():
	}
}
