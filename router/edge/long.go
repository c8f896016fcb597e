package edge

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// A stream that lasts as long as its client (GET, subscriptions/listen) is most
// of what an idle session costs. net/http keeps 27 KB of buffers and stacks for
// it; so when such a stream opens, its connection is taken over from net/http,
// whose goroutine then ends. What is left is the handler's goroutine, one that
// waits for the client to go, and no buffer while nothing is sent. Where a
// connection can't be taken over (HTTP/2), net/http keeps it.

// long reports whether the exchange is such a stream, if it becomes one.
func (x *exchange) long() bool { return x.kind == listening || x.endless }

// runLong is run for a long exchange: it returns when the handler did, or when
// the connection is no longer net/http's.
func (x *exchange) runLong(r *http.Request) error {
	x.taken = make(chan struct{})
	ctx, err := x.begin()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { // ends with the handler; flights makes Shutdown wait for it
		defer close(done)
		defer x.end()
		reply, err := x.edge.call(ctx, &x.req, x)
		x.finish(x.settle(ctx, x.id(), reply, err))
		if x.own != nil {
			x.own.close()
		}
	}()
	select {
	case <-x.taken:
		return nil
	case <-r.Context().Done():
		x.cancel(errClientGone)
	case <-done:
		return nil
	}
	select { // the handler may yet be slower than the client
	case <-x.taken:
	case <-done:
	}
	return nil
}

// takeOver moves the stream that is about to open to a connection of its own.
func (x *exchange) takeOver() {
	conn, _, err := x.rc.Hijack() // what a client sends after its request is dropped
	if err != nil {
		return // not supported
	}
	x.own = &ownConn{conn: conn, header: x.w.Header().Clone(), watching: make(chan struct{})}
	go x.own.watch(x.cancel) // ends when the connection does; close waits for it
	x.w, x.rc = x.own, http.NewResponseController(x.own)
	close(x.taken)
}

// ownConn is the [http.ResponseWriter] of a connection taken over. The end of
// the answer is the end of the connection.
type ownConn struct {
	conn     net.Conn
	header   http.Header
	buf      *bytes.Buffer // from buffers; nil while there is nothing to send
	watching chan struct{}
}

var _ http.ResponseWriter = (*ownConn)(nil)

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxBuffer is what is collected before it is written even without a flush, and
// the largest buffer kept for the next stream.
const maxBuffer = 64 << 10 // bytes

func (c *ownConn) Header() http.Header { return c.header }

// WriteHeader writes the head of a stream; there is no other answer here.
func (c *ownConn) WriteHeader(int) {
	b := c.buffer()
	b.WriteString("HTTP/1.1 200 OK\r\nConnection: close\r\nDate: ")
	b.WriteString(time.Now().UTC().Format(http.TimeFormat))
	b.WriteString("\r\n")
	_ = c.header.Write(b) // into memory
	b.WriteString("\r\n")
	c.header = nil
}

func (c *ownConn) buffer() *bytes.Buffer {
	if c.buf == nil {
		c.buf = buffers.Get().(*bytes.Buffer)
	}
	return c.buf
}

func (c *ownConn) Write(p []byte) (int, error) {
	n, _ := c.buffer().Write(p) // into memory
	if c.buf.Len() < maxBuffer {
		return n, nil
	}
	return n, c.FlushError()
}

// FlushError writes what was collected. net/http's ResponseController calls it.
func (c *ownConn) FlushError() error {
	if c.buf == nil {
		return nil
	}
	_, err := c.conn.Write(c.buf.Bytes())
	if c.buf.Cap() <= maxBuffer {
		c.buf.Reset()
		buffers.Put(c.buf)
	}
	c.buf = nil
	return err
}

// SetWriteDeadline is called by net/http's ResponseController.
func (c *ownConn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// watch waits until the client closes the connection, or sends what it
// shouldn't.
func (c *ownConn) watch(cancel context.CancelCauseFunc) {
	defer close(c.watching)
	var b [1]byte
	_, _ = c.conn.Read(b[:]) // whatever it is, the stream is over
	cancel(errClientGone)
}

func (c *ownConn) close() {
	_ = c.FlushError() // a client that is gone misses nothing
	_ = c.conn.Close()
	<-c.watching
}
