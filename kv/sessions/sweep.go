package sessions

import (
	"context"
	"errors"
	"fmt"

	"ripstop/kv"
)

// Swept says what a sweep removed.
type Swept struct {
	Data int `json:"data"` // sessions whose data was left behind
}

// Sweep removes the data of sessions that have ended: whoever ended them may
// have died before he could. Any node may do it, at any time. Markers of ended
// sessions go by themselves.
func (s *Store) Sweep(ctx context.Context) (Swept, error) {
	var swept Swept
	var orphans []string
	s.mu.RLock()
	for id := range s.manifests {
		if s.records[id] == nil && s.later[id] == nil {
			orphans = append(orphans, id)
		}
	}
	s.mu.RUnlock()
	for _, id := range orphans {
		removed, err := s.dropOrphan(ctx, id)
		if err != nil {
			return swept, fmt.Errorf("remove data of session %s, which has ended: %w", id, err)
		}
		if removed {
			swept.Data++
		}
	}
	return swept, nil
}

// dropOrphan removes the data of a session if the bucket has no record of it.
func (s *Store) dropOrphan(ctx context.Context, id string) (bool, error) {
	gone := false
	err := s.persist(ctx, func(ctx context.Context) error {
		e, err := s.bucket.Get(ctx, id)
		if gone = e.Gone; err != nil || !gone || e.Rev != 0 {
			return err // a marker is for good: ids are not used again
		}
		// A leader that was cut off may not know of the record yet. That a marker
		// can be written where nothing was shows that there is none.
		_, err = s.bucket.Remove(ctx, id, 0)
		if errors.Is(err, kv.ErrConflict) {
			return errAgain
		}
		return err
	})
	if err != nil || !gone {
		return false, err
	}
	return true, s.dropData(ctx, id)
}
