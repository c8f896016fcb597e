package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// kind says how a request may be answered.
type kind uint8

const (
	call      kind = iota // by a reply, as JSON or at the end of a stream
	opening               // initialize: its reply names the session, which must stand in the headers, so what is sent before waits
	oneway                // notification, response, DELETE: by a status only
	listening             // GET: by a stream
)

// exchange is one HTTP request and its answer. It is the request's
// [router.Stream]: the answer stays undecided until either the reply is there
// (JSON) or a message has to go out before it (a stream).
//
// An exchange is not reused, since a handler may hold on to its stream: a late
// Send must fail, not reach the next client.
type exchange struct {
	edge   *Edge
	w      http.ResponseWriter
	rc     *http.ResponseController
	client context.Context // ends when the client is gone
	cancel context.CancelCauseFunc
	start  time.Time

	req     router.Request
	kind    kind
	era     era
	endless bool   // subscriptions/listen: a stream without an end of its own
	method  string // metrics label
	called  bool   // the handler was called
	unread  bool   // there is a body that was not read to its end

	prev, next *exchange // in edge.flights, under its mutex

	taken chan struct{} // closed when a long stream is taken over from net/http
	own   *ownConn      // then; set under mu, or by the handler's goroutine after close

	mu        sync.Mutex
	streaming bool // headers of a stream are out
	retry     bool // the next event tells how soon to reconnect
	broken    bool // a write failed
	closed    bool // the handler returned
	last      time.Time
	goneAt    time.Time // when it was seen that a detached call has lost its client
	timer     *time.Timer
	held      [][]byte // messages of an opening
	heldSize  int
}

var _ router.Stream = (*exchange)(nil)

// Why an exchange's context ended, where it wasn't the client.
var (
	errFinished   = errors.New("request is answered")
	errClientGone = errors.New("client is gone")
	errAbandoned  = errors.New("client is gone for too long")
	errDraining   = errors.New("node is draining")
	errAborted    = errors.New("node is shutting down")
)

// What Send fails with.
var (
	errEnded    = errors.New("send to client: the request is already answered")
	errOneway   = errors.New("send to client: a notification or response has no stream")
	errHeldFull = errors.New("send to client: too much before the answer to initialize")
)

// What an opening may hold back.
const (
	maxHeld     = 64
	maxHeldSize = 1 << 20 // bytes
)

func newExchange(e *Edge, w http.ResponseWriter, r *http.Request) *exchange {
	return &exchange{edge: e, w: w, rc: http.NewResponseController(w), client: r.Context(), start: time.Now(), method: "none"}
}

// id is the id of the client's request. A client's response has an id too, but
// it is the server's.
func (x *exchange) id() []byte {
	if m := x.req.Message; m != nil && m.Kind == jsonrpc.Request {
		return m.ID
	}
	return nil
}

// detached reports whether the call goes on without its client.
func (x *exchange) detached() bool { return x.era == eraLegacy && x.kind != listening }

// begin registers the exchange and arms its timer. After it, end must be called.
func (x *exchange) begin() (context.Context, error) {
	base := x.client
	if x.detached() || x.long() {
		base = context.WithoutCancel(base)
	}
	ctx, cancel := context.WithCancelCause(base)
	x.cancel = cancel
	if err := x.edge.flights.enter(x); err != nil {
		cancel(err)
		x.w.Header()["Connection"] = closeConn
		return nil, err
	}
	x.called = true
	x.edge.metrics.inFlight.Inc()
	wait := firstKeepalive
	if x.kind == listening {
		wait = listenGrace
	}
	x.mu.Lock()
	if x.long() {
		x.client = ctx // the request's own ends when the stream is taken over
	}
	x.timer = time.AfterFunc(wait, x.tick)
	x.mu.Unlock()
	return ctx, nil
}

func (x *exchange) end() {
	x.edge.flights.leave(x)
	x.edge.metrics.inFlight.Dec()
	x.cancel(errFinished)
}

// run hands the request to the handler and answers.
func (x *exchange) run() error {
	ctx, err := x.begin()
	if err != nil {
		return err
	}
	defer x.end()
	reply, err := x.edge.call(ctx, &x.req, x)
	x.finish(x.settle(ctx, x.id(), reply, err))
	return nil
}

