package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	fetchBatch = 1000    // messages of one direct get
	fetchBytes = 4 << 20 // and their bytes

	passGap       = 50 * time.Millisecond  // between passes, at least
	passRetry     = 100 * time.Millisecond // after a pass that failed; doubled up to passRetryMost
	passRetryMost = 5 * time.Second
	// fullEvery passes, every key is compared: nothing but the last one's
	// sequence tells otherwise.
	fullEvery = 20
	// wentBackAfter is for how long the leader must say that the sequence went
	// back before the index believes it: a leader that was cut off says so too,
	// until it notices (1 s with timing lan).
	wentBackAfter = 3 * time.Second
)

var (
	errBehind   = errors.New("the replica that answered is behind")
	errWentBack = errors.New("the bucket's sequence went back")
)

// keepComparing runs passes: at once, every so often, when asked, and after one
// that failed.
func (ix *Index) keepComparing() {
	full := 0
	var back time.Time // when the sequence was first said to have gone back
	retry := time.Duration(0)
	for {
		begun := time.Now()
		waiting, err := ix.pass(full%fullEvery == 0, !back.IsZero() && time.Since(back) > wentBackAfter)
		for _, w := range waiting {
			w <- err
		}
		wait := jitter(ix.opts.Every)
		switch {
		case err == nil:
			full, back, retry = full+1, time.Time{}, 0
		case ix.ctx.Err() != nil:
			return
		default:
			if errors.Is(err, errWentBack) && back.IsZero() {
				back = begun
			}
			retry = min(max(2*retry, passRetry), passRetryMost)
			if errors.Is(err, errBehind) {
				retry = min(retry, passGap)
			}
			wait = jitter(retry)
			ix.log.Debug("bucket not compared", "err", err, "retry", wait)
		}
		if !ix.awaitPass(wait, begun.Add(passGap)) {
			return
		}
	}
}

func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

// awaitPass waits until the next pass is due: after wait, or when kicked, but
// not before the earliest time. Whoever waits for a pass is served at once.
func (ix *Index) awaitPass(wait time.Duration, earliest time.Time) bool {
	due := time.NewTimer(wait)
	defer due.Stop()
	select {
	case <-ix.ctx.Done():
		return false
	case done := <-ix.asked:
		ix.waiters = append(ix.waiters, done)
		return true
	case <-due.C:
		return true
	case <-ix.kicked:
	}
	due.Reset(time.Until(earliest))
	select {
	case <-ix.ctx.Done():
		return false
	case done := <-ix.asked:
		ix.waiters = append(ix.waiters, done)
	case <-due.C:
	}
	return true
}

// pass makes the index what the bucket holds, and returns who waited for it.
// full compares every key; believe accepts that the sequence went back.
func (ix *Index) pass(full, believe bool) (waiting []chan error, err error) {
	waiting, ix.waiters = ix.waiters, nil
	ix.mu.Lock()
	ix.passing = true
	seq := ix.seq
	ix.mu.Unlock()
	err = ix.compare(ix.ctx, seq, full, believe)
	ix.mu.Lock()
	ix.passing = false
	again := !ix.confirmed && err == nil
	ix.confirmed = err == nil
	if ix.seen == ix.seq { // what the feed brings late is older than seq, or told by Learn
		maps.DeleteFunc(ix.dead, func(_ string, rev uint64) bool { return rev <= ix.seq })
	}
	ix.mu.Unlock()
	if again && ix.opts.OnLeader != nil {
		ix.opts.OnLeader()
	}
	return waiting, err
}

