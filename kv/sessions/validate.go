package sessions

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ripstop/kv"
)

// Kinds of findings.
const (
	FindingCorrupt  = "corrupt"  // a value does not decode, its checksum does not hold, or it is another key's
	FindingIndex    = "index"    // this node's index differs from the bucket
	FindingReplica  = "replica"  // a replica of the bucket has something else than its leader, or is behind
	FindingOrphan   = "orphan"   // data of a session that is not there
	FindingManifest = "manifest" // a session's list of data differs from its data
)

// Finding is one thing that Validate found.
type Finding struct {
	Key      string `json:"key"` // of the bucket; "" = the bucket itself
	Kind     string `json:"kind"`
	What     string `json:"what"`
	Repaired bool   `json:"repaired"`
}

// readsPerReplica is how often Validate reads the bucket for each replica:
// JetStream picks the replica that answers a read, and does not say which it
// was.
const readsPerReplica = 3

// seen is what one reading of the bucket found under a key.
type seen struct {
	rev  uint64
	sum  [sha256.Size]byte
	gone bool
	bad  error
	data *datum
	list *manifest
}

// validation is one run.
type validation struct {
	s        *Store
	repair   bool
	findings []Finding
	keys     map[string]seen
}

// Validate reads all that the bucket holds and returns what is wrong with it.
// Data without a session is removed, and an index that differs is mended; what
// can't be read, and lists of data that do not match, only with repair.
//
// Replicas are compared by reading the bucket several times, each batch of a
// thousand keys from whichever replica JetStream picks, and with the leader's
// word on every key that differs; and by what the leader says of how far they
// are. A single rotten key of one of three replicas is found with a likelihood
// of 97 %.
func (s *Store) Validate(ctx context.Context, repair bool) ([]Finding, error) {
	v := &validation{s: s, repair: repair}
	if err := s.index.Sync(ctx); err != nil {
		return nil, fmt.Errorf("validate sessions: the bucket's leader does not answer: %w", err)
	}
	steps := []func(context.Context) error{v.read, v.replicas, v.records, v.data}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return v.findings, fmt.Errorf("validate sessions: %w", err)
		}
	}
	return v.findings, nil
}

func (v *validation) find(key, kind string, repaired bool, format string, args ...any) {
	v.findings = append(v.findings, Finding{key, kind, fmt.Sprintf(format, args...), repaired})
}

func (v *validation) read(ctx context.Context) (err error) {
	v.keys, err = v.scan(ctx)
	return err
}

func (v *validation) scan(ctx context.Context) (map[string]seen, error) {
	keys := map[string]seen{}
	err := v.s.bucket.Scan(ctx, func(e kv.Entry) error {
		keys[e.Key] = look(e)
		return nil
	})
	return keys, err
}

// look checks one entry.
func look(e kv.Entry) seen {
	n := seen{rev: e.Rev, sum: sha256.Sum256(e.Value), gone: e.Gone}
	switch {
	case e.Gone:
	case strings.Contains(e.Key, "."):
		d, err := decodeDatum(e)
		d.Value = nil
		n.data, n.bad = &d, err
	case strings.HasSuffix(e.Key, manifestSuffix):
		n.list, n.bad = decodeManifest(e)
	default:
		_, n.bad = decode(e)
	}
	return n
}

