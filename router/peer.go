package router

import (
	"sync/atomic"
	"time"
)

const (
	// decay is how fast what is known of an instance's latency loses its
	// weight: after this long without a call it counts half. So an instance
	// that was slow is tried again.
	decay = 10 * time.Second

	// leastWeight is what a new latency counts at least, however fast they come.
	leastWeight = 1.0 / 32

	// An instance that did not take a call is left alone for boxLeast, doubled
	// with every further failure up to boxMost; one that is full, for boxFull.
	boxLeast = 100 * time.Millisecond
	boxMost  = 10 * time.Second
	boxFull  = 100 * time.Millisecond
)

// peer is what this router has seen of an instance. Its times count from the
// router's start. Updates may overwrite each other: these are estimates.
type peer struct {
	inFlight atomic.Int64 // calls from here
	latency  atomic.Int64 // weighted mean of its calls, in ns; 0 = none yet
	at       atomic.Int64 // when that was last updated
	fails    atomic.Int32 // calls it did not take, in a row
	until    atomic.Int64 // when it may be chosen again
}

// took notes the latency of a call that went well.
func (p *peer) took(now, d time.Duration) {
	old, since := p.latency.Load(), int64(now)-p.at.Load()
	p.at.Store(int64(now))
	if old == 0 {
		p.latency.Store(max(int64(d), 1))
		return
	}
	w := max(float64(since)/float64(since+int64(decay)), leastWeight)
	p.latency.Store(max(int64(float64(old)*(1-w)+float64(d)*w), 1))
}

// expected is the latency to reckon with at now, in ns; 0 if nothing is known.
func (p *peer) expected(now time.Duration) float64 {
	old := p.latency.Load()
	if old == 0 {
		return 0
	}
	idle := max(int64(now)-p.at.Load(), 0)
	return float64(old) * float64(decay) / float64(int64(decay)+idle)
}

// well notes that it took a call.
func (p *peer) well() {
	if p.until.Load() != 0 {
		p.fails.Store(0)
		p.until.Store(0)
	}
}

// failed keeps it out of the way for a while. Calls that fail together count as
// one.
func (p *peer) failed(now time.Duration) {
	until := p.until.Load()
	fails := p.fails.Load()
	if fails > 0 && int64(now) < until-int64(box(fails))/2 { // boxed a moment ago
		return
	}
	if p.until.CompareAndSwap(until, int64(now+box(fails+1))) {
		p.fails.Store(fails + 1)
	}
}

// box is how long it is left alone after so many failures.
func box(fails int32) time.Duration {
	return min(boxLeast<<min(max(fails-1, 0), 10), boxMost)
}

// boxHung is how long an instance that hangs is left alone. A call that comes to
// it all the same is refused at once for as long as it does.
const boxHung = 2 * time.Second

// hangs keeps it out of the way for longer.
func (p *peer) hangs(now time.Duration) {
	p.fails.Store(max(p.fails.Load(), 1))
	p.until.Store(max(p.until.Load(), int64(now+boxHung)))
}

// full keeps it out of the way for a moment.
func (p *peer) full(now time.Duration) {
	p.until.Store(max(p.until.Load(), int64(now+boxFull)))
}

// free reports whether it may be chosen.
func (p *peer) free(now time.Duration) bool { return p.until.Load() <= int64(now) }

// try notes that it was chosen: of one that failed before, one call at a time
// finds out whether it is well again.
func (p *peer) try(now time.Duration) {
	if fails := p.fails.Load(); fails > 0 {
		p.until.Store(int64(now + box(fails)/2)) // so that its failure counts as one more
	}
}

// better reports whether a should have a call rather than b: by calls in flight
// x latency, and where these are within a factor of two, by calls in flight.
func better(a, b *peer, now time.Duration) bool {
	na, nb := a.inFlight.Load(), b.inFlight.Load()
	if la, lb := a.expected(now), b.expected(now); la > 0 && lb > 0 {
		switch ca, cb := float64(na+1)*la, float64(nb+1)*lb; {
		case 2*ca < cb:
			return true
		case 2*cb < ca:
			return false
		}
	}
	return na < nb
}