func (ix *Index) compare(ctx context.Context, seq uint64, full, believe bool) error {
	begun := time.Now()
	ix.mu.Lock()
	full = full || ix.refill
	ix.mu.Unlock()
	if ix.unsure {
		if err := ix.bucket.Ensure(ctx); err != nil {
			ix.grope(ctx)
			return err
		}
		ix.unsure = false
	}
	info, err := ix.bucket.info(ctx)
	if err != nil {
		ix.unsure = errors.Is(err, ErrNoBucket)
		ix.grope(ctx)
		return err
	}
	last := info.State.LastSeq
	switch {
	case ix.created.IsZero():
		err = ix.replace(ctx, last, 0)
	case !info.Created.Equal(ix.created):
		ix.log.Warn("the bucket was made anew; the index follows", "created", info.Created)
		err = ix.replace(ctx, last, seq)
	case last < seq && !believe:
		err = fmt.Errorf("%w: from %d to %d", errWentBack, seq, last)
	case last < seq:
		ix.log.Warn("the bucket lost its newest revisions; the index follows", "from", seq, "to", last)
		err = ix.replace(ctx, last, seq)
	case full:
		err = ix.replace(ctx, last, 0)
	default:
		err = ix.catchUp(ctx, last)
	}
	if err != nil {
		return err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.created = info.Created
	if begun.After(ix.asOf) {
		ix.asOf = begun
	}
	if ix.seen > ix.seq { // more came while this ran
		ix.Kick()
	}
	return nil
}

// grope takes what any replica has, while there is no leader to ask.
func (ix *Index) grope(ctx context.Context) {
	if err := ix.catchUp(ctx, 0); err != nil {
		ix.log.Debug("no replica answers", "err", err)
	}
}

// catchUp fetches what is beyond seq, at least up to last.
func (ix *Index) catchUp(ctx context.Context, last uint64) error {
	ix.mu.Lock()
	from, missing := ix.seq+1, ix.seen > ix.seq
	ix.mu.Unlock()
	if last > 0 && from > last && !missing {
		return nil
	}
	reached, err := ix.fetch(ctx, from, func(batch []Entry) {
		ix.mu.Lock()
		defer ix.mu.Unlock()
		ix.apply(batch)
	})
	if err != nil {
		return err
	}
	if reached, err = ix.reach(ctx, reached, last); err != nil {
		return err
	}
	if last == 0 {
		return nil // nobody says that this was all
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.advance(reached)
	return nil
}

// reach checks that what a replica gave goes as far as the leader's last
// sequence. The last messages may be gone: markers expire.
func (ix *Index) reach(ctx context.Context, reached, last uint64) (uint64, error) {
	if reached >= last {
		return reached, nil
	}
	next, err := ix.bucket.after(ctx, reached+1)
	switch {
	case err != nil:
		return 0, err
	case next.Rev != 0:
		return 0, fmt.Errorf("%w: at %d of %d", errBehind, reached, last)
	}
	return last, nil
}

// replace compares every key with the bucket, whose leader says that last is its
// last sequence. old is for a bucket with another history: then what was known
// up to that sequence, when this began, counts for nothing. What was heard since
// is the new one's.
func (ix *Index) replace(ctx context.Context, last, old uint64) error {
	anew := old > 0
	var all []Entry
	reached, err := ix.fetch(ctx, 1, func(batch []Entry) { all = append(all, batch...) })
	if err != nil {
		return err
	}
	if reached, err = ix.reach(ctx, reached, last); err != nil {
		return err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if !anew && reached < ix.seq {
		return errBehind // updates were heard that this lacks
	}
	there := make(map[string]bool, len(all))
	for _, e := range all {
		if !e.Gone {
			there[e.Key] = true
		}
	}
	var gone []Entry
	for key, rev := range ix.revs {
		if !there[key] && rev <= max(old, reached) {
			gone = append(gone, Entry{Key: key, Rev: max(rev, reached), Gone: true})
			delete(ix.revs, key)
		}
	}
	if anew {
		ix.forget(old)
	}
	if ix.store != nil {
		for _, e := range gone {
			ix.dirty[e.Key] = e
		}
	}
	if len(gone) > 0 {
		ix.opts.Apply(gone)
	}
	ix.apply(all)
	if ix.refill {
		for _, e := range all {
			if _, err := verify(e.Value); err == nil && ix.revs[e.Key] == e.Rev {
				ix.dirty[e.Key] = e
			}
		}
		ix.refill = false
	}
	ix.advance(reached)
	return nil
}

// forget makes the index take whatever it hears next of what it knew up to
// sequence old for news. The caller holds ix.mu.
func (ix *Index) forget(old uint64) {
	for key, rev := range ix.revs {
		if rev <= old {
			delete(ix.revs, key)
		}
	}
	clear(ix.dead)
	ix.seq, ix.seen, ix.runFrom = 0, 0, 0
	ix.rewrite = true
	for key, e := range ix.dirty {
		if e.Rev <= old {
			delete(ix.dirty, key)
		}
	}
	ix.Kick() // updates heard meanwhile may have been taken for old ones
}

// fetch reads the bucket from sequence from on, in batches, each from whichever
// replica answers. It returns the sequence up to which it is complete.
func (ix *Index) fetch(ctx context.Context, from uint64, take func([]Entry)) (uint64, error) {
	for {
		batch, through, more, err := ix.bucket.direct(ctx, from, ix.bucket.keys)
		if err != nil {
			return 0, err
		}
		if len(batch) > 0 {
			take(batch)
		}
		from = max(from, through+1)
		if !more || len(batch) == 0 {
			return from - 1, nil
		}
	}
}

// direct reads a batch by direct get: entries from sequence from on, the last
// sequence among them, and whether there are more. keys is a wildcard.
func (b *Bucket) direct(ctx context.Context, from uint64, keys string) (batch []Entry, through uint64, more bool, err error) {
	req, err := json.Marshal(struct {
		Seq   uint64 `json:"seq"`
		Next  string `json:"next_by_subj"`
		Batch int    `json:"batch"`
		Bytes int    `json:"max_bytes"`
	}{from, b.prefix + keys, fetchBatch, fetchBytes})
	if err != nil {
		return nil, 0, false, err
	}
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, 0, false, fmt.Errorf("read bucket %s: %w", b.name, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only with the connection
	if err := errors.Join(sub.SetPendingLimits(-1, -1), b.nc.PublishRequest("$JS.API.DIRECT.GET."+b.stream, inbox, req)); err != nil {
		return nil, 0, false, fmt.Errorf("read bucket %s: %w", b.name, err)
	}
	for {
		m, err := b.next(ctx, sub)
		if err != nil {
			return nil, 0, false, fmt.Errorf("read bucket %s: %w", b.name, err)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			e, err := b.entry(m)
			if err != nil {
				return nil, 0, false, fmt.Errorf("read bucket %s: %w", b.name, err)
			}
			batch = append(batch, e)
			through = e.Rev
		case "204": // end of batch
			pending, err := strconv.ParseUint(m.Header.Get("Nats-Num-Pending"), 10, 64)
			if err != nil {
				return nil, 0, false, fmt.Errorf("read bucket %s: %w", b.name, err)
			}
			return batch, through, pending > 0, nil
		case "404": // nothing from there on
			return nil, 0, false, nil
		default:
			return nil, 0, false, fmt.Errorf("read bucket %s: %s %s", b.name, status, m.Header.Get("Description"))
		}
	}
}

func (b *Bucket) next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}
