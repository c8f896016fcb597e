package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/session"
)

const (
	// overlap is how long an instance that moves or goes stays reachable the old
	// way after the registry knows: until every node has heard it, and every
	// server knows of the new subscriptions.
	overlap = 250 * time.Millisecond

	// settleRetry is how long a registration that is not stored yet is left alone.
	settleRetry = 10 * time.Millisecond

	// moveTimeout bounds each step of a move that waits for others.
	moveTimeout = 2 * time.Second

	// leaveTimeout bounds the last steps of Close.
	leaveTimeout = 2 * time.Second
)

// Move attaches the agent over nc, a connection to another server of the
// cluster, and then leaves the one it had, without losing a request: for a while
// it is reached over both. Calls in flight go on and are answered over nc. When
// Move returns, nothing more goes over the old connection, whose caller may close
// it. Moves wait for each other.
func (a *Agent) Move(ctx context.Context, nc *nats.Conn) error {
	a.moving.Lock()
	defer a.moving.Unlock()
	next := newLine(nc)
	err := a.subscribe(next)
	if err == nil {
		err = nc.FlushTimeout(moveTimeout)
	}
	a.mu.Lock()
	old := a.line
	if err != nil || a.closed {
		a.mu.Unlock()
		if err != nil {
			err = fmt.Errorf("move %s: %w", a.opts.Server, err)
		}
		return errors.Join(err, next.unsubscribe())
	}
	a.line, a.left = next, old
	a.mu.Unlock()
	a.settle(ctx)
	a.pause(ctx, overlap)
	a.mu.Lock()
	subs := append(old.shared, old.subs...)
	old.shared, a.left = nil, nil
	a.mu.Unlock()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTimeout)
	defer cancel()
	drain(end, old.nc, subs)
	a.out.turn(nc)
	a.log.Info("instance moved", "url", nc.ConnectedUrlRedacted())
	return nil
}

// settle registers where the agent has moved to, and waits until the registry's
// bucket says so: the node it leaves takes out what the bucket still has as its
// own, and the others would believe that the instance is gone. If that takes too
// long the registration loop goes on with it.
func (a *Agent) settle(ctx context.Context) {
	for end := time.Now().Add(moveTimeout); ; {
		stored, err := a.register()
		if err == nil && (stored || a.opts.Scope == kv.ScopeLocal) || errors.Is(err, kv.ErrAlreadyRegistered) ||
			time.Now().After(end) || !a.pause(ctx, settleRetry) {
			break
		}
	}
	a.registerSoon()
}

// pause waits, and reports whether there is reason to go on.
func (a *Agent) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.closing:
	case <-ctx.Done():
	}
	return false
}

// Close detaches the instance: it leaves the registry and the queue group, the
// calls in flight finish until ctx ends, its sessions go to other instances, then
// the backend is closed. Who still asks is told that nothing was executed. It is
// idempotent.
func (a *Agent) Close(ctx context.Context) error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	close(a.closing)
	a.mu.Unlock()
	a.moving.Lock() // a move ends soon now
	defer a.moving.Unlock()
	a.mu.Lock()
	l, record := a.line, a.record
	a.mu.Unlock()

	a.draining.Store(true)
	defer a.unwatch()
	var errs []error
	if l.nc.IsConnected() {
		if err := l.reg.Remove(ctx, record); errors.Is(err, kv.ErrRefused) {
			errs = append(errs, err)
		} else if err != nil { // the record goes with the connection
			a.log.Debug("not removed from the registry", "err", err)
		}
	}
	since := time.Now()
	a.mu.Lock()
	shared := l.shared
	a.mu.Unlock()
	if len(shared) > 0 {
		drain(ctx, l.nc, shared[:1]) // requests of this instance's sessions are still taken
	}
	var busy []session.Info
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		busy = a.handOver(ctx)
	}()
	a.table.drain(ctx)
	<-handed
	if l.nc.ConnectedClusterName() != "" { // other nodes must hear of it
		linger(ctx, overlap-time.Since(since))
		a.table.drain(ctx)
	}
	busy = append(busy, a.handOver(ctx)...) // those that were opened meanwhile
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	drain(end, l.nc, append(shared[min(1, len(shared)):], l.subs...))
	a.cancel()
	errs = append(errs, a.layer.Close())
	a.handCut(end, busy)
	a.wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach %s: %w", a.opts.Server, err)
	}
	return nil
}

func linger(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// turnAway answers a request that comes too late.
func (a *Agent) turnAway(msg *nats.Msg) {
	err := router.Errorf(router.ErrUnavailable, "instance %s of %s has stopped; nothing was executed", a.opts.Instance, a.opts.Server)
	a.respond(msg.Reply, router.ErrorReply(replyID(msg.Data), err), true)
}
