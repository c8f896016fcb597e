package sessions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ripstop/kv"
)

const (
	laterAtOnce    = 256 // records looked at together, by laterWorkers
	laterWorkers   = 8
	laterRetry     = 50 * time.Millisecond // after a failure; doubled up to laterRetryMost
	laterRetryMost = 2 * time.Second
	laterWarn      = 3 * time.Second // how long they may fail unmentioned
)

// pending is a record that is not in the bucket yet.
type pending struct {
	want  Record
	ended bool     // it is not to be there
	tried []uint64 // mutations of this node that may have been applied
	base  uint64   // what the bucket last said it has of this node's
}

// CreateLater keeps the record of a new session in memory, shows it like any
// other, with revision 0, and writes it as soon as the bucket can be written.
// r may be what a failed Create returned.
func (s *Store) CreateLater(r Record) (Record, error) {
	if err := checkID(r.ID); err != nil {
		return Record{}, err
	}
	p := &pending{}
	if m := r.Mutation; m.N != 0 && m.Node == s.opts.Node && m.Incarnation == s.opts.Incarnation {
		p.tried = []uint64{m.N}
	} else {
		s.stamp(&r)
	}
	r.Rev = 0
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	if s.known(r.ID) != nil && s.known(r.ID).Mutation != r.Mutation {
		s.mu.Unlock()
		return Record{}, fmt.Errorf("session %s: %w: it is known already", r.ID, kv.ErrConflict)
	}
	if have := s.records[r.ID]; have != nil { // it was stored after all
		r = *have
		s.mu.Unlock()
		return r, nil
	}
	s.shared.share(&r)
	p.want = r
	s.later[r.ID] = p
	s.mu.Unlock()
	s.tell(Change{Record: r})
	s.loop.add(r.ID)
	return r, nil
}

// Pending counts the sessions whose record the bucket lacks.
func (s *Store) Pending() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.later)
}

// PendingSince returns when the oldest of them was opened; zero if there is none.
func (s *Store) PendingSince() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var since time.Time
	for _, p := range s.later {
		if t := p.want.Created; since.IsZero() || t.Before(since) {
			since = t
		}
	}
	return since
}

// updateLater changes a record that is kept for later.
func (s *Store) updateLater(r Record) (Record, error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	p := s.later[r.ID]
	if p == nil || p.ended || p.want.Mutation != r.Mutation {
		s.mu.Unlock()
		return Record{}, fmt.Errorf("session %s: %w: it is not kept for later, or has changed", r.ID, kv.ErrConflict)
	}
	s.stamp(&r)
	s.shared.share(&r)
	same := *p
	same.want = r
	s.later[r.ID] = &same
	s.mu.Unlock()
	s.tell(Change{Record: r})
	s.loop.add(r.ID)
	return r, nil
}

// endLater ends a session that is kept for later.
func (s *Store) endLater(id string) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	p := s.later[id]
	stored := s.records[id] != nil
	if p == nil || p.ended {
		s.mu.Unlock()
		if stored {
			return fmt.Errorf("session %s: %w: it is stored by now", id, kv.ErrConflict)
		}
		return nil
	}
	same := *p
	same.ended = true
	s.later[id] = &same
	s.mu.Unlock()
	s.tell(Change{p.want, true})
	s.loop.add(id)
	return nil
}

// converge makes the bucket have what is kept for later of a session, or not.
func (s *Store) converge(ctx context.Context, id string) error {
	for {
		s.mu.Lock()
		p := s.later[id]
		if p == nil {
			s.mu.Unlock()
			return nil
		}
		have := *p
		if !have.ended && !slices.Contains(have.tried, have.want.Mutation.N) {
			have.tried = append(slices.Clip(have.tried), have.want.Mutation.N)
			s.later[id] = &have
		}
		s.mu.Unlock()
		var err error
		if have.ended {
			err = s.convergeEnd(ctx, id, &have)
		} else {
			err = s.convergeRecord(ctx, id, &have)
		}
		if err != nil {
			return err
		}
	}
}

func (s *Store) convergeRecord(ctx context.Context, id string, p *pending) error {
	data, err := kv.Encode(p.want)
	if err != nil {
		return err
	}
	rev, err := s.bucket.Update(ctx, id, data, p.base)
	if err == nil {
		s.settle(p, kv.Entry{Key: id, Value: data, Rev: rev}, true)
		return nil
	}
	if !errors.Is(err, kv.ErrConflict) {
		return err
	}
	e, err := s.bucket.Get(ctx, id)
	if err != nil {
		return err
	}
	if e.Rev == p.base {
		return errAgain // what it conflicted with is under way
	}
	if !e.Gone {
		have, err := decode(e)
		ours := err == nil && have.Mutation.Node == s.opts.Node && have.Mutation.Incarnation == s.opts.Incarnation && slices.Contains(p.tried, have.Mutation.N)
		if ours {
			s.settle(p, e, have.Mutation == p.want.Mutation)
			return nil
		}
	}
	s.log.Warn("a session kept for later gives way to what the bucket has of it", "session", id, "revision", e.Rev, "gone", e.Gone)
	s.settle(nil, e, true)
	return nil
}

