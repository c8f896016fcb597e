package bridge

import (
	"context"
	"math/rand/v2"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// answer returns the response to a request.
func (c *Conn) answer(ctx context.Context, m *jsonrpc.Message) []byte {
	reply, err := c.forward(ctx, m)
	if err == nil && (reply == nil || reply.Body == nil) {
		err = router.Errorf(router.ErrBackend, "server %q sent no response to %s", c.server, m.Method)
	}
	if err != nil {
		return router.ErrorReply(m.ID, err).Body
	}
	if old := c.legacy.learn(m, reply); old.id != "" {
		c.wg.Go(func() { c.endSession(old) })
	}
	return reply.Body
}

// forward sends m to the server. If its session was lost it opens another and
// sends m once more, which is safe: a session that is not found executed
// nothing.
func (c *Conn) forward(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	req, gen := c.legacy.request(c.server, m)
	reply, err := c.serve(ctx, req)
	lost := failure(reply, err)
	if lost == nil || lost.Code != router.CodeSessionNotFound || req.Era != router.EraLegacy || m.Method == "initialize" {
		return reply, err
	}
	restored, restoreErr := c.restore(gen)
	switch {
	case restoreErr != nil:
		return nil, restoreErr
	case !restored:
		return reply, err
	case m.Kind == jsonrpc.Response, m.Method == "notifications/initialized":
		return nil, nil // the question died with its session; initialized was sent by restore
	}
	req, _ = c.legacy.request(c.server, m)
	reply, err = c.serve(ctx, req)
	if err != nil || reply == nil || m.Kind != jsonrpc.Request {
		return reply, err
	}
	return markReinitialized(reply), nil
}

// serve passes req to the handler, again and again while nobody could be
// reached, for as long as retryFor.
func (c *Conn) serve(ctx context.Context, req *router.Request) (*router.Reply, error) {
	var since time.Time
	for back := (backoff{}); ; {
		reply, err := c.handler.Serve(ctx, req, stream{c})
		why := failure(reply, err)
		if why == nil {
			if err == nil && !c.seen.Load() {
				c.seen.Store(true)
			}
			return reply, err
		}
		// A server that was there a moment ago is most likely restarting, and in
		// a fabric that is just coming up it is not attached yet.
		expected := c.seen.Load() || !since.IsZero()
		again := why.Code == router.CodeUnavailable || why.Code == router.CodeServerNotFound && expected
		if since.IsZero() {
			since = time.Now()
			if again && c.retryFor > 0 {
				c.log.Warn("server can't be reached, trying again", "server", c.server, "for", c.retryFor, "reason", why.Text)
			}
		}
		if !again || time.Since(since) >= c.retryFor || !back.sleep(ctx) {
			return reply, err
		}
	}
}

// stream carries what comes before a reply to the client.
type stream struct{ c *Conn }

func (s stream) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil // says only that the stream is open
	}
	if err := s.c.send(ctx, msg); err != nil {
		if ctx.Err() == nil {
			s.c.cancel(&brokenError{err})
		}
		return err
	}
	return nil
}

// backoff waits between attempts, from 50 ms doubling to 2 s, with jitter.
type backoff struct{ last time.Duration }

// sleep waits and reports whether ctx is still alive.
func (b *backoff) sleep(ctx context.Context) bool {
	b.last = min(max(2*b.last, 50*time.Millisecond), 2*time.Second)
	t := time.NewTimer(b.last/2 + rand.N(b.last/2))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
