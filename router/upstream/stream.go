package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Resuming a broken stream.
const (
	resumeAttempts = 5                      // without an event in between
	resumeDelay    = 100 * time.Millisecond // before the first attempt, doubled for each further one, unless the server said "retry"
)

// stream reads the event stream that answers a POST.
func (b *Backend) stream(ctx context.Context, c *call, resp *http.Response) (*router.Reply, error) {
	buf := sseBuffers.Get().(*[]byte)
	defer sseBuffers.Put(buf)
	s := newSSE(resp.Body, *buf)
	for {
		err := b.events(ctx, c, s)
		if err == nil {
			settle(resp.Body)
			return &router.Reply{Body: c.answer.Raw, Status: http.StatusOK, Stream: true}, nil
		}
		resp.Body.Close()
		var ended *endedError
		if !errors.As(err, &ended) || ctx.Err() != nil {
			return nil, begun(b.failed(ctx, c, nil, err))
		}
		if resp = b.resume(ctx, c, s); resp == nil {
			return nil, begun(b.failed(ctx, c, nil, err))
		}
		s.restart(resp.Body)
	}
}

// begun marks an error that comes after the server began its event stream.
func begun(err error) error {
	var known *router.Error
	if !errors.As(err, &known) {
		return err
	}
	e := *known
	e.Stream = true
	return &e
}

// listen serves OpListen: the stream of the session itself.
//
// The client's Last-Event-ID is not passed on. The ids it knows are the edge's;
// to the upstream they would mean nothing, or another event.
func (b *Backend) listen(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	c := call{method: http.MethodGet, req: req, out: out}
	if req.Session != "" {
		sess, err := b.acquire(req.Session)
		if err != nil {
			return nil, err
		}
		defer b.release(sess)
		c.session = sess.upstream
	}
	resp, _, err := b.exchange(ctx, &c)
	if err != nil {
		return nil, b.failed(ctx, &c, nil, err)
	}
	if reply, err := b.listenRefused(ctx, &c, resp); reply != nil || err != nil {
		return reply, err
	}
	if err := out.Send(ctx, nil); err != nil { // it is open
		resp.Body.Close()
		return nil, fmt.Errorf("pass a stream on: %w", err)
	}
	s := newSSE(resp.Body, make([]byte, 512)) // small: it is held while nothing happens
	for {
		err := b.events(ctx, &c, s)
		resp.Body.Close()
		var ended *endedError
		if !errors.As(err, &ended) || ctx.Err() != nil {
			return nil, b.failed(ctx, &c, nil, err)
		}
		if resp = b.resume(ctx, &c, s); resp == nil {
			b.log.Debug("session stream over", "upstream", b.where(), "err", err)
			return &router.Reply{Status: http.StatusOK}, nil
		}
		s.restart(resp.Body)
	}
}

// listenRefused handles all answers to a GET but an event stream.
func (b *Backend) listenRefused(ctx context.Context, c *call, resp *http.Response) (*router.Reply, error) {
	switch {
	case resp.StatusCode == http.StatusMethodNotAllowed:
		discard(resp)
		return nil, &router.Error{Code: jsonrpc.CodeInvalidRequest, Status: http.StatusMethodNotAllowed,
			Text: fmt.Sprintf("%s offers no event stream by GET; messages come with the answers to POST only", b.where())}
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		reply, err := b.refused(ctx, c, resp)
		if errors.Is(err, errSessionGone) {
			b.drop(c.req.Session)
			err = b.errSession(c.req.Session)
		}
		return reply, err
	case mediaType(resp) != typeSSE:
		resp.Body.Close()
		return nil, router.Errorf(router.ErrBackend, "%s answered GET with content type %q instead of an event stream", b.where(), clip(mediaType(resp), 80))
	}
	return nil, nil
}

// endedError says that an event stream ended, or broke, without the response.
type endedError struct{ cause error }

func (e *endedError) Error() string {
	if errors.Is(e.cause, io.EOF) {
		return "the event stream ended"
	}
	return "the event stream broke: " + plainText(e.cause)
}

// events passes messages on until the response to c.id, which it leaves in
// c.answer.
func (b *Backend) events(ctx context.Context, c *call, s *sseReader) error {
	for {
		data, name, err := s.next()
		switch {
		case errors.Is(err, errBodySize):
			return err
		case err != nil:
			return &endedError{err}
		case name != "" && name != eventMessage:
			continue
		}
		m, err := jsonrpc.Parse(data)
		if err != nil {
			return b.errJunk(c, err.Error())
		}
		if m.Kind != jsonrpc.Response {
			if err := c.out.Send(ctx, m.Raw); err != nil {
				b.cancelUpstream(c)
				return fmt.Errorf("pass a message to the client: %w", err)
			}
			continue
		}
		if c.id != nil && answers(m, c.id) {
			s.keep()
			c.answer = m
			return nil
		}
		b.log.Debug("response to nothing dropped", "upstream", b.where(), "id", clip(string(m.ID), 80))
	}
}

// resume continues an event stream after its last event (MCP 2025-11-25,
// transports, "Resumability and redelivery"). It returns nil if that can't be
// done.
func (b *Backend) resume(ctx context.Context, c *call, s *sseReader) *http.Response {
	if s.lastID == "" || c.req.Era == router.EraModern {
		return nil
	}
	if s.lastID != c.lastEvent {
		c.lastEvent, c.resumed = s.lastID, 0
	}
	delay := resumeDelay << c.resumed
	for ; c.resumed < resumeAttempts; delay *= 2 {
		c.resumed++
		if s.retry > 0 {
			delay = s.retry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.ctx.Done():
			return nil
		case <-time.After(delay):
		}
		again := call{method: http.MethodGet, req: c.req, session: c.session, lastEvent: c.lastEvent}
		resp, _, err := b.exchange(ctx, &again)
		if err != nil {
			continue
		}
		if resp.StatusCode == http.StatusOK && mediaType(resp) == typeSSE {
			return resp
		}
		discard(resp)
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return nil
		}
	}
	return nil
}
