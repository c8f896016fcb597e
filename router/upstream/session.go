package upstream

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// session is one fabric session's upstream session. There may be 100,000 of
// them, so it holds nothing that a request brings along anyway.
type session struct {
	upstream string    // the server's own Mcp-Session-Id
	used     time.Time // end of the last call or stream
	calls    int       // calls and streams in flight
}

// errSessionGone is what one exchange returns when the upstream says 404 to a
// session id; the caller knows which session of ours that was.
var errSessionGone = errors.New("the upstream does not know the session")

func (b *Backend) errSession(id string) error {
	return router.Errorf(router.ErrSessionNotFound, "session %q ended, or never was, at %s; send initialize to open another", clip(id, 80), b.where())
}

// acquire returns the session and keeps it from being idle until release.
func (b *Backend) acquire(id string) (*session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	if s == nil {
		return nil, b.errSession(id)
	}
	s.calls++
	return s, nil
}

func (b *Backend) release(s *session) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	s.calls--
	s.used = now
}

// drop forgets a session and reports whether it was known.
func (b *Backend) drop(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.sessions[id]
	delete(b.sessions, id)
	return ok
}

// reserve takes a place for a session that is being opened. The caller gives it
// back with add.
func (b *Backend) reserve() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.sessions)+b.opening >= b.max {
		return router.Errorf(router.ErrOverloaded, "%s holds %d sessions, the limit; end one or wait for idle ones to expire", b.where(), b.max)
	}
	b.opening++
	return nil
}

// add turns a reserved place into a session, or gives it back if upstream is
// "". It returns the fabric's id of the session; "" if there is none, because
// the backend was closed meanwhile or the server is stateless.
func (b *Backend) add(upstream string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opening--
	if upstream == "" || b.closed {
		return ""
	}
	id := router.NewSessionID(b.instance)
	b.sessions[id] = &session{upstream: upstream, used: time.Now()}
	if len(b.sessions) == 1 {
		b.scheduleSweep()
	}
	return id
}

// scheduleSweep arms the timer that ends idle sessions. b.mu is held.
func (b *Backend) scheduleSweep() {
	every := min(max(b.idle/8, time.Second), time.Minute)
	if b.sweeper == nil {
		b.sweeper = time.AfterFunc(every, b.sweep)
		return
	}
	b.sweeper.Reset(every)
}

// sweep ends the sessions that nobody uses any more.
func (b *Backend) sweep() {
	stale := map[string]*session{}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	limit := time.Now().Add(-b.idle)
	for id, s := range b.sessions {
		if s.calls == 0 && !s.used.After(limit) {
			stale[id] = s
			delete(b.sessions, id)
		}
	}
	if len(b.sessions) > 0 {
		b.scheduleSweep()
	}
	b.mu.Unlock()
	if len(stale) == 0 {
		return
	}
	b.log.Debug("ending idle sessions", "upstream", b.where(), "sessions", len(stale))
	b.background(time.Duration(1+len(stale)/deleteWorkers)*deleteTimeout, func(ctx context.Context) { b.deleteAll(ctx, stale) })
}

// deleteAll sends DELETE for every session, a few at a time, until ctx ends.
func (b *Backend) deleteAll(ctx context.Context, sessions map[string]*session) {
	if len(sessions) == 0 {
		return
	}
	ids := make(chan string)
	var wg sync.WaitGroup
	for range min(deleteWorkers, len(sessions)) {
		wg.Go(func() {
			for id := range ids {
				b.deleteUpstream(ctx, id)
			}
		})
	}
feed:
	for _, s := range sessions {
		select {
		case ids <- s.upstream:
		case <-ctx.Done():
			break feed
		}
	}
	close(ids)
	wg.Wait()
}

// deleteUpstream ends one upstream session as well as it can be done.
func (b *Backend) deleteUpstream(ctx context.Context, upstream string) {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	resp, _, err := b.exchange(ctx, &call{method: http.MethodDelete, session: upstream, req: &router.Request{}})
	if err != nil {
		b.log.Debug("upstream session not ended", "upstream", b.where(), "err", err)
		return
	}
	discard(resp)
}

// end serves OpEnd.
func (b *Backend) end(ctx context.Context, req *router.Request) (*router.Reply, error) {
	s, err := b.acquire(req.Session)
	if err != nil {
		return nil, err
	}
	defer b.release(s)
	c := call{method: http.MethodDelete, session: s.upstream, req: req}
	resp, _, err := b.exchange(ctx, &c)
	if err != nil {
		return nil, b.failed(ctx, &c, nil, err)
	}
	discard(resp)
	if resp.StatusCode < 500 { // a 405 too: the server has no use for DELETE, and nor have we for the session
		b.drop(req.Session)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, b.errSession(req.Session)
	}
	return &router.Reply{Status: resp.StatusCode}, nil
}

// initialize opens a session.
func (b *Backend) initialize(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Session != "" {
		return b.pass(ctx, req, out) // the server's to refuse
	}
	if err := b.reserve(); err != nil {
		return nil, err
	}
	c := call{req: req, body: req.Message.Raw, id: req.Message.ID, out: out}
	reply, err := b.post(ctx, &c)
	upstream := c.assigned
	if err == nil && len(upstream) > maxSessionID {
		err = router.Errorf(router.ErrBackend, "%s gives out a session id of %d bytes; the fabric keeps up to %d", b.where(), len(upstream), maxSessionID)
	}
	if err != nil || c.answer == nil || c.answer.Error != nil {
		upstream = ""
	}
	id := b.add(upstream)
	if id == "" && c.assigned != "" { // opened at the server, of no use to anyone
		b.background(deleteTimeout, func(ctx context.Context) { b.deleteUpstream(ctx, c.assigned) })
	}
	if err != nil {
		return nil, err
	}
	reply.Session = id
	return reply, nil
}

// cancelUpstream tells a legacy server that nobody waits for a call any more.
// Closing its connection does not mean that in the legacy era.
func (b *Backend) cancelUpstream(c *call) {
	if c.id == nil || c.req.Era == router.EraModern || c.session == "" || c.req.Method() == "initialize" {
		return
	}
	params := append(append([]byte(`{"requestId":`), c.id...), `,"reason":"the client went away"}`...)
	notice := call{
		req:     &router.Request{Version: c.req.Version, Message: &jsonrpc.Message{Kind: jsonrpc.Notification, Method: "notifications/cancelled"}},
		session: c.session, out: router.Discard,
		body: jsonrpc.NewRequest(nil, "notifications/cancelled", params),
	}
	b.background(cancelTimeout, func(ctx context.Context) {
		if _, err := b.post(ctx, &notice); err != nil {
			b.log.Debug("cancellation not delivered", "upstream", b.where(), "err", err)
		}
	})
}

// clip shortens text that came from elsewhere for an error message.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
