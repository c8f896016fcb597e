package sessions

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
)

// Options say which sessions, and who reads and writes them.
type Options struct {
	Fabric      *nats.Conn // reaches bucket and feed
	Region      string     // "" = local
	Generation  int        // of the region's buckets; 0 = 1
	Replicas    int        // of the bucket: as many as there are votes; 0 = 1
	Node        string     // this node's name
	Incarnation uint64     // which of the node's starts this is

	File      string        // bbolt file the index is kept in; "" = none
	Every     time.Duration // between comparisons of index and bucket; 0 = 30 s
	MarkerTTL time.Duration // how long an ended session leaves a marker; 0 = 1 h
	Logger    *slog.Logger
}

// Store keeps the records of the sessions of one region, and their data. Every
// node has one. Reads of records come from memory, which follows the bucket;
// writes go to the bucket's leader.
type Store struct {
	opts   Options
	bucket *kv.Bucket
	index  *kv.Index
	log    *slog.Logger
	n      atomic.Uint64 // of mutations

	// change orders changes, and what is told of them. It is taken before mu.
	change sync.Mutex
	watch  map[int]func(Change)
	nextID int

	mu        sync.RWMutex
	records   map[string]*Record  // the bucket's, by id; shared, never changed
	later     map[string]*pending // not in the bucket yet, by id
	manifests map[string]uint64   // revision of the manifest of sessions that have data
	corrupt   map[string]uint64   // keys that can't be read, and their revision
	shared    pool

	data   manifestCache
	leader leaderWatch
	loop   *laterLoop
}

// Change is one session whose record is new, or has changed, or is Gone: of
// that the record is the last one known.
type Change struct {
	Record Record
	Gone   bool
}

