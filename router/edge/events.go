package edge

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"ripstop/router"
)

// A legacy call gets a stream id, so that the session layer numbers its messages
// and keeps them: its client may ask for them by GET with Last-Event-ID, at any
// edge, when this one or the connection is gone. The ids go out as they come from
// the handler. A client of 2025-11-25 begins with an event that has an id and no
// data, by which it can come back though nothing was sent yet (MCP 2025-11-25,
// transports, "Sending Messages to the Server").

// maxStreamID is what a stream id may have on the wire (docs/wire.md).
const maxStreamID = 64

// newStreamID makes a stream's id. It ends in the request's own, if there is
// room: whoever is asked for the stream and has nothing of the call can then still
// answer it.
func newStreamID(request []byte) string {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	var b [maxStreamID]byte
	n := 0
	for r := rand.Uint64(); n < 12; r >>= 5 {
		b[n] = letters[r&31]
		n++
	}
	if size := base64.RawURLEncoding.EncodedLen(len(request)); n+1+size <= maxStreamID {
		b[n] = '-'
		base64.RawURLEncoding.Encode(b[n+1:], request)
		n += 1 + size
	}
	return string(b[:n])
}

// firstID is the id that stands before the first message of a call's stream.
func firstID(stream string) string { return stream + ".0" }

// resumable reports whether the exchange is a call whose stream has event ids.
// Without a session there is no GET to come back by.
func (x *exchange) resumable() bool { return x.req.StreamID != "" && x.req.Session != "" }

// knowsPrimes reports whether the client takes events without data.
func (x *exchange) knowsPrimes() bool {
	return x.era == eraLegacy && x.req.Version >= router.Version20251125
}

// Headers of every stream. X-Accel-Buffering keeps nginx and its like from
// holding events back (MCP 2026-07-28, "Receiving Messages").
var (
	typeSSE     = []string{"text/event-stream"}
	cacheSSE    = []string{"no-cache, no-transform"}
	noBuffering = []string{"no"}
)

// A client that knows SEP-1699 and whose node died is to look for another after
// 1 s. Where a stream has no ids, this stands inside its first event, since some
// clients take a retry of its own for an empty message.
const retryLine = "retry: 1000\n"

func (x *exchange) openStream(session string) {
	if x.long() {
		x.takeOver()
	}
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"], h["X-Accel-Buffering"] = typeSSE, cacheSSE, noBuffering
	if session != "" {
		h[hdrSession] = []string{session}
	}
	x.w.WriteHeader(http.StatusOK)
	x.streaming = true
	x.greets = x.knowsPrimes()
	x.edge.metrics.streams.Inc()
}

func (x *exchange) comment(text string) error {
	if !x.streaming {
		x.openStream("")
	}
	x.last = time.Now()
	_ = x.rc.SetWriteDeadline(x.last.Add(writeTimeout)) // not supported = no deadline
	if _, err := io.WriteString(x.w, text); err != nil {
		return err
	}
	return x.flush()
}

// prime tells the client where to resume, and flushes.
func (x *exchange) prime(id string) error {
	if !x.streaming {
		x.openStream("")
	}
	x.last = time.Now()
	_ = x.rc.SetWriteDeadline(x.last.Add(writeTimeout)) // not supported = no deadline
	if err := x.writePrime(id); err != nil {
		return err
	}
	return x.flush()
}

func (x *exchange) writePrime(id string) error {
	retry := ""
	if x.greets {
		retry = retryLine
	}
	x.greets, x.primed = false, true
	_, err := io.WriteString(x.w, "id: "+id+"\n"+retry+"data: \n\n")
	return err
}

// event writes one message, with its id if it has one, and flushes it.
func (x *exchange) event(id string, msg []byte) error {
	if err := x.writeEvent(id, msg); err != nil {
		return err
	}
	return x.flush()
}

// writeEvent writes one message as one event. Line breaks end a line of an
// event stream; in JSON they are white space, since a string can't hold them,
// so they are left out.
func (x *exchange) writeEvent(id string, msg []byte) error {
	if !x.streaming {
		x.openStream("")
	}
	x.last = time.Now()
	if x.greets && id != "" && x.resumable() {
		if err := x.writePrime(firstID(x.req.StreamID)); err != nil {
			return err
		}
	}
	if err := x.writeHead(id); err != nil {
		return err
	}
	for {
		line, rest := cutLine(msg)
		if err := x.write(line); err != nil {
			return err
		}
		if rest == nil {
			break
		}
		msg = rest
	}
	_, err := io.WriteString(x.w, "\n\n")
	return err
}

func (x *exchange) writeHead(id string) error {
	head := "event: message\n"
	if id == "" && !x.greets {
		_, err := io.WriteString(x.w, "event: message\ndata: ")
		return err
	}
	if id != "" {
		head += "id: " + id + "\n"
	}
	if x.greets {
		x.greets = false
		head += retryLine
	}
	_, err := io.WriteString(x.w, head+"data: ")
	return err
}

// cutLine cuts msg at its first line break; rest is nil if there is none.
func cutLine(msg []byte) (line, rest []byte) {
	i := bytes.IndexByte(msg, '\n')
	if j := bytes.IndexByte(msg[:max(i, 0)], '\r'); j >= 0 {
		i = j
	}
	if i < 0 {
		if i = bytes.IndexByte(msg, '\r'); i < 0 {
			return msg, nil
		}
	}
	return msg[:i], msg[i+1:]
}

// write writes p in steps that each have their own deadline, so that a client
// that is slow is served and one that is stuck is not.
func (x *exchange) write(p []byte) error {
	for {
		step := p[:min(len(p), writeStep)]
		_ = x.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not supported = no deadline
		if _, err := x.w.Write(step); err != nil {
			return err
		}
		if p = p[len(step):]; len(p) == 0 {
			return nil
		}
	}
}

func (x *exchange) flush() error {
	if err := x.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// canResume reports whether the client of a call that is cut off knows how to
// come back for the rest.
func (x *exchange) canResume() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.streaming && x.primed && x.resumable() && !x.gone()
}
