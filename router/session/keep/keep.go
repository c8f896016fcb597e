// Package keep is a node's side of sessions that survive: it keeps their records
// for the agents connected to it, finds who has a session, and moves it when
// that instance is gone.
//
//	keep.go     records: open, find, change, end
//	locate.go   who has a session, and who gets it next
//	clean.go    sessions that nobody will ask for again
//	service.go  what agents in other processes ask, over NATS; client.go asks it
package keep

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/session"
)

// Options are what a Keep needs of its node.
type Options struct {
	Store    *sessions.Store
	Registry Registry
	Region   string // home of the sessions opened here
	Node     string

	// Pick chooses an instance of a server for a session that moves, but not
	// avoid; nil = none is there.
	Pick func(server, avoid string) *kv.Instance

	// Silent says whether an instance hangs, or did before it was gone: it does not
	// answer. It may be asked to find out, which takes a moment; nil = none does.
	Silent func(ctx context.Context, server, instance string, ask bool) bool

	Clustered bool // other nodes move sessions too

	// Writable says whether the bucket can be written, as far as the node knows.
	Writable func() bool

	// NodeUp says whether a node is up, as far as this one knows.
	NodeUp func(name string) bool

	// Tell is called with what became of sessions, not more often than is
	// bearable; nil = nobody wants to know. It must not block.
	Tell func(Event)

	Logger *slog.Logger
}

// Registry is what is asked of kv.Registry.
type Registry interface {
	Instances(server string) []*kv.Instance
	Watch(f func(kv.Change)) (stop func())
}

// Keep keeps the records of sessions for the agents of a node. It is safe for
// concurrent use.
type Keep struct {
	opts    Options
	log     *slog.Logger
	store   *sessions.Store
	stats   stats
	notices notices

	stop   []func()
	pauses *pauses

	mu      sync.Mutex
	waiting int
	news    chan struct{} // closed at the next change of registry or sessions, if someone waits
}

var _ session.Keeper = (*Keep)(nil)

// New returns a Keep over a store, which stays the caller's to close.
func New(opts Options) *Keep {
	k := &Keep{opts: opts, log: opts.Logger, store: opts.Store, stats: newStats(), pauses: watchPauses(), news: make(chan struct{})}
	k.stop = []func(){
		opts.Registry.Watch(func(kv.Change) { k.wake() }),
		opts.Store.Watch(func(sessions.Change) { k.wake() }),
	}
	return k
}

// Close stops following registry and sessions.
func (k *Keep) Close() {
	for _, stop := range k.stop {
		stop()
	}
	k.pauses.close()
}

// wake tells those who wait that something has changed.
func (k *Keep) wake() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting > 0 {
		close(k.news)
		k.news, k.waiting = make(chan struct{}), 0
	}
}

// changed is closed at the next change.
func (k *Keep) changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting++
	return k.news
}

// openTimeout bounds how long the client of a new session waits for its record.
const openTimeout = 2 * time.Second

// Open implements [session.Keeper].
func (k *Keep) Open(ctx context.Context, r sessions.Record) (sessions.Record, error) {
	r.Home, r.RegionEpoch, r.Epoch = k.opts.Region, 1, 1
	if r.Node == "" {
		r.Node = k.opts.Node
	}
	if !k.opts.Writable() {
		return k.store.CreateLater(r)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stored, err := k.store.Create(ctx, r)
	switch {
	case err == nil || errors.Is(err, kv.ErrConflict):
		return stored, err
	case errors.Is(ctx.Err(), context.Canceled):
		return r, err
	}
	k.log.Warn("session record not written yet", "session", r.ID, "server", r.Server, "err", err)
	return k.store.CreateLater(stored)
}

// Find implements [session.Keeper].
func (k *Keep) Find(ctx context.Context, server, id string) (sessions.Record, error) {
	r, err := k.fresh(ctx, id)
	if err == nil && r.Server != server { // nothing of it is for an agent of another server
		return sessions.Record{}, kv.ErrNotFound
	}
	return r, err
}

// Record returns a session's record as Find does, whatever its server.
func (k *Keep) Record(ctx context.Context, id string) (sessions.Record, error) {
	return k.fresh(ctx, id)
}

// There reports whether the instance that has a session is in the registry.
func (k *Keep) There(r *sessions.Record) bool { return k.there(r) }

// fresh returns the leader's word on a session. Where it can't be asked, or has
// not heard of the session yet, what this node knows.
func (k *Keep) fresh(ctx context.Context, id string) (sessions.Record, error) {
	wary, err := k.trust()
	if err != nil {
		return sessions.Record{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, freshTimeout)
	defer cancel()
	r, err := k.store.Get(ctx, id)
	if err == nil {
		return r, nil
	}
	known, ok := k.store.Lookup(id)
	switch {
	case errors.Is(err, kv.ErrNotFound) && ok && known.Rev == 0: // kept for later
		return known, nil
	case errors.Is(err, kv.ErrNotFound):
		return r, err
	case ok && !wary:
		return known, nil
	}
	return r, router.Errorf(router.ErrUnavailable, "session %.64s: its record can't be read now: %v; try again", id, err)
}

// freshTimeout bounds the question to a bucket's leader.
const freshTimeout = time.Second

// changeTries bounds how often a change is made again after another's.
const changeTries = 5

// Change implements [session.Keeper].
func (k *Keep) Change(ctx context.Context, c session.Change) (sessions.Record, error) {
	r, ok := k.store.Lookup(c.ID)
	var err error
	for try := 0; ; try++ {
		if !ok || try > 0 {
			r, err = k.fresh(ctx, c.ID)
		}
		switch {
		case err != nil:
			return r, err
		case r.Server != c.Server:
			return sessions.Record{}, kv.ErrNotFound
		case r.Epoch > c.Epoch || r.Instance != c.Instance:
			return r, sessions.ErrDeposed
		}
		next, changed := with(r, c)
		if !changed {
			return r, nil
		}
		if next, err = k.store.Update(ctx, next); err == nil || !errors.Is(err, kv.ErrConflict) || try == changeTries {
			return next, err
		}
	}
}

// with returns r with a change made.
func with(r sessions.Record, c session.Change) (next sessions.Record, changed bool) {
	next = r
	if c.Initialized && !r.Initialized {
		next.Initialized, changed = true, true
	}
	if c.LogLevel != nil && string(c.LogLevel) != string(r.LogLevel) {
		next.LogLevel, changed = c.LogLevel, true
	}
	old, has := r.Subscriptions[c.URI]
	if c.Subscribe != nil && string(old) != string(c.Subscribe) || c.Unsubscribe && has {
		subs := maps.Clone(r.Subscriptions) // the record's own is shared
		if subs == nil {
			subs = map[string]json.RawMessage{}
		}
		if c.Unsubscribe {
			delete(subs, c.URI)
		} else {
			subs[c.URI] = c.Subscribe
		}
		next.Subscriptions, changed = subs, true
	}
	return next, changed
}

// End implements [session.Keeper].
func (k *Keep) End(ctx context.Context, server, id string, epoch uint64) error {
	r, ok := k.store.Lookup(id)
	for try := 0; ; try++ {
		if !ok || try > 0 {
			var err error
			if r, err = k.fresh(ctx, id); errors.Is(err, kv.ErrNotFound) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if r.Server != server || r.Epoch > epoch {
			return nil
		}
		err := k.store.End(ctx, id, r.Rev)
		if err == nil || !errors.Is(err, kv.ErrConflict) || try == changeTries {
			return err
		}
	}
}
