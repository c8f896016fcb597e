package aggregate

import (
	"context"
	"sync"
	"sync/atomic"
)

// shared is something that is opened on first need, by one attempt at a time.
// Callers may stop waiting; the attempt goes on for the next one. What was
// opened stays until it is dropped, a failure is forgotten at once.
type shared[T any] struct {
	mu    sync.Mutex
	cur   *attempt[T]
	ended bool
}

type attempt[T any] struct {
	done  chan struct{} // closed under shared.mu
	val   *T
	err   error
	given atomic.Bool // a caller stopped waiting
}

func (a *attempt[T]) over() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// opening says how to open.
type opening[T any] struct {
	spawn func(func()) bool  // runs the attempt
	open  func() (*T, error) // the attempt
	// then follows a successful attempt, once get returns what it opened. late
	// means that somebody had stopped waiting for it.
	then    func(val *T, late bool)
	discard func(*T) // takes what was opened after the end; nil = nothing to do
}

// get returns what is open, or opens it.
func (s *shared[T]) get(ctx context.Context, how opening[T]) (*T, error) {
	s.mu.Lock()
	a := s.cur
	if a == nil {
		a = &attempt[T]{done: make(chan struct{})}
		if s.ended || !how.spawn(func() { s.run(a, how) }) {
			s.mu.Unlock()
			return nil, errClosed()
		}
		s.cur = a
	}
	s.mu.Unlock()
	select {
	case <-a.done:
		return a.val, a.err
	case <-ctx.Done():
	}
	a.given.Store(true)
	if a.over() { // run may have missed the mark
		return a.val, a.err
	}
	return nil, ctx.Err()
}

func (s *shared[T]) run(a *attempt[T], how opening[T]) {
	val, err := how.open()
	s.mu.Lock()
	unwanted := s.ended && err == nil
	if unwanted {
		err = errClosed()
	}
	if a.err = err; err == nil {
		a.val = val
	} else if s.cur == a {
		s.cur = nil
	}
	close(a.done)
	s.mu.Unlock()
	switch {
	case unwanted && how.discard != nil:
		how.discard(val)
	case err == nil:
		how.then(val, a.given.Load())
	}
}

// peek returns what is open, or nil.
func (s *shared[T]) peek() *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == nil || !s.cur.over() {
		return nil
	}
	return s.cur.val
}

// drop forgets val, so that the next get opens anew. It reports whether val was
// what is open.
func (s *shared[T]) drop(val *T) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == nil || !s.cur.over() || s.cur.val != val {
		return false
	}
	s.cur = nil
	return true
}

// reset forgets whatever is open or being opened.
func (s *shared[T]) reset() {
	s.mu.Lock()
	s.cur = nil
	s.mu.Unlock()
}

// end returns what is open, or nil, and lets nothing be opened from now on.
func (s *shared[T]) end() *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.cur == nil || !s.cur.over() {
		return nil // run discards what comes of it
	}
	val := s.cur.val
	s.cur = nil
	return val
}
