package sessions

import (
	"context"
	"sync"
)

// manifestsKept is how many manifests a node remembers of the sessions it has
// written data of last.
const manifestsKept = 1024

// manifestCache saves a write of data the question what is there. What it
// remembers may be old: the bucket refuses what relies on it then. It also
// orders the writes of one node to one session, which would only make each other
// fail.
type manifestCache struct {
	mu    sync.Mutex
	byID  map[string]*manifest
	locks map[string]*dataLock
}

type dataLock struct {
	turn chan struct{}
	n    int // who has it or waits for it
}

// lock waits for its turn to write data of a session.
func (c *manifestCache) lock(ctx context.Context, id string) (unlock func(), err error) {
	c.mu.Lock()
	if c.locks == nil {
		c.locks = map[string]*dataLock{}
	}
	l := c.locks[id]
	if l == nil {
		l = &dataLock{turn: make(chan struct{}, 1)}
		c.locks[id] = l
	}
	l.n++
	c.mu.Unlock()
	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if l.n--; l.n == 0 {
			delete(c.locks, id)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

func (c *manifestCache) get(id string) *manifest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[id]
}

func (c *manifestCache) put(m *manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byID) >= manifestsKept {
		for id := range c.byID { // any
			delete(c.byID, id)
			break
		}
	}
	c.byID[m.Session] = m
}

func (c *manifestCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byID, id)
}
