package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// feedBuffer is how many updates may wait for the index. What is dropped beyond
// it is a gap, and fetched.
const feedBuffer = 8192

// Index follows a bucket: it knows the revision of every key and passes on every
// change. It hears of changes through the bucket's republished updates on a core
// subscription, since a KV watch stalls for many seconds when the server that
// holds its consumer dies.
//
// Stream sequences tell what is missing. Everything up to seq has been seen.
// Updates that arrive beyond it are passed on at once (a revision says which
// value of a key is newer, so order between keys does not matter) and form a
// run [runFrom, seen]; what lies between seq and the run is fetched by direct
// get. A pass (pass.go) compares the index with the bucket's leader at the
// start, every so often, and when asked.
type Index struct {
	bucket *Bucket
	opts   IndexOptions
	log    *slog.Logger
	store  *store // nil = not kept on disk
	sub    *nats.Subscription
	elect  *nats.Subscription
	feed   chan *nats.Msg
	kicked chan struct{}
	asked  chan chan error // passes that someone waits for

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Of the goroutine that runs passes.
	waiters []chan error // who waits for the next
	unsure  bool         // whether the bucket is as it should be

	flushing sync.Mutex // taken before mu

	mu        sync.Mutex
	created   time.Time         // which stream: one that was made anew has another; written by passes only
	seq       uint64            // everything up to here has been seen
	runFrom   uint64            // first of the updates beyond a gap; meaningless without one
	seen      uint64            // last of them; seq without a gap
	revs      map[string]uint64 // revision of each key that has a value
	dead      map[string]uint64 // keys deleted lately, which older answers must not bring back
	passing   bool              // a pass is under way
	asOf      time.Time         // when the index was last known to be the bucket
	confirmed bool              // the last pass reached the bucket's leader
	dirty     map[string]Entry  // not on disk yet
	rewrite   bool              // the disk holds another stream's content
	wrote     time.Time         // asOf as it is on disk
	refill    bool              // the disk lacks what is known
	gaps      uint64            // times updates were missed
}

// IndexOptions configure an index.
type IndexOptions struct {
	// Apply is told of changes, in order for each key, one call at a time. A
	// value whose checksum does not hold comes without Value. It must not
	// block, nor call the index.
	Apply func([]Entry)

	File  string        // bbolt file to keep the index in; "" = none
	Every time.Duration // between passes, ±20 %; 0 = 30 s
	// OnLeader is told when the bucket has a leader again, or another; may be nil.
	OnLeader func()
	Logger   *slog.Logger
}

// OpenIndex starts following the bucket, which is created as soon as that is
// possible. It returns with what the disk holds, without waiting for JetStream.
func OpenIndex(b *Bucket, opts IndexOptions) (*Index, error) {
	if opts.Every == 0 {
		opts.Every = 30 * time.Second
	}
	ix := &Index{
		bucket: b, opts: opts, log: opts.Logger.With("bucket", b.name),
		feed: make(chan *nats.Msg, feedBuffer), kicked: make(chan struct{}, 1), asked: make(chan chan error),
		unsure: true, revs: map[string]uint64{}, dead: map[string]uint64{}, dirty: map[string]Entry{},
	}
	ix.ctx, ix.cancel = context.WithCancel(context.Background())
	if opts.File != "" {
		ix.load()
	}
	var err error
	if ix.sub, err = b.nc.ChanSubscribe(b.cfg.Feed()+"."+b.keys, ix.feed); err == nil {
		// A new leader may not have republished what the old one stored last.
		ix.elect, err = b.nc.Subscribe("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED."+b.stream, func(*nats.Msg) {
			ix.Kick()
			if opts.OnLeader != nil {
				opts.OnLeader()
			}
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("follow bucket %s: %w", b.name, err), ix.Close())
	}
	ix.wg.Go(ix.follow)
	ix.wg.Go(ix.keepComparing)
	if ix.store != nil {
		ix.wg.Go(ix.keepWriting)
	}
	return ix, nil
}

// Close stops following and writes what is not on disk yet.
func (ix *Index) Close() error {
	ix.cancel()
	var errs []error
	for _, s := range []*nats.Subscription{ix.sub, ix.elect} {
		if s == nil {
			continue
		}
		if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, err)
		}
	}
	ix.wg.Wait()
	if ix.store != nil {
		errs = append(errs, ix.flush(), ix.store.close())
		ix.store = nil
	}
	return errors.Join(errs...)
}

// Kick asks for a pass soon. It never blocks.
func (ix *Index) Kick() {
	select {
	case ix.kicked <- struct{}{}:
	default:
	}
}

// Flush writes to disk what is not there yet.
func (ix *Index) Flush() error {
	if ix.store == nil {
		return nil
	}
	return ix.flush()
}

// Sync waits for a pass that began after the call. It fails when the bucket's
// leader can't be asked.
func (ix *Index) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case ix.asked <- done:
	case <-ctx.Done():
		return ctx.Err()
	case <-ix.ctx.Done():
		return nats.ErrConnectionClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// AsOf is when the index was last known to be what the bucket holds; zero if
// never.
func (ix *Index) AsOf() time.Time {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.asOf
}

