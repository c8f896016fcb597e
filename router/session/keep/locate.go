package keep

import (
	"context"
	"errors"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
)

const (
	// locateTimeout is how long a request may wait for its session's instance,
	// or another, to appear.
	locateTimeout = 3 * time.Second

	// An instance whose connection has ended may be on its way back: its agent
	// connects again. If its node went with it, that takes longer.
	graceConn = 100 * time.Millisecond
	graceNode = 500 * time.Millisecond

	// graceShown is how long an instance that did not take a request, but stands
	// in the registry, may take to leave it.
	graceShown = 300 * time.Millisecond
)

// Locate implements [session.Keeper].
func (k *Keep) Locate(ctx context.Context, server, id, avoid string, epoch uint64) (sessions.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	r, known := k.store.Lookup(id)
	if !known || r.Instance == avoid && r.Epoch <= epoch {
		var err error
		if r, err = k.fresh(ctx, id); err != nil {
			return r, notFound(server, id, err)
		}
	}
	graced := uint64(0) // the epoch whose owner had its time
	asked := uint64(0)  // the epoch whose owner was asked whether it hangs
	for {
		there := k.there(&r)
		switch {
		case r.Server != server: // nothing of it is for an agent of another server
			return sessions.Record{}, notFound(server, id, kv.ErrNotFound)
		case there && r.Instance == avoid && r.Epoch <= epoch && asked != r.Epoch:
			asked = r.Epoch
			if !k.silent(ctx, r.Server, r.Instance, true) {
				continue
			}
			next, err := k.move(ctx, r, causeHung)
			if err == nil || !errors.Is(err, errAgain) {
				return next, err
			}
			asked = 0
		case there && (r.Instance != avoid || r.Epoch > epoch || graced == r.Epoch):
			return r, nil
		case graced != r.Epoch:
			if there || !k.silent(ctx, r.Server, r.Instance, false) { // what hung before it was gone is on no way back
				k.grace(ctx, &r, avoid)
			}
			graced = r.Epoch
		default:
			next, err := k.move(ctx, r, k.cause(&r))
			if err == nil || !errors.Is(err, errAgain) {
				return next, err
			}
		}
		var err error
		if r, err = k.fresh(ctx, id); err != nil {
			return r, notFound(server, id, err)
		}
	}
}

func notFound(server, id string, err error) error {
	if !errors.Is(err, kv.ErrNotFound) {
		return err
	}
	return router.Errorf(router.ErrSessionNotFound, "session %.64q of server %q has ended or never was; send initialize to open one", id, server)
}

// there reports whether a session's owner stands in the registry.
func (k *Keep) there(r *sessions.Record) bool { return k.instance(r.Server, r.Instance) != nil }

func (k *Keep) instance(server, id string) *kv.Instance {
	for _, i := range k.opts.Registry.Instances(server) {
		if i.Instance == id {
			return i
		}
	}
	return nil
}

// grace waits a moment for a session's owner to come back; for one that is to be
// avoided and stands in the registry, to leave it; or for another to have moved
// the session.
func (k *Keep) grace(ctx context.Context, r *sessions.Record, avoid string) {
	was := k.there(r)
	wait := graceConn
	switch {
	case was:
		wait = graceShown
	case !k.opts.NodeUp(r.Node):
		wait = graceNode
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		news := k.changed()
		now, known := k.store.Lookup(r.ID)
		if known && now.Epoch > r.Epoch || k.there(r) != was {
			return
		}
		select {
		case <-news:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Causes of moves that nobody wished.
const (
	causeInstance = "instance gone"
	causeNode     = "node gone"
	causeHung     = "instance hung"
)

// errAgain: the record has changed; look at it again.
var errAgain = errors.New("the session's record has changed")

func (k *Keep) cause(r *sessions.Record) string {
	if !k.opts.NodeUp(r.Node) {
		return causeNode
	}
	return causeInstance
}

func (k *Keep) silent(ctx context.Context, server, instance string, ask bool) bool {
	return k.opts.Silent != nil && k.opts.Silent(ctx, server, instance, ask)
}

// pickTries bounds the instances looked at for a session: a node that hangs may
// have several.
const pickTries = 4

// pick chooses an instance that answers. It returns nil if there is none, and
// whether it has found some that hang.
func (k *Keep) pick(ctx context.Context, r *sessions.Record) (to *kv.Instance, hung bool) {
	for range pickTries {
		to := k.opts.Pick(r.Server, r.Instance)
		if to == nil || !k.silent(ctx, to.Server, to.Instance, true) {
			return to, hung
		}
		hung = true
	}
	return nil, hung
}

// move gives a session whose owner is gone to another instance, or ends it if
// that is its server's wish.
func (k *Keep) move(ctx context.Context, r sessions.Record, cause string) (sessions.Record, error) {
	if r.OnMove == sessions.OnMoveEnd {
		if err := k.store.End(ctx, r.ID, r.Rev); errors.Is(err, kv.ErrConflict) {
			return r, errAgain
		} else if err != nil {
			return r, cantMove(&r, err)
		}
		k.stats.cleaned.WithLabelValues("on_move").Inc()
		k.tell(EventEnded, &r, nil, causeOnMove)
		k.log.Info("session ended with its instance", "session", r.ID, "server", r.Server, "instance", r.Instance)
		return r, router.Errorf(router.ErrSessionNotFound, "session %.64s of %q ended with its instance, which kept its state; send initialize to open another", r.ID, r.Server)
	}
	news := k.changed()
	to, hung := k.pick(ctx, &r)
	if to == nil {
		return r, k.await(ctx, &r, news, hung)
	}
	next, err := k.moveTo(ctx, r, to, cause)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return r, errAgain
	case err != nil:
		return r, cantMove(&r, err)
	}
	return next, nil
}

// awaitHung is how long is waited for an instance that hangs to answer again.
const awaitHung = 250 * time.Millisecond

// await waits until something changes, since no instance can take the session.
func (k *Keep) await(ctx context.Context, r *sessions.Record, news <-chan struct{}, hung bool) error {
	var again <-chan time.Time
	if hung || r.Instance != "" && k.there(r) { // of what hangs there is no news
		t := time.NewTimer(awaitHung)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-news:
		return errAgain
	case <-again:
		return errAgain
	case <-ctx.Done():
		return router.Errorf(router.ErrUnavailable, "server %q has no instance that answers now; session %.64s goes on when one does; nothing was executed", r.Server, r.ID)
	}
}

func cantMove(r *sessions.Record, err error) error {
	return router.Errorf(router.ErrUnavailable, "the instance of session %.64s is gone, and it can't be moved now: %v; nothing was executed, try again", r.ID, err)
}

// Route is a Keep as the router asks it.
type Route struct{ *Keep }

var _ router.Sessions = Route{}

// Owner implements [router.Sessions].
func (r Route) Owner(id string) (string, uint64, bool) {
	rec, known := r.store.Lookup(id)
	return rec.Instance, rec.Epoch, known
}

// Locate implements [router.Sessions].
func (r Route) Locate(ctx context.Context, server, id, avoid string, epoch uint64) (string, uint64, error) {
	rec, err := r.Keep.Locate(ctx, server, id, avoid, epoch)
	return rec.Instance, rec.Epoch, err
}
