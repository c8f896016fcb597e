package stdio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ripstop/router"
)

// Restarts of a child that ended by itself.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second

	// healthyAfter is how long a child must have lived for its end to count as
	// the first one again.
	healthyAfter = 60 * time.Second

	// waitBackoff is the longest rest of a backoff that a request sits out; a
	// client that must try again by itself would hardly do so sooner.
	waitBackoff = time.Second
)

func backoff(fails int) time.Duration {
	return min(minBackoff<<min(max(fails-1, 0), 16), maxBackoff)
}

// errRetry makes a link start once more without counting a failure.
var errRetry = errors.New("start again")

// link is a child that is started when it is needed, and again when it died.
type link struct {
	backend *Backend
	owner   owner
	single  bool                               // it has one child only
	shake   func(context.Context, *conn) error // the handshake of a new child

	ctx    context.Context // ends with the link
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  error    // why the link gives out no child any more
	conn    *conn    // nil = none runs
	attempt *attempt // the start under way; nil = none
	gen     uint64
	fails   int       // ends and failed starts in a row
	until   time.Time // no start before
	used    time.Time
}

type attempt struct {
	done chan struct{}
	conn *conn
	err  error
}

func newLink(b *Backend, o owner, shake func(context.Context, *conn) error) *link {
	l := &link{backend: b, owner: o, shake: shake, used: time.Now()}
	l.ctx, l.cancel = context.WithCancel(b.ctx)
	return l
}

// acquire returns the link's live child, and starts it if there is none. Errors
// mean that nothing was executed.
func (l *link) acquire(ctx context.Context) (*conn, error) {
	a, c, err := l.join()
	if a == nil {
		return c, err
	}
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the server to start: %w", ctx.Err())
	}
}

func (l *link) join() (*attempt, *conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = time.Now()
	switch {
	case l.closed != nil:
		return nil, nil, l.closed
	case l.conn != nil && l.conn.alive():
		return nil, l.conn, nil
	case l.attempt != nil:
		return l.attempt, nil, nil
	case l.single && l.gen > 0:
		return nil, nil, router.Errorf(router.ErrSessionNotFound, "the session ended with the server's process; send initialize again")
	}
	rest := time.Until(l.until)
	if rest > waitBackoff {
		return nil, nil, router.Errorf(router.ErrUnavailable,
			"the server's process failed %d times in a row; it is started again with the first request after %s (in %v); its stderr is in the log",
			l.fails, l.until.Format(time.RFC3339), rest.Round(100*time.Millisecond))
	}
	a := &attempt{done: make(chan struct{})}
	if !l.backend.background(func() { l.start(a, rest) }) {
		return nil, nil, errClosing(l.backend)
	}
	l.attempt = a
	return a, nil, nil
}

// start makes one attempt. It does not hang on the request that caused it,
// since others may be waiting by the time that one is cancelled.
func (l *link) start(a *attempt, after time.Duration) {
	defer close(a.done)
	pause := time.NewTimer(after)
	defer pause.Stop()
	select {
	case <-pause.C:
		a.conn, a.err = l.connect()
		if errors.Is(a.err, errRetry) {
			a.conn, a.err = l.connect()
		}
	case <-l.ctx.Done():
		a.err = l.ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempt = nil
	switch {
	case a.err == nil:
		a.err = l.setLocked(a.conn)
	case l.closed != nil:
		a.err = l.closed
	case l.ctx.Err() != nil:
		a.err = errClosing(l.backend)
	default:
		l.failedLocked()
		l.backend.log.Warn("server did not start", "err", a.err, "fails", l.fails, "retry_after", l.until)
	}
}

// connect starts a child and shakes hands.
func (l *link) connect() (*conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.backend.opts.StartTimeout)
	defer cancel()
	c, err := l.backend.spawn(l.owner)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	c.gen = l.gen + 1
	l.mu.Unlock()
	if err := l.shake(ctx, c); err != nil {
		l.backend.discard(c, "its handshake failed")
		if ctx.Err() != nil && l.ctx.Err() == nil {
			err = router.Errorf(router.ErrBackend, "the server did not finish its handshake within %v; nothing was executed", l.backend.opts.StartTimeout)
		}
		return nil, err
	}
	return c, nil
}

// set makes c the link's child.
func (l *link) set(c *conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.setLocked(c)
}

func (l *link) setLocked(c *conn) error {
	if l.closed != nil {
		l.backend.discard(c, "nobody needs it any more")
		return l.closed
	}
	l.gen, l.conn = c.gen, c
	if !c.alive() { // too early for exited to have counted it
		l.conn = nil
		l.failedLocked()
	}
	return nil
}

func (l *link) failedLocked() {
	l.fails++
	l.until = time.Now().Add(backoff(l.fails))
}

// exited notes the end of a child, wanted or not.
func (l *link) exited(c *conn, e *exit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != c || c.ending.Load() {
		return // wanted, or a failed start, which is counted as such
	}
	l.conn = nil
	if time.Since(c.started) >= healthyAfter {
		l.fails = 0
	}
	l.failedLocked()
	c.log.Warn("server process ended", "status", e.status, "why", e.why, "last_stderr", e.stderr, "fails", l.fails)
}

// retire ends the child; the next acquire starts a new one.
func (l *link) retire(why string) {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		l.backend.discard(c, why)
	}
}

// close ends the child for good; acquire returns err from now on.
func (l *link) close(why string, err error) {
	l.mu.Lock()
	c := l.conn
	if l.closed == nil {
		l.closed = err
	}
	l.conn = nil
	l.mu.Unlock()
	l.cancel()
	if c != nil {
		l.backend.discard(c, why)
	}
}

// live returns the link's child if one runs, and starts none.
func (l *link) live() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil || !l.conn.alive() {
		return nil
	}
	return l.conn
}

// idleSince returns when the link last had something to do, and whether it has
// a child and nothing to do now.
func (l *link) idleSince() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, l.conn != nil && l.attempt == nil && !l.conn.busy()
}

func (l *link) touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = time.Now()
}
