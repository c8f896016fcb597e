package kv

import (
	"context"
	"slices"
	"sync"
	"time"
)

// How many writes of one node to one bucket may wait for their answer.
const (
	writesAtOnce = 64
	// While answers are overdue: the leader may be cut off and not know yet. Each
	// entry that it takes in vain costs it seconds when it catches up after the
	// heal: nats-server discards them one by one (raft.go, catchup of a follower
	// whose log has diverged).
	writesOverdue = 2
	// An answer is overdue after this many times the usual.
	overdueFactor = 4
	overdueLeast  = 20 * time.Millisecond
)

// window bounds the writes that wait for an answer.
type window struct {
	mu    sync.Mutex
	open  []time.Time   // when each began, oldest first
	usual time.Duration // moving average of answers
	freed chan struct{} // closed when one ends
}

// enter waits until a write may begin, or ctx ends. leave must be called, with
// whether it was answered.
func (w *window) enter(ctx context.Context) (leave func(answered bool), err error) {
	for {
		w.mu.Lock()
		now := time.Now()
		if n := len(w.open); n < writesOverdue || n < writesAtOnce && now.Sub(w.open[0]) < w.overdue() {
			w.open = append(w.open, now)
			w.mu.Unlock()
			return func(answered bool) { w.leave(now, answered) }, nil
		}
		if w.freed == nil {
			w.freed = make(chan struct{})
		}
		freed := w.freed
		w.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *window) overdue() time.Duration { return max(overdueFactor*w.usual, overdueLeast) }

func (w *window) leave(began time.Time, answered bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := slices.Index(w.open, began); at >= 0 {
		w.open = slices.Delete(w.open, at, at+1)
	}
	if answered {
		w.usual += (time.Since(began) - w.usual) / 8
	}
	if w.freed != nil {
		close(w.freed)
		w.freed = nil
	}
}
