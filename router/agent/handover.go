package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router/session"
)

// mover is what a keeper is too that gives sessions which their owner has
// released to other instances. Without one they are found to be without an
// owner by their next requests.
type mover interface {
	Hand(ctx context.Context, server, id, from string, epoch uint64, cause string) (sessions.Record, error)
}

const (
	causeDrain = "drain" // of moves

	handWorkers = 32                     // sessions handed on at once
	handQuick   = 100 * time.Millisecond // what the calls of one session may hold up the others
)

// handOver gives the sessions held here to other instances, each as soon as its
// calls in flight are over, until ctx ends. Where there is no other instance,
// they wait for one. It returns what it could not hand on, since calls went on.
func (a *Agent) handOver(ctx context.Context) []session.Info {
	m, ok := a.keeper.(mover)
	if !ok || a.opts.OnMove == sessions.OnMoveEnd {
		return nil
	}
	list := a.layer.Sessions()
	busy := a.handAll(ctx, m, list, handWorkers, handQuick)
	left := a.handAll(ctx, m, busy, len(busy), 0)
	if len(list) > 0 {
		a.log.Info("sessions handed on", "sessions", len(list)-len(left), "busy", len(left))
	}
	return left
}

// handAll hands sessions on, each of whose calls may take patience; 0 = as long
// as ctx.
func (a *Agent) handAll(ctx context.Context, m mover, list []session.Info, workers int, patience time.Duration) (left []session.Info) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan session.Info)
	for range min(workers, len(list)) {
		wg.Go(func() {
			for s := range next {
				if a.handOne(ctx, m, s, patience) {
					continue
				}
				mu.Lock()
				left = append(left, s)
				mu.Unlock()
			}
		})
	}
	for _, s := range list {
		next <- s
	}
	close(next)
	wg.Wait()
	return left
}

func (a *Agent) handOne(ctx context.Context, m mover, s session.Info, patience time.Duration) (done bool) {
	wait, cancel := ctx, func() {}
	if patience > 0 {
		wait, cancel = context.WithTimeout(ctx, patience)
	}
	err := a.layer.Release(wait, s.ID)
	cancel()
	if err != nil {
		return false
	}
	a.hand(ctx, m, s)
	return true
}

// hand has a released session moved. A failure is no loss: its next request
// finds the instance gone, or one that comes.
func (a *Agent) hand(ctx context.Context, m mover, s session.Info) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if _, err := m.Hand(ctx, a.opts.Server, s.ID, a.opts.Instance, s.Epoch, causeDrain); err != nil && !errors.Is(err, kv.ErrNotFound) {
		a.log.Debug("session not handed on; its next request finds an instance", "session", s.ID, "err", err)
	}
}

// handCut hands on the sessions whose calls have been cut off.
func (a *Agent) handCut(ctx context.Context, list []session.Info) {
	m, ok := a.keeper.(mover)
	if !ok {
		return
	}
	var wg sync.WaitGroup
	next := make(chan session.Info)
	for range min(handWorkers, len(list)) {
		wg.Go(func() {
			for s := range next {
				a.hand(ctx, m, s)
			}
		})
	}
	for _, s := range list {
		next <- s
	}
	close(next)
	wg.Wait()
}

// watcher is what a keeper is too that hears of moves.
type watcher interface {
	WatchMoves(f func(r *sessions.Record)) (stop func())
}

// followMoves tells the layer of sessions that have moved on.
func (a *Agent) followMoves() (stop func()) {
	w, ok := a.keeper.(watcher)
	if !ok {
		return func() {}
	}
	return w.WatchMoves(func(r *sessions.Record) {
		if r.Server == a.opts.Server && r.Instance != a.opts.Instance {
			a.layer.Moved(r.ID, r.Epoch)
		}
	})
}
