package sessions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ripstop/kv"
)

// Get returns a session's record as the bucket's leader has it. It fails with
// kv.ErrNotFound, also for one that is kept for later; see Lookup.
func (s *Store) Get(ctx context.Context, id string) (Record, error) {
	var e kv.Entry
	err := s.persist(ctx, func(ctx context.Context) (err error) {
		e, err = s.bucket.Get(ctx, id)
		return err
	})
	if err != nil {
		return Record{}, err
	}
	return found(e)
}

// found decodes the leader's answer.
func found(e kv.Entry) (Record, error) {
	if e.Gone {
		return Record{}, fmt.Errorf("session %s: %w", e.Key, kv.ErrNotFound)
	}
	r, err := decode(e)
	if err != nil {
		return Record{}, fmt.Errorf("session %s: %w", e.Key, err)
	}
	return r, nil
}

// Create stores the record of a new session and returns it as stored. It fails
// with kv.ErrConflict if there is, or was, a session of this id. After any other
// error it may have been stored all the same; the record that is returned then
// can be handed to CreateLater.
func (s *Store) Create(ctx context.Context, r Record) (Record, error) {
	if err := checkID(r.ID); err != nil {
		return Record{}, err
	}
	s.stamp(&r)
	if err := s.put(ctx, &r, 0); err != nil {
		return r, err
	}
	return r, nil
}

// checkID refuses what can't be a key of the bucket's.
func checkID(id string) error {
	if id == "" || len(id) > 200 || kv.Token(id) != id {
		return fmt.Errorf("session id %.80q: it is at most 200 letters, digits, '-' and '_'", id)
	}
	return nil
}

// stamp makes r a new version of the record, by this node.
func (s *Store) stamp(r *Record) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if r.Created.IsZero() {
		r.Created = now
	}
	r.Schema, r.Updated, r.Mutation, r.Rev = recordSchema, now, s.mutation(), 0
}

// Update stores a changed record, if the one there still has revision r.Rev,
// and returns it as stored. It fails with kv.ErrConflict if not; so it does when
// the write was applied but another followed before that could be known. After
// any other error its outcome is unknown. The record of a session that is kept
// for later, revision 0, is changed there.
func (s *Store) Update(ctx context.Context, r Record) (Record, error) {
	base := r.Rev
	if base == 0 {
		return s.updateLater(r)
	}
	s.stamp(&r)
	if err := s.put(ctx, &r, base); err != nil {
		return Record{}, err
	}
	return r, nil
}

// put writes r over revision base until it is known what became of it, and sets
// r.Rev.
func (s *Store) put(ctx context.Context, r *Record, base uint64) error {
	data, err := kv.Encode(r)
	if err != nil {
		return fmt.Errorf("session %s: %w", r.ID, err)
	}
	sent := false
	return s.persist(ctx, func(ctx context.Context) error {
		if sent {
			if done, err := s.outcome(ctx, r, base); done || err != nil {
				return err
			}
		}
		sent = true
		rev, err := s.bucket.Update(ctx, r.ID, data, base)
		if errors.Is(err, kv.ErrConflict) {
			done, err := s.outcome(ctx, r, base)
			if !done && err == nil {
				err = errUnderWay // what it conflicted with is under way, or was refused itself
			}
			return err
		}
		if err == nil {
			r.Rev = rev
			s.index.Learn(kv.Entry{Key: r.ID, Value: data, Rev: rev})
		}
		return err
	})
}

// outcome asks the leader what became of the write of r over base: it is done,
// or not applied yet, or it fails with kv.ErrConflict.
func (s *Store) outcome(ctx context.Context, r *Record, base uint64) (done bool, err error) {
	e, err := s.bucket.Get(ctx, r.ID)
	if err != nil {
		return false, err
	}
	if !e.Gone {
		if have, err := decode(e); err == nil && have.Mutation == r.Mutation {
			r.Rev = e.Rev
			s.index.Learn(e)
			return true, nil
		}
	}
	if e.Rev == base {
		return false, nil
	}
	s.index.Learn(e)
	return false, fmt.Errorf("session %s: %w: it has revision %d, not %d", r.ID, kv.ErrConflict, e.Rev, base)
}

// End removes a session's record if it still has revision rev, and its data. A
// session that is gone already is no error. It fails with kv.ErrConflict; after
// any other error the outcome is unknown. What is kept for later, revision 0, is
// dropped.
func (s *Store) End(ctx context.Context, id string, rev uint64) error {
	if rev == 0 {
		return s.endLater(id)
	}
	if err := s.remove(ctx, id, rev); err != nil {
		return err
	}
	s.mu.RLock()
	_, data := s.manifests[id]
	s.mu.RUnlock()
	if data {
		if err := s.dropData(ctx, id); err != nil {
			s.log.Debug("data of an ended session is left to the sweep", "session", id, "err", err)
		}
	}
	return nil
}

// remove purges a record, and leaves its marker.
func (s *Store) remove(ctx context.Context, id string, rev uint64) error {
	return s.persist(ctx, func(ctx context.Context) error {
		marker, err := s.bucket.Remove(ctx, id, rev)
		if err == nil {
			s.index.Learn(kv.Entry{Key: id, Rev: marker, Gone: true})
			return nil
		}
		if !errors.Is(err, kv.ErrConflict) && !passing(err) {
			return err
		}
		e, gerr := s.bucket.Get(ctx, id)
		switch {
		case gerr != nil:
			return gerr
		case e.Gone:
			s.index.Learn(kv.Entry{Key: id, Rev: max(e.Rev, rev), Gone: true})
			return nil
		case e.Rev == rev:
			return errUnderWay
		}
		s.index.Learn(e)
		return fmt.Errorf("session %s: %w: it has revision %d, not %d", id, kv.ErrConflict, e.Rev, rev)
	})
}