// replicas reads again and compares.
func (v *validation) replicas(ctx context.Context) error {
	peers, err := v.s.bucket.Replicas(ctx)
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.Offline || !p.Current {
			v.find("", FindingReplica, false, "the replica of node %s is behind by %d entries (offline: %t)", p.Name, p.Lag, p.Offline)
		}
	}
	if len(peers) == 0 {
		return nil
	}
	differs := map[string]bool{}
	for range readsPerReplica*(len(peers)+1) - 1 {
		again, err := v.scan(ctx)
		if err != nil {
			return err
		}
		for key, n := range again {
			if have, ok := v.keys[key]; !ok || have.rev < n.rev {
				v.keys[key] = n // it is new, or that replica was behind
			}
		}
		for key, have := range v.keys {
			if n, ok := again[key]; !ok || n.rev != have.rev || n.sum != have.sum {
				differs[key] = true
			}
		}
	}
	for key := range differs {
		if err := v.settle(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// settle takes the leader's word on a key that reads did not agree on.
func (v *validation) settle(ctx context.Context, key string) error {
	e, err := v.s.bucket.Get(ctx, key)
	if err != nil {
		return err
	}
	leader, have := look(e), v.keys[key]
	if leader.rev == have.rev && !leader.gone {
		v.find(key, FindingReplica, false, "a replica lacks revision %d, or has another value; restart its node with that stream's index.db removed", have.rev)
	}
	if leader.rev == 0 {
		delete(v.keys, key)
	} else {
		v.keys[key] = leader
	}
	return nil
}

// leader asks the leader for a key that seems wrong. It returns whether it is
// still what was seen.
func (v *validation) leader(ctx context.Context, key string, was seen) (seen, bool, error) {
	e, err := v.s.bucket.Get(ctx, key)
	if err != nil {
		return seen{}, false, err
	}
	now := look(e)
	return now, now.rev == was.rev && now.gone == was.gone && (now.bad != nil) == (was.bad != nil), nil
}

// records checks every record, and this node's index.
func (v *validation) records(ctx context.Context) error {
	for _, key := range v.sorted() {
		was := v.keys[key]
		if strings.Contains(key, ".") || strings.HasSuffix(key, manifestSuffix) {
			continue
		}
		if was.bad != nil {
			if err := v.corrupt(ctx, key, was); err != nil {
				return err
			}
			continue
		}
		if err := v.index(ctx, key, was); err != nil {
			return err
		}
	}
	for _, r := range v.s.All(func(r *Record) bool { _, there := v.keys[r.ID]; return r.Rev != 0 && !there }) {
		if err := v.index(ctx, r.ID, seen{gone: true}); err != nil {
			return err
		}
	}
	return nil
}

func (v *validation) sorted() []string {
	keys := make([]string, 0, len(v.keys))
	for key := range v.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// corrupt reports a key that can't be read, and removes it with repair.
func (v *validation) corrupt(ctx context.Context, key string, was seen) error {
	now, same, err := v.leader(ctx, key, was)
	switch {
	case err != nil:
		return err
	case !same:
		if now.rev == was.rev {
			v.find(key, FindingReplica, false, "a replica has another value at revision %d: %v", was.rev, was.bad)
		}
		v.keys[key] = now
		return nil
	}
	if !v.repair {
		v.find(key, FindingCorrupt, false, "revision %d: %v", was.rev, was.bad)
		return nil
	}
	marker, err := v.s.bucket.Remove(ctx, key, was.rev)
	if err != nil && !errors.Is(err, kv.ErrConflict) {
		return err
	}
	v.find(key, FindingCorrupt, err == nil, "revision %d: %v", was.rev, was.bad)
	if err == nil {
		v.keys[key] = seen{rev: marker, gone: true}
		v.s.index.Learn(kv.Entry{Key: key, Rev: marker, Gone: true})
	}
	return nil
}

// index compares a record with this node's index.
func (v *validation) index(ctx context.Context, id string, was seen) error {
	known := func() uint64 {
		v.s.mu.RLock()
		defer v.s.mu.RUnlock()
		if r := v.s.records[id]; r != nil {
			return r.Rev
		}
		return 0
	}
	want := func(n seen) uint64 {
		if n.gone || n.bad != nil {
			return 0
		}
		return n.rev
	}
	if known() == want(was) {
		return nil
	}
	if err := v.s.index.Sync(ctx); err != nil { // it may have changed since it was read
		return err
	}
	e, err := v.s.bucket.Get(ctx, id)
	if err != nil {
		return err
	}
	now := look(e)
	v.keys[id] = now
	if have := known(); have != want(now) && (now.rev == 0 || have < now.rev) {
		v.s.mend(e, have)
		v.find(id, FindingIndex, known() == want(now), "node %s knows revision %d, the bucket has %d", v.s.opts.Node, have, want(now))
	}
	return nil
}

// mend makes the store know what the leader has of a session, unless it has
// heard of it since it knew revision have.
func (s *Store) mend(e kv.Entry, have uint64) {
	s.index.Learn(e)
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	rev := uint64(0)
	if r := s.records[e.Key]; r != nil {
		rev = r.Rev
	}
	if rev != have {
		s.mu.Unlock()
		return
	}
	c, news := s.applyRecord(e)
	s.mu.Unlock()
	if news {
		s.tell(c)
	}
}
