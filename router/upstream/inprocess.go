package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	layer "ripstop/router/session"
)

// Buffering between a handler and the reader of its response.
const (
	flushSize = 4 << 10   // written bytes that become visible without a flush, as in net/http
	pipeSize  = 256 << 10 // unread bytes after which the handler waits for the reader
)

// InProcessURL is the address for a server reached through [InProcess]. It means
// nothing to a client, so errors do not name it.
const InProcessURL = "http://in-process/mcp"

// InProcess returns a RoundTripper that calls h directly: the same HTTP, without
// a network. The response is returned as soon as h flushes, has written some
// KiB, or returns. The request's context ends with the caller's, and when the
// response's body is closed; of the caller's values it carries the session's
// data (session.DataFrom) only. A panic of h is an error of the exchange.
//
// The RoundTripper is an io.Closer: Close ends all requests and waits for h to
// return from them, though not for ever.
func InProcess(h http.Handler) http.RoundTripper {
	t := &inProcess{h: h}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

type inProcess struct {
	h      http.Handler
	ctx    context.Context // parent of every request's
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // running handlers; added to under mu while open
}

// RoundTrip implements http.RoundTripper.
func (t *inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	x := &pipe{readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), header: http.Header{}}
	var cancel context.CancelFunc
	x.ctx, cancel = context.WithCancel(t.ctx)
	unlink := context.AfterFunc(r.Context(), cancel)
	x.cancel = func() { unlink(); cancel() }

	in := r.WithContext(layer.CarryData(x.ctx, r.Context()))
	u := *r.URL
	in.URL, in.RequestURI, in.Header, in.GetBody, in.RemoteAddr = &u, r.URL.RequestURI(), maps.Clone(r.Header), nil, "in-process"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		x.cancel()
		return nil, net.ErrClosed
	}
	t.calls.Go(func() { x.run(t.h, in) })
	t.mu.Unlock()
	return x.response(r)
}

// Close implements io.Closer.
func (t *inProcess) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	returned := make(chan struct{})
	go func() {
		t.calls.Wait()
		close(returned)
	}()
	select {
	case <-returned:
		return nil
	case <-time.After(closeTimeout):
		return errors.New("handlers still run after their requests were cancelled")
	}
}

// pipe carries one response from its handler to its reader: an
// http.ResponseWriter at one end, a response body at the other.
type pipe struct {
	ctx      context.Context
	cancel   context.CancelFunc
	readable chan struct{} // signals the reader
	writable chan struct{} // signals the handler

	header http.Header // the handler's

	mu      sync.Mutex
	status  int         // 0 = not written yet
	sent    http.Header // as it was when the status was written
	buf     []byte
	taken   int   // bytes of buf that the reader has read
	visible int   // and up to which it may read
	began   bool  // the reader may see the status
	over    bool  // the handler returned
	err     error // why the body broke off
	gone    bool  // the reader closed
}

func (x *pipe) run(h http.Handler, r *http.Request) {
	defer func() {
		var err error
		if p := recover(); p == http.ErrAbortHandler {
			err = errors.New("the handler aborted its response")
		} else if p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
		}
		x.finish(err)
	}()
	h.ServeHTTP(x, r)
}

func (x *pipe) finish(err error) {
	x.mu.Lock()
	if err == nil {
		x.begin(http.StatusOK)
	}
	x.over, x.err = true, err
	x.publish()
	x.mu.Unlock()
}

// begin fixes status and headers if they are not yet. x.mu is held.
func (x *pipe) begin(status int) {
	if x.status == 0 {
		x.status, x.sent = status, x.header.Clone()
	}
}

