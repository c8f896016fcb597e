package kv

import "maps"

// What tests reach into, so that faults can be made.

// Deafen cuts the index off from its feed until the returned function is called.
func Deafen(r *Registry) (hear func() error) {
	ix := r.index
	err := ix.sub.Unsubscribe()
	return func() error {
		if err != nil {
			return err
		}
		ix.sub, err = ix.bucket.nc.ChanSubscribe(ix.bucket.cfg.Feed()+".>", ix.feed)
		if err != nil {
			return err
		}
		return ix.bucket.nc.Flush()
	}
}

// Flush writes what the disk lacks.
func Flush(r *Registry) error { return r.index.flush() }

// Keys is the number of keys in the index, claims and all.
func Keys(r *Registry) int { return r.index.Len() }

// LastSeq is up to where the index has seen everything.
func LastSeq(r *Registry) uint64 {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	return r.index.seq
}

// Crash stops a registrar as a killed process does: what it had stays in the
// bucket.
func Crash(r *Registrar) {
	for _, s := range r.subs {
		_ = s.Unsubscribe() // the connection may be gone
	}
	r.cancel()
	r.wg.Wait()
	r.unwatch()
}

// Ahead makes the index believe that it has seen n more sequences.
func Ahead(r *Registry, n uint64) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	r.index.seq += n
	r.index.seen = r.index.seq
}

// Revisions returns the revision of every key in the index.
func Revisions(r *Registry) map[string]uint64 {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	return maps.Clone(r.index.revs)
}
