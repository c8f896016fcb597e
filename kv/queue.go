package kv

import (
	"sync"
)

// queue holds the keys whose bucket record may differ from what it should be,
// and servers whose waiting instances should try again. Its lock is a leaf: it
// may be used under any other.
type queue struct {
	mu     sync.Mutex
	dirty  map[string]bool
	order  []string
	wakes  map[string]bool
	kicked bool   // try again now, whatever failed before
	abort  func() // gives up the writes under way; may be nil
	signal chan struct{}
}

func newQueue() *queue {
	return &queue{dirty: map[string]bool{}, wakes: map[string]bool{}, signal: make(chan struct{}, 1)}
}

func (q *queue) notify() {
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

// add asks for a key to be looked at.
func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.dirty[key] {
		q.dirty[key] = true
		q.order = append(q.order, key)
	}
	q.notify()
}

// wake asks for the instances that wait for server to be told.
func (q *queue) wake(server string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wakes[server] = true
	q.notify()
}

// kick asks for another try at once: there is a leader again. What was sent to
// the one before may never be answered.
func (q *queue) kick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kicked = true
	if q.abort != nil {
		q.abort()
	}
	q.notify()
}

// onKick sets what a kick gives up.
func (q *queue) onKick(abort func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abort = abort
}

// takeKick reports whether kick was called since.
func (q *queue) takeKick() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := q.kicked
	q.kicked = false
	return k
}

// takeWakes returns the servers to wake.
func (q *queue) takeWakes() map[string]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.wakes) == 0 {
		return nil
	}
	w := q.wakes
	q.wakes = map[string]bool{}
	return w
}

// take returns up to n keys.
func (q *queue) take(n int) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.order))
	keys := append([]string(nil), q.order[:n]...)
	q.order = q.order[n:]
	if len(q.order) == 0 {
		q.order = nil
	}
	for _, k := range keys {
		delete(q.dirty, k)
	}
	return keys
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.order)
}