// convergeEnd leaves a marker: a write that is still under way must not be
// applied after it.
func (s *Store) convergeEnd(ctx context.Context, id string, p *pending) error {
	e := kv.Entry{Key: id, Gone: true}
	if len(p.tried) > 0 {
		have, err := s.bucket.Get(ctx, id)
		if err != nil {
			return err
		}
		if e.Rev = have.Rev; !have.Gone || have.Rev == 0 {
			if e.Rev, err = s.bucket.Remove(ctx, id, have.Rev); errors.Is(err, kv.ErrConflict) {
				return errAgain
			} else if err != nil {
				return err
			}
		}
	}
	s.settle(nil, e, true)
	return nil
}

// settle notes what the bucket has of a session that was kept for later. It is
// kept no longer if that is all, and p, unless nil, is still what is kept.
func (s *Store) settle(p *pending, e kv.Entry, all bool) {
	if e.Rev != 0 {
		s.index.Learn(e)
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	now := s.later[e.Key]
	if now == nil {
		s.mu.Unlock()
		return
	}
	if p != nil && (!all || now.ended || now.want.Mutation != p.want.Mutation) {
		same := *now
		same.base = e.Rev
		s.later[e.Key] = &same
		s.mu.Unlock()
		return
	}
	delete(s.later, e.Key)
	c := Change{now.want, true}
	if r := s.records[e.Key]; r != nil {
		c = Change{*r, false}
	}
	s.mu.Unlock()
	if !c.Gone || !now.ended { // that it ended was told already
		s.tell(c)
	}
}

// laterLoop writes what is kept for later, and never gives up.
type laterLoop struct {
	s      *Store
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	signal chan struct{}
	kicks  chan struct{}

	mu     sync.Mutex
	queue  []string
	queued map[string]bool
}

func newLaterLoop(s *Store) *laterLoop {
	l := &laterLoop{s: s, signal: make(chan struct{}, 1), kicks: make(chan struct{}, 1), queued: map[string]bool{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *laterLoop) start() { l.wg.Go(l.run) }

func (l *laterLoop) stop() {
	l.cancel()
	l.wg.Wait()
}

func (l *laterLoop) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.queued[id] {
		l.queued[id] = true
		l.queue = append(l.queue, id)
	}
	poke(l.signal)
}

func (l *laterLoop) kick() { poke(l.kicks) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *laterLoop) take(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = min(n, len(l.queue))
	ids := slices.Clone(l.queue[:n])
	l.queue = slices.Delete(l.queue, 0, n)
	for _, id := range ids {
		delete(l.queued, id)
	}
	return ids
}

func (l *laterLoop) run() {
	retry := time.Duration(0)
	var since time.Time // when writes began to fail
	warned := false
	for {
		ids := l.await(retry)
		if l.ctx.Err() != nil {
			return
		}
		if len(ids) == 0 {
			continue
		}
		switch err := l.write(ids); {
		case err == nil:
			if warned {
				l.s.log.Info("the sessions' bucket can be written again", "after", time.Since(since).Round(time.Millisecond), "pending", l.s.Pending())
			}
			retry, warned = 0, false
		case l.ctx.Err() == nil:
			if retry == 0 {
				since = time.Now()
			}
			if !warned && time.Since(since) > laterWarn {
				warned = true
				l.s.log.Warn("the sessions' bucket can't be written; new sessions are known to this node only", "pending", l.s.Pending(), "err", err)
			}
			retry = min(max(2*retry, laterRetry), laterRetryMost)
		}
	}
}

// await returns the sessions to look at next: after failures one, when the
// pause is over or there is a leader.
func (l *laterLoop) await(retry time.Duration) []string {
	if retry == 0 {
		if ids := l.take(laterAtOnce); len(ids) > 0 {
			return ids
		}
		select {
		case <-l.ctx.Done():
		case <-l.signal:
		}
		return nil
	}
	pause := time.NewTimer(retry/2 + rand.N(retry))
	defer pause.Stop()
	select {
	case <-l.ctx.Done():
		return nil
	case <-pause.C:
	case <-l.kicks:
	}
	return l.take(1)
}

func (l *laterLoop) write(ids []string) error {
	work := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for range min(laterWorkers, len(ids)) {
		wg.Go(func() {
			for id := range work {
				mu.Lock()
				err := first
				mu.Unlock()
				if err == nil {
					err = tryOnce(l.ctx, l.s.leader.current(), func(ctx context.Context) error { return l.s.converge(ctx, id) })
				}
				if err == nil {
					continue
				}
				l.add(id)
				mu.Lock()
				if first == nil && !errors.Is(err, errAgain) {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		work <- id
	}
	close(work)
	wg.Wait()
	return first
}
