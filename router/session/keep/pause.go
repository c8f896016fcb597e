package keep

import (
	"sync"
	"time"

	"ripstop/router"
)

// A node that stood still knows nothing of the moves that others made meanwhile,
// and may believe that it still leads a bucket. What it says of a session then
// would have two instances serve it.
const (
	pauseTick  = 250 * time.Millisecond
	pauseOver  = 1500 * time.Millisecond // longer than a busy machine makes a tick wait; sessions move later than that
	pauseBlind = 1500 * time.Millisecond // after it: nothing is said
	pauseWary  = 10 * time.Second        // after it: only what a leader says
)

// pauses notices when the node stood still.
type pauses struct {
	began time.Time
	stop  chan struct{}
	done  chan struct{}

	mu    sync.Mutex
	last  time.Duration // when the process was last seen running
	stood time.Duration // when it last went on; 0 = it never stood still
}

func watchPauses() *pauses {
	p := &pauses{began: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *pauses) run() {
	defer close(p.done)
	tick := time.NewTicker(pauseTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.since()
		case <-p.stop:
			return
		}
	}
}

func (p *pauses) close() {
	close(p.stop)
	<-p.done
}

// since returns for how long the node has been running again; false if it never
// stood still.
func (p *pauses) since() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Since(p.began)
	if now-p.last > pauseOver {
		p.stood = now
	}
	p.last = now
	return now - p.stood, p.stood != 0
}

// trust reports whether only a leader's word counts; the error is that nothing can
// be said now.
func (k *Keep) trust() (wary bool, err error) {
	if !k.opts.Clustered { // nobody else moves sessions
		return false, nil
	}
	since, stood := k.pauses.since()
	if stood && since < pauseBlind {
		return true, router.Errorf(router.ErrUnavailable, "node %s has just stood still, and finds out what it has missed; nothing was executed, try again", k.opts.Node)
	}
	return stood && since < pauseWary, nil
}