// publish shows the reader everything written. x.mu is held.
func (x *pipe) publish() {
	x.visible = len(x.buf)
	x.began = x.status != 0
	signal(x.readable)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Header implements http.ResponseWriter.
func (x *pipe) Header() http.Header { return x.header }

// WriteHeader implements http.ResponseWriter. Interim statuses have no reader.
func (x *pipe) WriteHeader(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if status >= 200 {
		x.begin(status)
	}
}

// Write implements http.ResponseWriter.
func (x *pipe) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begin(http.StatusOK)
	for len(x.buf)-x.taken >= pipeSize && !x.gone {
		x.publish()
		x.mu.Unlock()
		select {
		case <-x.writable:
		case <-x.ctx.Done():
		}
		x.mu.Lock()
		if x.ctx.Err() != nil {
			break
		}
	}
	if x.gone || x.ctx.Err() != nil {
		return 0, io.ErrClosedPipe
	}
	if x.taken > len(x.buf)/2 { // rather than letting it grow for ever
		x.buf = append(x.buf[:0], x.buf[x.taken:]...)
		x.visible -= x.taken
		x.taken = 0
	}
	x.buf = append(x.buf, b...)
	if len(x.buf)-x.visible >= flushSize {
		x.publish()
	}
	return len(b), nil
}

// Flush implements http.Flusher.
func (x *pipe) Flush() { _ = x.FlushError() }

// FlushError is what http.ResponseController looks for.
func (x *pipe) FlushError() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begin(http.StatusOK)
	x.publish()
	if x.gone {
		return io.ErrClosedPipe
	}
	return nil
}

// SetReadDeadline and SetWriteDeadline can lift a server's timeouts, of which
// there are none here; there are no others to set.
func (x *pipe) SetReadDeadline(t time.Time) error  { return noDeadline(t) }
func (x *pipe) SetWriteDeadline(t time.Time) error { return noDeadline(t) }

func noDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return http.ErrNotSupported
}

// EnableFullDuplex has nothing to do: a request's body is there from the start.
func (x *pipe) EnableFullDuplex() error { return nil }

// response waits for the status.
func (x *pipe) response(r *http.Request) (*http.Response, error) {
	for {
		x.mu.Lock()
		began, over, err, size := x.began, x.over, x.err, int64(len(x.buf))
		x.mu.Unlock()
		switch {
		case x.ctx.Err() != nil: // what the handler made of that is not its answer
			_ = (*pipeBody)(x).Close() // can't fail
			return nil, x.cause(r)
		case began:
			if !over || err != nil {
				size = -1
			}
			return &http.Response{
				Status: strconv.Itoa(x.status) + " " + http.StatusText(x.status), StatusCode: x.status,
				Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: x.sent, Body: (*pipeBody)(x), ContentLength: size, Request: r,
			}, nil
		case over:
			x.cancel()
			return nil, err
		}
		select {
		case <-x.readable:
		case <-x.ctx.Done():
		}
	}
}

// cause says why the exchange ended early.
func (x *pipe) cause(r *http.Request) error {
	if err := r.Context().Err(); err != nil {
		return err
	}
	return net.ErrClosed
}

// pipeBody is the reader's end.
type pipeBody pipe

// Read implements io.Reader.
func (b *pipeBody) Read(p []byte) (int, error) {
	x := (*pipe)(b)
	for {
		x.mu.Lock()
		n := copy(p, x.buf[x.taken:x.visible])
		if x.taken += n; x.taken == len(x.buf) {
			x.buf, x.taken, x.visible = x.buf[:0], 0, 0
		}
		if n > 0 {
			signal(x.writable)
		}
		over, gone, err := x.over, x.gone, x.err
		x.mu.Unlock()
		switch {
		case n > 0 || len(p) == 0:
			return n, nil
		case gone:
			return 0, http.ErrBodyReadAfterClose
		case x.ctx.Err() != nil: // a handler that was cut short did not end its answer
			return 0, context.Cause(x.ctx)
		case over && err != nil:
			return 0, err
		case over:
			return 0, io.EOF
		}
		select {
		case <-x.readable:
		case <-x.ctx.Done():
		}
	}
}

// Close ends the request: the handler's context is cancelled and its writes
// fail.
func (b *pipeBody) Close() error {
	x := (*pipe)(b)
	x.mu.Lock()
	x.gone = true
	x.buf, x.taken, x.visible = nil, 0, 0
	x.mu.Unlock()
	x.cancel()
	return nil
}
