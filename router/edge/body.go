package edge

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"ripstop/router"
)

// readBody reads a request's body. The buffer is not pooled: a handler may have
// given the message to a server in this process that is not done with it when
// Serve returns, and then another client's message would appear in it.
func (e *Edge) readBody(x *exchange, r *http.Request) ([]byte, error) {
	if r.ContentLength > e.maxBody {
		return nil, e.tooLarge(x, r)
	}
	size := r.ContentLength + 1 // room to see the end
	if size <= 0 || size > bodyStep {
		size = bodyStep / 16 // an announced length costs nothing; memory follows what came
	}
	buf := make([]byte, 0, size)
	extended := 0
	for {
		if len(buf) == cap(buf) {
			buf = grow(buf, r.ContentLength, e.maxBody)
		}
		// No more than a step at once: a read of a chunked body waits until it is full.
		n, err := r.Body.Read(buf[len(buf):min(cap(buf), len(buf)+bodyStep)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > e.maxBody:
			return nil, e.tooLarge(x, r)
		case err == io.EOF && len(buf) == 0:
			x.unread = false
			return nil, refused(http.StatusBadRequest, "POST needs a JSON-RPC message as its body")
		case err == io.EOF:
			x.unread = false
			return buf, nil
		case err != nil:
			return nil, e.bodyError(x, r, err)
		}
		if len(buf)-extended >= bodyStep {
			extended = len(buf)
			_ = x.rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported = no deadline
		}
	}
}

// grow makes room for four times what came, but for no more than announced or
// allowed, and one byte to see the end.
func grow(buf []byte, announced, limit int64) []byte {
	size := int64(cap(buf)) * 4
	if announced > 0 {
		limit = announced
	}
	out := make([]byte, len(buf), max(min(size, limit+1), int64(cap(buf))+1))
	copy(out, buf)
	return out
}

func (e *Edge) bodyError(x *exchange, r *http.Request, err error) error {
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		return e.tooLarge(x, r)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.w.Header()["Connection"] = closeConn
		return refused(http.StatusRequestTimeout, "the body did not arrive: less than %d KiB in %v", bodyStep>>10, bodyTimeout)
	}
	x.w.Header()["Connection"] = closeConn
	return refused(http.StatusBadRequest, "read body: %.200s", err.Error())
}

var closeConn = []string{"close"}

// tooLarge refuses a body, and first reads and drops what is left of it, up to
// four times the limit: many clients read the answer only when they have sent
// all, and would see a broken connection instead of it.
func (e *Edge) tooLarge(x *exchange, r *http.Request) error {
	err := router.Errorf(router.ErrTooLarge, "the message is larger than %d bytes, the most this node takes", e.maxBody)
	left := 4 * e.maxBody
	if unsent := r.ContentLength > e.maxBody && len(r.Header["Expect"]) != 0; unsent || r.ContentLength > left {
		x.w.Header()["Connection"] = closeConn
		return err
	}
	for left > 0 {
		n, readErr := io.CopyN(io.Discard, r.Body, bodyStep)
		if readErr != nil {
			if readErr != io.EOF {
				x.w.Header()["Connection"] = closeConn
			}
			return err
		}
		left -= n
		_ = x.rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	}
	x.w.Header()["Connection"] = closeConn
	return err
}

// discardBody drops the body of a request that should have none: net/http sees
// that a client is gone only once its body is read.
func discardBody(r *http.Request) {
	if r.ContentLength != 0 {
		_, _ = io.CopyN(io.Discard, r.Body, bodyStep) // what can't be read ends the connection later
	}
}
