package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// plainConn is one connection. It belongs to one exchange at a time.
type plainConn struct {
	net.Conn
	t    *plain
	peek peeker
	br   *bufio.Reader
	head []byte    // buffer for request heads and small requests
	left int       // bytes that may still be read before the response's head ends
	rest io.Reader // what remains of the last response; nil = it ended
	used time.Time // when it became unused
}

// errHeader says that a response's head is too large.
var errHeader = errors.New("the response's headers are too large")

// Read bounds the response's head; its body is bounded by whoever reads it.
func (c *plainConn) Read(b []byte) (int, error) {
	if c.left < 0 {
		return 0, errHeader
	}
	n, err := c.Conn.Read(b)
	c.left -= n
	return n, err
}

// Close may be called more than once, and by any goroutine.
func (c *plainConn) Close() error {
	c.t.mu.Lock()
	delete(c.t.open, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}

func (c *plainConn) kill() { _ = c.Close() } // what becomes of a connection given up is of no interest

// exchange sends r and reads the response's head. unsent says that the
// connection took nothing.
func (c *plainConn) exchange(r *http.Request) (resp *http.Response, unsent bool, err error) {
	stop := context.AfterFunc(r.Context(), c.kill)
	defer func() {
		if err != nil {
			stop()
			c.kill()
		}
	}()
	n, err := c.send(r)
	if err != nil {
		if n > 0 { // the server may have said why it stopped reading
			if resp, early := c.early(r, stop); early == nil {
				return resp, false, nil
			}
		}
		return nil, n == 0, err
	}
	resp, err = c.receive(r)
	if err != nil {
		return nil, false, err
	}
	c.attach(resp, stop)
	return resp, false, nil
}

// early reads the response of a server that refused the request before reading
// all of it. There is not more to wait for than what is there.
func (c *plainConn) early(r *http.Request, stop func() bool) (*http.Response, error) {
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return nil, err
	}
	resp, err := c.receive(r)
	if err != nil {
		return nil, err
	}
	resp.Close = true
	c.attach(resp, stop)
	return resp, nil
}

// send writes the request, and returns how many bytes the kernel took.
func (c *plainConn) send(r *http.Request) (int64, error) {
	var body []byte
	var p *payload
	if r.Body != nil {
		reader, ok := r.Body.(*payloadReader)
		if !ok {
			return 0, fmt.Errorf("body of type %T", r.Body)
		}
		p = reader.p
		body = p.data
	}
	c.head = appendHead(c.head[:0], r)
	var n int64
	var err error
	if p != nil {
		p.sent.Store(true)
	}
	if len(body) <= 8<<10 {
		c.head = append(c.head, body...)
		var m int
		m, err = c.Conn.Write(c.head)
		n = int64(m)
	} else {
		both := net.Buffers{c.head, body}
		n, err = both.WriteTo(c.Conn)
	}
	if n == 0 && err != nil && p != nil {
		p.sent.Store(false)
	}
	return n, err
}

func appendHead(b []byte, r *http.Request) []byte {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	b = append(append(append(b, r.Method...), ' '), r.URL.RequestURI()...)
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), host...), "\r\n"...)
	for k, vs := range r.Header {
		for _, v := range vs {
			b = append(append(append(append(b, k...), ": "...), v...), "\r\n"...)
		}
	}
	if r.Body != nil {
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), r.ContentLength, 10), "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// receive reads a response's head, skipping interim ones.
func (c *plainConn) receive(r *http.Request) (*http.Response, error) {
	c.left = maxHeader
	for {
		resp, err := http.ReadResponse(c.br, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			c.left = 1<<63 - 1
			resp.Request = nil // a stream would keep it for long
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("the server switches protocols")
		}
	}
}

// attach makes the connection reusable once the response's body is read.
func (c *plainConn) attach(resp *http.Response, stop func() bool) {
	b := &plainBody{ReadCloser: resp.Body, c: c, stop: stop, keep: !resp.Close}
	if resp.Body == http.NoBody || resp.ContentLength == 0 {
		b.ended()
	}
	resp.Body = b
}

// plainBody is a response's body. Its methods are for one goroutine.
type plainBody struct {
	io.ReadCloser
	c    *plainConn
	stop func() bool // ends the context's hold on the connection
	keep bool        // the server keeps the connection open
	over bool
}

func (b *plainBody) Read(p []byte) (int, error) {
	if b.over {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended()
	}
	return n, err
}

// ended gives the connection back after the whole body.
func (b *plainBody) ended() {
	b.over = true
	if b.stop() && b.keep {
		b.c.t.put(b.c, nil)
		return
	}
	b.c.kill()
}

// Close drops the connection if the body was not read to its end: to a modern
// server that is how a call is cancelled.
func (b *plainBody) Close() error {
	if !b.over {
		b.over = true
		b.stop()
		b.c.kill()
	}
	return nil
}

// settle leaves the rest of the body to whoever takes the connection next.
func (b *plainBody) settle() {
	if b.over {
		return
	}
	if b.keep && b.stop() {
		b.over = true
		b.c.t.put(b.c, b.ReadCloser)
		return
	}
	b.Close()
}

// lastChunk ends a chunked body. The line break that closes the chunk before
// may have been read with it, or not.
var lastChunk = []byte("\r\n0\r\n\r\n")

// ready reports whether an unused connection can take a request, and whether it
// is over.
func (c *plainConn) ready() (ok, dead bool) {
	seen, alive := c.peek.peek()
	if c.rest == nil { // nothing more is due: what came is an error page, or the end
		dead = !alive || len(seen) > 0 || c.br.Buffered() > 0
		return !dead, dead
	}
	var tail []byte
	if n := c.br.Buffered(); n <= len(lastChunk) {
		tail, _ = c.br.Peek(n) // can't fail: so much is there
		tail = append(make([]byte, 0, 2*len(lastChunk)), tail...)
	}
	tail = append(tail, seen...)
	if !bytes.Equal(tail, lastChunk) && !bytes.Equal(tail, lastChunk[2:]) {
		return false, !alive || len(tail) > len(lastChunk)
	}
	if _, err := io.Copy(io.Discard, c.rest); err != nil { // does not wait: all of it is there
		return false, true
	}
	c.rest = nil
	return true, false
}
