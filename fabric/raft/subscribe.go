package raft

import (
	"context"
	"sync"
)

// Subscription is one reader's queue of events: first an Up for every peer there
// was when it began, then each change in order. Nothing is lost and nobody waits
// for a slow reader, so a reader that stops must Close.
type Subscription struct {
	w     *Watcher
	ready chan struct{} // has a token when the queue was filled

	mu    sync.Mutex // guards queue; taken after w.mu
	queue []Event
}

// Subscribe begins a queue of events.
func (w *Watcher) Subscribe() *Subscription {
	s := &Subscription{w: w, ready: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.sortedPeers() {
		s.push(Event{Kind: Up, Peer: p, At: p.Since})
	}
	w.subs[s] = struct{}{}
	return s
}

func (s *Subscription) push(e Event) {
	s.mu.Lock()
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Next waits for an event, or returns ctx's error. One reader at a time.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			e := s.queue[0]
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return e, nil
		}
		s.mu.Unlock()
		select {
		case <-s.ready:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close ends the queue. It is idempotent.
func (s *Subscription) Close() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.w.subs, s)
}
