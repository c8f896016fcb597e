package session

import "sync/atomic"

// maxSpare bounds the goroutines a layer keeps for its next calls.
const maxSpare = 64

// workers are the goroutines of the calls that outlive their callers. One that
// is done takes the next call, since its stack has grown to what a call needs.
type workers struct {
	next  chan func() // unbuffered: only a waiting worker receives
	spare atomic.Int32
}

// employ runs f in a worker. It reports false once the layer is closed.
func (l *Layer) employ(f func()) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return false
	}
	select {
	case l.workers.next <- f:
	default:
		l.work.Go(func() {
			for f := f; f != nil; f = l.nextJob() {
				f()
			}
		})
	}
	return true
}

// nextJob waits for another call; nil means that the worker is not needed.
func (l *Layer) nextJob() func() {
	defer l.workers.spare.Add(-1)
	if l.workers.spare.Add(1) > maxSpare {
		return nil
	}
	select {
	case f := <-l.workers.next:
		return f
	case <-l.ctx.Done():
		return nil
	}
}
