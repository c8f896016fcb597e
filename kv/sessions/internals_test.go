package sessions

import (
	"context"

	"ripstop/kv"
)

// What tests reach into, so that faults can be made.

// Sync compares index and bucket.
func Sync(ctx context.Context, s *Store) error { return s.index.Sync(ctx) }

// Keys is the number of keys in the index, records and lists of data.
func Keys(s *Store) int { return s.index.Len() }

// Forget makes the store forget a record, as if its index had missed it.
func Forget(s *Store, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, id)
}

// EndOnly removes a record and leaves its data, as a node does that dies between.
func EndOnly(ctx context.Context, s *Store, id string, rev uint64) error {
	return s.remove(ctx, id, rev)
}

// Unanswered writes a record as Create does, and loses the answer.
func Unanswered(ctx context.Context, s *Store, r Record) (Record, error) {
	s.stamp(&r)
	data, err := kv.Encode(r)
	if err != nil {
		return r, err
	}
	_, err = s.bucket.Update(ctx, r.ID, data, r.Rev)
	return r, err
}

// Bucket is the store's.
func Bucket(s *Store) *kv.Bucket { return s.bucket }

// Locks counts the sessions that data is being written of.
func Locks(s *Store) int {
	s.data.mu.Lock()
	defer s.data.mu.Unlock()
	return len(s.data.locks)
}

// Flush writes what the disk lacks.
func Flush(s *Store) error { return s.index.Flush() }