// Stale reports whether the index may be behind by more than the feed's delay:
// the bucket's leader could not be asked the last time, or not yet, or long ago.
func (ix *Index) Stale() bool {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return !ix.confirmed || time.Since(ix.asOf) > 2*ix.opts.Every
}

// Gaps counts how often updates were missed and had to be fetched.
func (ix *Index) Gaps() uint64 {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.gaps
}

// Len returns the number of keys that have a value.
func (ix *Index) Len() int {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return len(ix.revs)
}

// follow takes updates in batches: what is there already is passed on together.
func (ix *Index) follow() {
	const most = 512
	batch := make([]Entry, 0, most)
	for {
		batch = batch[:0]
		select {
		case <-ix.ctx.Done():
			return
		case m := <-ix.feed:
			batch = ix.appendUpdate(batch, m)
		}
		for more := true; more && len(batch) < most; {
			select {
			case m := <-ix.feed:
				batch = ix.appendUpdate(batch, m)
			default:
				more = false
			}
		}
		ix.heard(batch)
	}
}

func (ix *Index) appendUpdate(batch []Entry, m *nats.Msg) []Entry {
	e, err := ix.bucket.entry(m)
	if err != nil {
		ix.log.Warn("update of a bucket ignored", "subject", m.Subject, "err", err)
		return batch
	}
	return append(batch, e)
}

// entry reads a republished update or the answer to a direct get.
func (b *Bucket) entry(m *nats.Msg) (Entry, error) {
	h := lastValues(m.Header)
	key, ok := strings.CutPrefix(h.Get("Nats-Subject"), b.prefix)
	if !ok || h.Get("Nats-Stream") != b.stream {
		return Entry{}, fmt.Errorf("comes from %q of stream %q", h.Get("Nats-Subject"), h.Get("Nats-Stream"))
	}
	seq, err := strconv.ParseUint(h.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("sequence: %w", err)
	}
	e := Entry{Key: strings.Clone(key), Value: m.Data, Rev: seq, Gone: marks(h)} // the key is kept; it must not keep all headers
	if c := h.Get(coversHeader); c != "" {
		if e.covers, err = strconv.ParseUint(c, 10, 8); err != nil {
			return Entry{}, fmt.Errorf("%s: %w", coversHeader, err)
		}
	}
	return e, nil
}

// lastValues makes Get return what the server added: it appends its headers to
// those a writer may have set under the same names.
func lastValues(h nats.Header) nats.Header {
	for k, v := range h {
		if len(v) > 1 && strings.HasPrefix(k, "Nats-") {
			h[k] = v[len(v)-1:]
		}
	}
	return h
}

// heard takes updates from the feed.
func (ix *Index) heard(batch []Entry) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	behind, odd := false, false
	for _, e := range batch {
		switch first, gap := e.Rev-e.covers, ix.seen > ix.seq; {
		case e.Rev <= ix.seq:
			// Fetched before it was heard; or the stream was made anew.
			odd = odd || max(ix.revs[e.Key], ix.dead[e.Key]) < e.Rev
		case first <= ix.seq+1 && !gap:
			ix.seq, ix.seen = e.Rev, e.Rev
		case gap && e.Rev > ix.seen && first <= ix.seen+1:
			ix.seen = e.Rev
		case e.Rev > ix.seen:
			ix.runFrom, ix.seen = first, e.Rev
			ix.gaps++
			behind = true
		}
	}
	ix.apply(batch)
	if ix.confirmed && ix.seen == ix.seq {
		ix.asOf = time.Now()
	}
	if behind || odd {
		ix.Kick()
	}
}

// Learn tells the index what its node has just written, so that it need not
// wait for the feed. A key that is gone stays so when older updates of it come.
func (ix *Index) Learn(e Entry) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if e.Gone && e.Rev > ix.seq {
		defer func() { ix.dead[e.Key] = max(ix.dead[e.Key], e.Rev) }()
	}
	ix.apply([]Entry{e})
}

// apply passes on what is newer than what is known. The caller holds ix.mu.
func (ix *Index) apply(batch []Entry) {
	news := make([]Entry, 0, len(batch))
	for _, e := range batch {
		if e.Rev <= max(ix.revs[e.Key], ix.dead[e.Key]) {
			continue
		}
		if e.Gone {
			_, known := ix.revs[e.Key]
			delete(ix.revs, e.Key)
			if ix.passing || ix.seen > ix.seq {
				ix.dead[e.Key] = e.Rev
			}
			if !known {
				continue
			}
			e.Value = nil
		} else {
			ix.revs[e.Key] = e.Rev
			delete(ix.dead, e.Key)
			if _, err := verify(e.Value); err != nil {
				ix.log.Warn("value ignored", "key", e.Key, "revision", e.Rev, "err", err)
				e.Value = nil
			}
		}
		if ix.store != nil && (e.Gone || e.Value != nil) {
			ix.dirty[e.Key] = e
		}
		news = append(news, e)
	}
	if len(news) > 0 {
		ix.opts.Apply(news)
	}
}

// advance notes that everything up to seq has been seen. The caller holds ix.mu.
func (ix *Index) advance(seq uint64) {
	ix.seq = max(ix.seq, seq)
	if ix.seen <= ix.seq || ix.runFrom <= ix.seq+1 {
		ix.seq = max(ix.seq, ix.seen)
		ix.seen = ix.seq
	}
}
