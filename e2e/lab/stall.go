package lab

import (
	"context"
	"sync"
	"time"
)

// Stall measures how long the test itself was kept from running: on a starved
// machine a gap is the machine's, and the run is invalid.
type Stall struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	worst  time.Duration
}

const stallTick = 5 * time.Millisecond

// WatchStall begins to measure.
func WatchStall(ctx context.Context) *Stall {
	ctx, cancel := context.WithCancel(ctx)
	s := &Stall{cancel: cancel}
	s.done.Go(func() {
		tick := time.NewTicker(stallTick)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				now := time.Now()
				s.mu.Lock()
				s.worst = max(s.worst, now.Sub(last)-stallTick)
				s.mu.Unlock()
				last = now
			}
		}
	})
	return s
}

// Stop ends it and returns the longest stall.
func (s *Stall) Stop() time.Duration {
	s.cancel()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worst
}