// Open opens the store with what the disk holds of it and follows the bucket
// from then on. It never waits for JetStream.
func Open(opts Options) (*Store, error) {
	b, err := kv.NewBucket(opts.Fabric, kv.BucketConfig{
		Kind: "sessions", Region: opts.Region, Generation: opts.Generation, Replicas: opts.Replicas, Flat: true, MarkerTTL: opts.MarkerTTL,
		Description: "MCP sessions: <id>, with what servers keep of them: <id>/data and <id>.d.<key>",
	})
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, bucket: b, log: opts.Logger, watch: map[int]func(Change){},
		records: map[string]*Record{}, later: map[string]*pending{}, manifests: map[string]uint64{}, corrupt: map[string]uint64{},
		data: manifestCache{byID: map[string]*manifest{}},
	}
	s.loop = newLaterLoop(s)
	s.index, err = kv.OpenIndex(b, kv.IndexOptions{
		Apply: s.apply, File: opts.File, Every: opts.Every, OnLeader: s.elected, Logger: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	s.loop.start()
	return s, nil
}

// Close stops following and writing. Records that could not be written yet are
// lost with it.
func (s *Store) Close() error {
	s.loop.stop()
	return s.index.Close()
}

func (s *Store) elected() {
	s.leader.changed()
	s.loop.kick()
}

// Bucket is the name of the sessions' bucket.
func (s *Store) Bucket() string { return s.bucket.Name() }

// Lookup returns a session's record as this node knows it, without asking
// anyone. What its fields point to is shared: do not change it.
func (s *Store) Lookup(id string) (Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.known(id); r != nil {
		return *r, true
	}
	return Record{}, false
}

// known is what is shown of a session. The caller holds s.mu.
func (s *Store) known(id string) *Record {
	if p := s.later[id]; p != nil {
		if p.ended {
			return nil
		}
		return &p.want
	}
	return s.records[id]
}

// All returns the sessions that keep accepts (nil = all), sorted by id. They
// are shared; see Lookup.
func (s *Store) All(keep func(*Record) bool) []Record {
	var all []Record
	s.Each(func(r *Record) bool {
		if keep == nil || keep(r) {
			all = append(all, *r)
		}
		return true
	})
	slices.SortFunc(all, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Each calls f with every session, in no order, until it returns false. f must
// neither block, nor use the store, nor change the record.
func (s *Store) Each(f func(*Record) bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, r := range s.records {
		if s.later[id] == nil && !f(r) {
			return
		}
	}
	for _, p := range s.later {
		if !p.ended && !f(&p.want) {
			return
		}
	}
}

// Idle returns the sessions that were not updated since before and whose
// instance is not there, oldest first.
func (s *Store) Idle(before time.Time, there func(instance string) bool) []Record {
	idle := s.All(func(r *Record) bool { return r.Updated.Before(before) && !there(r.Instance) })
	slices.SortStableFunc(idle, func(a, b Record) int { return a.Updated.Compare(b.Updated) })
	return idle
}

// Len returns the number of sessions.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := len(s.records)
	for id, p := range s.later {
		switch _, stored := s.records[id]; {
		case p.ended && stored:
			n--
		case !p.ended && !stored:
			n++
		}
	}
	return n
}

// Watch calls f for every change from now on, one at a time, until stop is
// called. f must neither block nor write to the store, nor ask how old it is.
func (s *Store) Watch(f func(Change)) (stop func()) {
	s.change.Lock()
	defer s.change.Unlock()
	id := s.nextID
	s.nextID++
	s.watch[id] = f
	return func() {
		s.change.Lock()
		defer s.change.Unlock()
		delete(s.watch, id)
	}
}

// Stale reports whether sessions may have changed more than is known here: the
// bucket's leader can't be asked.
func (s *Store) Stale() bool { return s.index.Stale() }

// AsOf is when this node last knew all that the bucket holds; zero if never.
func (s *Store) AsOf() time.Time { return s.index.AsOf() }

// Gaps counts how often updates were missed and fetched.
func (s *Store) Gaps() uint64 { return s.index.Gaps() }

// Resync asks for a comparison of index and bucket soon. It never blocks.
func (s *Store) Resync() { s.index.Kick() }

// mutation marks a write of this node as no other is.
func (s *Store) mutation() kv.Mutation {
	return kv.Mutation{Node: s.opts.Node, Incarnation: s.opts.Incarnation, N: s.n.Add(1)}
}

// apply takes the bucket's news from the index.
func (s *Store) apply(batch []kv.Entry) {
	s.change.Lock()
	defer s.change.Unlock()
	changes := make([]Change, 0, len(batch))
	s.mu.Lock()
	for _, e := range batch {
		if e.Value != nil || e.Gone {
			delete(s.corrupt, e.Key)
		} else {
			s.corrupt[e.Key] = e.Rev
		}
		if id, ok := strings.CutSuffix(e.Key, manifestSuffix); ok {
			if e.Gone {
				delete(s.manifests, id)
			} else {
				s.manifests[id] = e.Rev
			}
			continue
		}
		if c, ok := s.applyRecord(e); ok {
			changes = append(changes, c)
		}
	}
	s.shared.renew(s.records)
	s.mu.Unlock()
	for _, c := range changes {
		s.tell(c)
	}
}

// applyRecord notes what the bucket has of a session. The caller holds s.mu.
func (s *Store) applyRecord(e kv.Entry) (Change, bool) {
	old := s.records[e.Key]
	var r Record
	if e.Value != nil {
		var err error
		if r, err = decode(e); err != nil {
			s.log.Warn("session record ignored", "session", e.Key, "revision", e.Rev, "err", err)
			s.corrupt[e.Key] = e.Rev
			e.Value = nil
		}
	}
	if e.Value == nil {
		delete(s.records, e.Key)
		if old == nil || s.later[e.Key] != nil {
			return Change{}, false
		}
		return Change{*old, true}, true
	}
	s.shared.share(&r)
	s.records[e.Key] = &r
	return Change{r, false}, s.later[e.Key] == nil
}

// tell calls those who watch. The caller holds s.change.
func (s *Store) tell(c Change) {
	for _, f := range s.watch {
		f(c)
	}
}

// decode checks and decodes an entry of the bucket.
func decode(e kv.Entry) (Record, error) {
	r, err := kv.Decode[Record](e.Value)
	if err != nil {
		return r, err
	}
	if r.ID != e.Key {
		return r, fmt.Errorf("%w: it is the record of session %.80q", kv.ErrCorrupt, r.ID)
	}
	r.ID, r.Rev = e.Key, e.Rev // one string for index and record
	return r, nil
}
