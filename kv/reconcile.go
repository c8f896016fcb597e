package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// convergeAtOnce is how many keys are looked at together, by convergeWorkers
	// writers: concurrent writes share JetStream's fsyncs.
	convergeAtOnce  = 256
	convergeWorkers = 8

	convergeRetry     = 50 * time.Millisecond // after a failure; doubled up to convergeRetryMost
	convergeRetryMost = 2 * time.Second

	// warnAfter is how long writes may fail unmentioned: no longer than it takes
	// to create the bucket, or to elect a leader.
	warnAfter = 3 * time.Second
)

// attach makes r the one that is told of the bucket's news, and of what an
// earlier run of this node left there.
func (reg *Registry) attach(r *Registrar) {
	reg.change.Lock()
	defer reg.change.Unlock()
	reg.touched = r.touched
	for key := range reg.records {
		r.touched(key)
	}
	for server := range reg.claims {
		r.touched(claimPrefix + server)
	}
	id := reg.nextID
	reg.nextID++
	reg.watch[id] = func(c Change) {
		if c.Gone {
			r.q.wake(c.Instance.Server)
		}
	}
	r.unwatch = func() {
		reg.change.Lock()
		defer reg.change.Unlock()
		delete(reg.watch, id)
		reg.touched = func(string) {}
	}
}

// touched decides whether the bucket's news of a key concern this node. The
// caller holds reg.change.
func (r *Registrar) touched(key string) {
	if key == "" {
		r.q.kick()
		return
	}
	if server, ok := claimOf(key); ok {
		r.touchedClaim(server)
		return
	}
	own := r.reg.own[key]
	mine := own != nil && own.Scope != ScopeLocal
	rec := r.reg.records[key]
	switch {
	case mine && (rec == nil || rec.Mutation != own.Mutation):
		r.doubt(key)
		r.q.add(key)
	case !mine && rec != nil && rec.Node == r.reg.opts.Node:
		r.q.add(key)
	}
}

func (r *Registrar) touchedClaim(server string) {
	c := r.reg.claims[server]
	if c == nil {
		r.q.wake(server)
	}
	concerns := c != nil && c.Node == r.reg.opts.Node && r.leftover(c.Claim)
	for _, i := range r.reg.byServer[server] {
		own := r.reg.own[i.Key()]
		concerns = concerns || own != nil && (c == nil && own.Exclusive || c != nil && c.Instance != own.Instance)
	}
	if concerns {
		r.q.add(claimPrefix + server)
	}
}

// converge makes the bucket follow, and never gives up.
func (r *Registrar) converge() {
	retry := time.Duration(0)
	var since time.Time // when writes began to fail
	warned := false
	for {
		again := (<-chan time.Time)(nil)
		if retry > 0 {
			again = time.After(jitter(retry))
		}
		for waiting := true; waiting; {
			r.wakeWaiting()
			if retry == 0 && r.q.len() > 0 {
				break
			}
			select {
			case <-r.ctx.Done():
				return
			case <-again:
				waiting = false
			case <-r.q.signal:
				waiting = retry > 0 && !r.q.takeKick()
			}
		}
		n := convergeAtOnce
		if retry > 0 {
			n = 1 // one tells whether the bucket can be written again
		}
		err := r.convergeBatch(n)
		switch {
		case err == nil:
			if warned {
				r.log.Info("the registry's bucket follows again", "after", time.Since(since).Round(time.Millisecond))
			}
			retry, warned = 0, false
		case r.ctx.Err() != nil:
			return
		default:
			if retry == 0 {
				since = time.Now()
			}
			if !warned && time.Since(since) > warnAfter {
				warned = true
				r.log.Warn("the registry's bucket can't be written; this node's instances count here meanwhile", "err", err)
			}
			retry = min(max(2*retry, convergeRetry), convergeRetryMost)
		}
	}
}