// close ends the stream for the handler and the timer. From then on only the
// request's own goroutine writes.
func (x *exchange) close() (streaming, gone bool) {
	x.timer.Stop()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	if x.streaming {
		x.edge.metrics.streams.Dec()
	}
	return x.streaming, x.gone()
}

func (x *exchange) gone() bool {
	if x.long() { // its context also ends when the edge is drained
		return x.broken || context.Cause(x.client) == errClientGone
	}
	return x.broken || x.client.Err() != nil
}

// Send passes one message to the client. A legacy call whose client is gone
// goes on as if it was there, so Send then drops the message without an error;
// a listening or modern client's absence fails it.
func (x *exchange) Send(ctx context.Context, msg []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return errEnded
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if x.gone() {
		return x.lost()
	}
	switch {
	case x.kind == oneway && len(msg) == 0:
		return nil
	case x.kind == oneway:
		return errOneway
	case x.kind == opening:
		return x.hold(msg)
	case len(msg) != 0:
		return x.failed(x.event(msg))
	case !x.streaming:
		return x.failed(x.comment(": ok\n\n"))
	}
	return nil
}

func (x *exchange) hold(msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	if len(x.held) == maxHeld || x.heldSize+len(msg) > maxHeldSize {
		return errHeldFull
	}
	x.heldSize += len(msg)
	x.held = append(x.held, bytes.Clone(msg))
	return nil
}

// lost is what a Send to a client that is gone returns.
func (x *exchange) lost() error {
	if x.detached() {
		return nil
	}
	return errClientGone
}

// failed takes note of a failed write: the connection is dead.
func (x *exchange) failed(err error) error {
	if err == nil {
		return nil
	}
	x.broken = true
	if !x.detached() {
		x.cancel(errClientGone)
	}
	return x.lost()
}

// tick opens a stream that has waited long enough, keeps one alive, and ends a
// call that has outlived its client for too long.
func (x *exchange) tick() {
	if !x.mu.TryLock() { // a write is under way: look again when it is done or has failed
		time.AfterFunc(time.Second, x.tick)
		return
	}
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	now, next := time.Now(), keepalive
	switch {
	case x.gone():
		switch {
		case !x.detached():
			return // its context ended with the client
		case x.goneAt.IsZero():
			x.goneAt = now
		case now.Sub(x.goneAt) >= detachLimit:
			x.cancel(errAbandoned)
			return
		}
	case x.kind == oneway || x.kind == opening:
	case x.kind == listening && !x.streaming:
		_ = x.failed(x.comment(": ok\n\n"))
	case !x.streaming || now.Sub(x.last) >= keepalive:
		_ = x.failed(x.comment(": keepalive\n\n"))
	default:
		next = keepalive - now.Sub(x.last)
	}
	x.timer.Reset(next)
}

// Headers of every stream. X-Accel-Buffering keeps nginx and its like from
// holding events back (MCP 2026-07-28, "Receiving Messages").
var (
	typeSSE     = []string{"text/event-stream"}
	cacheSSE    = []string{"no-cache, no-transform"}
	noBuffering = []string{"no"}
)

// retryEvent begins a stream's first event where the client knows SEP-1699: a
// client whose node died is to look for another after 1 s. It stands inside an
// event since some clients take a retry of its own for an empty message.
const retryEvent = "event: message\nretry: 1000\ndata: "

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
	x.retry = x.era == eraLegacy && x.req.Version >= router.Version20251125
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

// event writes one message and flushes it.
func (x *exchange) event(msg []byte) error {
	if err := x.writeEvent(msg); err != nil {
		return err
	}
	return x.flush()
}

// writeEvent writes one message as one event. Line breaks end a line of an
// event stream; in JSON they are white space, since a string can't hold them,
// so they are left out.
func (x *exchange) writeEvent(msg []byte) error {
	if !x.streaming {
		x.openStream("")
	}
	x.last = time.Now()
	head := "event: message\ndata: "
	if x.retry {
		x.retry, head = false, retryEvent
	}
	if _, err := io.WriteString(x.w, head); err != nil {
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
