package upstream

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

var errCut = errors.New("the call is over")

// payload is the body of one POST. It knows whether any of the request may have
// reached the server, and can be cut off from whoever still reads it: net/http
// may go on reading a body after RoundTrip returned, when its bytes may already
// belong to another message.
type payload struct {
	data  []byte
	sent  atomic.Bool
	first payloadReader

	mu   sync.Mutex
	over bool
}

func newPayload(data []byte) *payload {
	p := &payload{data: data}
	p.first.p = p
	return p
}

// again is http.Request.GetBody. net/http asks for it only when nothing of the
// request was written to the connection it had picked.
func (p *payload) again() (io.ReadCloser, error) {
	p.sent.Store(false)
	return &payloadReader{p: p}, nil
}

// cut makes all further reads fail, and waits for one that is going on.
func (p *payload) cut() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
}

type payloadReader struct {
	p   *payload
	off int
}

// Read marks the request as sent: its head may have gone out before, but
// without a body a server can execute nothing.
func (r *payloadReader) Read(b []byte) (int, error) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return 0, errCut
	}
	p.sent.Store(true)
	if r.off == len(p.data) {
		return 0, io.EOF
	}
	n := copy(b, p.data[r.off:])
	r.off += n
	return n, nil
}

func (r *payloadReader) Close() error { return nil }
