package keep

import (
	"context"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
)

const (
	causeDrain    = "drain"
	causeReleased = "released" // for a reason of its own
)

// Hand gives a session that its owner has released to another instance. If
// there is none now, the session waits for one.
func (k *Keep) Hand(ctx context.Context, server, id, from string, epoch uint64, cause string) (sessions.Record, error) {
	r, err := k.Find(ctx, server, id)
	switch {
	case err != nil:
		return r, err
	case r.Instance != from || r.Epoch != epoch:
		return r, nil // somebody was faster
	}
	if cause != causeDrain { // a label of metrics is not for agents to invent
		cause = causeReleased
	}
	return k.moveTo(ctx, r, k.opts.Pick(server, from), cause)
}

// Hand asks for it.
func (c Client) Hand(ctx context.Context, server, id, from string, epoch uint64, cause string) (sessions.Record, error) {
	a, err := c.ask(ctx, verbMove, server, question{ID: id, Avoid: from, Epoch: epoch, Cause: cause})
	return a.record(), err
}

// WatchMoves calls f with the record of each session that has moved.
func (k *Keep) WatchMoves(f func(r *sessions.Record)) (stop func()) {
	return k.store.Watch(func(c sessions.Change) {
		if !c.Gone && c.Record.Epoch > 1 {
			f(&c.Record)
		}
	})
}

// errNowhere: no instance can take the session.
func errNowhere(r *sessions.Record, to string) error {
	return router.Errorf(router.ErrUnavailable, "server %q has no instance %sto move session %.64s to; `ripstop ls instances` shows what is attached", r.Server, quoted(to), r.ID)
}

func quoted(instance string) string {
	if instance == "" {
		return "other "
	}
	return instance + " "
}

// Move gives a session to another instance though its owner is there: to, or
// any other if that is "". The owner, if it has not released it, finds itself
// deposed by the next request. It fails with kv.ErrNotFound and kv.ErrConflict.
func (k *Keep) Move(ctx context.Context, id, to, cause string) (sessions.Record, error) {
	r, err := k.fresh(ctx, id)
	if err != nil {
		return r, err
	}
	i := k.instance(r.Server, to)
	if to == "" {
		i = k.opts.Pick(r.Server, r.Instance)
	}
	switch {
	case i == nil:
		return r, errNowhere(&r, to)
	case i.Instance == r.Instance:
		return r, nil
	}
	return k.moveTo(ctx, r, i, cause)
}

// moveTo writes the new owner into the record.
func (k *Keep) moveTo(ctx context.Context, r sessions.Record, to *kv.Instance, cause string) (sessions.Record, error) {
	if to == nil {
		return r, errNowhere(&r, "")
	}
	began := time.Now()
	next := r
	next.Instance, next.Node, next.Epoch, next.Cause = to.Instance, to.Node, r.Epoch+1, cause
	next, err := k.store.Update(ctx, next)
	if err != nil {
		return r, err
	}
	k.stats.moved(cause, time.Since(began))
	k.tell(EventMoved, &r, &next, cause)
	k.log.Info("session moved", "session", r.ID, "server", r.Server, "from", r.Instance, "to", next.Instance, "node", next.Node, "epoch", next.Epoch, "cause", cause)
	return next, nil
}
