package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// plain is HTTP/1.1 over TCP to one host, by the calling goroutine. net/http's
// transport hands every request to one goroutine and every response back from
// another; on the way of a small call those handoffs are most of the cost. What
// is left out for it is what MCP does not need: TLS, proxies, trailers,
// upgrades, Expect, pipelining.
//
// It never sends a request twice, but for one case: a connection from the pool
// that takes not a single byte.
type plain struct {
	addr   string // host:port
	dialer net.Dialer

	mu      sync.Mutex
	closed  bool
	open    map[*plainConn]struct{} // all connections, for Close
	idle    []*plainConn            // unused, the last one used last
	resting []*plainConn            // unused, but the last response has not ended; oldest first
	reaper  *time.Timer             // runs while there are unused connections
}

func newPlain(u *url.URL) *plain {
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return &plain{
		addr:   net.JoinHostPort(u.Hostname(), port),
		dialer: net.Dialer{Timeout: dialTimeout},
		open:   map[*plainConn]struct{}{},
	}
}

// RoundTrip implements http.RoundTripper. A body must be a payload's.
func (t *plain) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		c, reused, err := t.get(r.Context())
		if err != nil {
			return nil, err
		}
		resp, unsent, err := c.exchange(r)
		if !(unsent && reused && r.Context().Err() == nil) {
			return resp, err
		}
	}
}

// get returns a connection: one whose last response has ended meanwhile, an
// idle one, or a new one.
func (t *plain) get(ctx context.Context) (c *plainConn, reused bool, err error) {
	var resting []*plainConn
	defer func() { t.restore(resting) }()
	for tries := 0; ; {
		t.mu.Lock()
		switch {
		case t.closed:
			t.mu.Unlock()
			return nil, false, net.ErrClosed
		case len(t.resting) > 0 && tries < 4:
			tries++
			c = t.resting[0]
			t.resting = append(t.resting[:0], t.resting[1:]...)
		case len(t.idle) > 0:
			c = t.idle[len(t.idle)-1]
			t.idle = t.idle[:len(t.idle)-1]
		default:
			t.mu.Unlock()
			c, err = t.dial(ctx)
			return c, false, err
		}
		t.mu.Unlock()
		ok, dead := c.ready()
		switch {
		case ok:
			return c, true, nil
		case dead:
			c.kill()
		default:
			resting = append(resting, c)
		}
	}
}

// restore puts connections back that have still not finished.
func (t *plain) restore(resting []*plainConn) {
	if len(resting) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.resting = append(resting, t.resting...)
	}
}

func (t *plain) dial(ctx context.Context) (*plainConn, error) {
	nc, err := t.dialer.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	c := &plainConn{Conn: nc, t: t}
	c.br = bufio.NewReaderSize(c, 1<<10) // small, since a listening session keeps it; large reads go around it
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, nc.Close())
	}
	if err := c.peek.init(sc); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.Join(net.ErrClosed, nc.Close())
	}
	t.open[c] = struct{}{}
	return c, nil
}

// put takes back a connection; rest is what remains of its last response.
func (t *plain) put(c *plainConn, rest io.Reader) {
	c.rest, c.used = rest, time.Now()
	if cap(c.head) > 4<<10 {
		c.head = nil
	}
	t.mu.Lock()
	if t.closed || len(t.idle)+len(t.resting) >= maxIdle {
		t.mu.Unlock()
		c.kill()
		return
	}
	defer t.mu.Unlock()
	if rest == nil {
		t.idle = append(t.idle, c)
	} else {
		t.resting = append(t.resting, c)
	}
	if t.reaper == nil {
		t.reaper = time.AfterFunc(restTimeout, t.reap)
	}
}

// reap closes what was not used for long.
func (t *plain) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.idle = t.reapOlder(t.idle, now.Add(-idleTimeout))
	t.resting = t.reapOlder(t.resting, now.Add(-restTimeout))
	t.reaper = nil
	if !t.closed && len(t.idle)+len(t.resting) > 0 {
		t.reaper = time.AfterFunc(restTimeout, t.reap)
	}
}

func (t *plain) reapOlder(conns []*plainConn, limit time.Time) []*plainConn {
	kept := conns[:0]
	for _, c := range conns {
		if c.used.After(limit) {
			kept = append(kept, c)
			continue
		}
		delete(t.open, c)
		_ = c.Conn.Close() // unused: nobody is there to hear about it
	}
	clear(conns[len(kept):])
	return kept
}

// Close closes all connections, those in use too.
func (t *plain) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.reaper != nil {
		t.reaper.Stop()
	}
	for c := range t.open {
		_ = c.Conn.Close() // aborts whoever uses it, which is the point
	}
	clear(t.open)
	t.idle, t.resting = nil, nil
	return nil
}
