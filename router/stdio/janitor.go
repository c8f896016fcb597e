package stdio

import "time"

// sweepLocked starts the janitor with the first thing it may have to end.
func (b *Backend) sweepLocked() {
	if !b.sweeping {
		b.sweeping = true
		b.work.Go(b.sweep)
	}
}

// sweep ends what has been idle for too long, until Close.
func (b *Backend) sweep() {
	every := time.NewTicker(min(max(b.opts.IdleTimeout/8, 10*time.Millisecond), 15*time.Second))
	defer every.Stop()
	for {
		select {
		case now := <-every.C:
			b.endIdle(now)
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Backend) endIdle(now time.Time) {
	limit := b.opts.IdleTimeout
	b.mu.Lock()
	var idle []*session
	for id, s := range b.sessions {
		if s.idleFor(now) >= limit {
			delete(b.sessions, id) // now, while no request can find it and begin
			idle = append(idle, s)
		}
	}
	b.mu.Unlock()
	for _, s := range idle {
		b.log.Debug("session ended", "session", s.id, "idle", limit)
		s.close("it was idle for " + limit.String())
	}
	for _, l := range []*link{b.anon, b.legacy} {
		if l == nil {
			continue
		}
		used, idle := l.idleSince()
		if idle && now.Sub(used) >= limit && len(b.sessionsOf(l)) == 0 {
			l.retire("it was idle for " + limit.String())
		}
	}
}