// convergeBatch looks at up to n keys. Those that fail are queued again.
func (r *Registrar) convergeBatch(n int) error {
	r.mu.Lock()
	keys := r.q.take(n)
	r.work = len(keys)
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	r.q.onKick(cancel)
	defer r.q.onKick(nil)
	work := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for range min(convergeWorkers, len(keys)) {
		wg.Go(func() {
			for key := range work {
				mu.Lock()
				failed := first != nil
				mu.Unlock()
				var err error
				if !failed {
					err = r.convergeKey(ctx, key)
				}
				if failed || err != nil {
					r.q.add(key)
				}
				if err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, key := range keys {
		work <- key
	}
	close(work)
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work = 0
	r.failing = first != nil
	return first
}

func (r *Registrar) convergeKey(ctx context.Context, key string) error {
	if server, ok := claimOf(key); ok {
		return r.convergeClaim(ctx, server)
	}
	r.reg.change.Lock()
	have := record{Instance: &Instance{}}
	if rec := r.reg.records[key]; rec != nil {
		have = *rec
	}
	r.reg.change.Unlock()
	r.mu.Lock()
	w := r.written[key]
	r.mu.Unlock()
	err := error(ErrConflict)
	switch {
	case w.doubted: // ask
	case w.rev > have.rev: // the index has not heard of it yet
		err = r.settle(ctx, key, record{&Instance{Node: r.reg.opts.Node, Mutation: w.id}, w.rev})
	default:
		err = r.settle(ctx, key, have)
	}
	for errors.Is(err, ErrConflict) {
		var e Entry
		if e, err = r.reg.bucket.Get(ctx, key); err != nil {
			return err
		}
		have = record{&Instance{}, e.Rev}
		if !e.Gone {
			have.Instance, _ = decodeInstance(e) // what can't be read gives way
		}
		err = r.settle(ctx, key, have)
	}
	return err
}

// doubt notes that the index has heard something else of key than this node
// wrote. That may be older, or the bucket may have lost the write.
func (r *Registrar) doubt(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, ok := r.written[key]; ok {
		w.doubted = true
		r.written[key] = w
	}
}

// settle writes the record of key, or purges it, or lets it stand, given what
// the bucket has.
func (r *Registrar) settle(ctx context.Context, key string, have record) error {
	r.reg.change.Lock()
	want := r.reg.own[key]
	r.reg.change.Unlock()
	mine := want != nil && want.Scope != ScopeLocal
	r.mu.Lock()
	last := r.written[key]
	r.mu.Unlock()
	switch {
	case mine && have.Mutation == want.Mutation:
		r.wrote(key, want.Mutation, have.rev)
		return nil
	case mine && (have.supersedes(want) || have.Node != "" && have.Node != want.Node && have.Run != want.Run && last.rev > 0 && have.rev > last.rev):
		// It moved, or another took its id: who wrote last has it.
		if !r.drop(*want, fmt.Sprintf("it is registered on node %s now", have.Node)) {
			r.q.add(key) // it has changed meanwhile
		}
		return nil
	case mine:
		data, err := Encode(want)
		if err != nil {
			return err
		}
		rev, err := r.reg.bucket.Update(ctx, key, data, have.rev)
		if err == nil {
			r.wrote(key, want.Mutation, rev)
		}
		return err
	case have.Node == r.reg.opts.Node && have.Node != "":
		if err := r.reg.bucket.Purge(ctx, key, have.rev); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.written, key)
	return nil
}

// wrote notes that the bucket has a record of this node.
func (r *Registrar) wrote(key string, id Mutation, rev uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written[key] = written{id: id, rev: rev}
}

// RemoveNode takes the records and claims of another node out of the bucket, for
// all nodes, and returns how many. It needs quorum, and may be repeated. A node
// that lives puts its own back.
func (reg *Registry) RemoveNode(ctx context.Context, name string) (int, error) {
	if name == reg.opts.Node {
		return 0, fmt.Errorf("remove node %s: this is it", name)
	}
	if err := reg.Sync(ctx); err != nil {
		return 0, fmt.Errorf("remove node %s from the registry: %w", name, err)
	}
	reg.change.Lock()
	keys := map[string]uint64{}
	_, gone := reg.hidden[name]
	living := map[string]bool{} // by instance: of a run that has begun since
	for key, rec := range reg.records {
		if rec.Node != name {
			continue
		}
		if gone && !reg.hides(name, rec.Conn.ServerID) {
			living[rec.Instance.Instance] = true
			continue
		}
		keys[key] = rec.rev
	}
	for _, c := range reg.claims {
		if c.Node == name && !living[c.Instance] {
			keys[c.Key()] = c.rev
		}
	}
	reg.change.Unlock()
	removed := 0
	for key, rev := range keys {
		switch err := reg.bucket.Purge(ctx, key, rev); {
		case err == nil:
			removed++
		case !errors.Is(err, ErrConflict): // else it is another's now
			return removed, fmt.Errorf("remove node %s from the registry: %w", name, err)
		}
	}
	return removed, nil
}
