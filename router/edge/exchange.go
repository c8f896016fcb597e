package edge

import (
	"bytes"
	"context"
	"errors"
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
// [router.EventStream]: the answer stays undecided until either the reply is
// there (JSON) or a message has to go out before it (a stream). Event ids are
// those of the handler; see events.go.
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
	greets    bool // the next event tells how soon to reconnect, and where to resume if the handler has said
	primed    bool // the client was told where to resume
	broken    bool // a write failed
	closed    bool // the handler returned
	last      time.Time
	timer     *time.Timer
	held      [][]byte // messages of an opening
	heldSize  int
}

var _ router.EventStream = (*exchange)(nil)

// Why an exchange's context ended, where it wasn't the client.
var (
	errFinished   = errors.New("request is answered")
	errClientGone = errors.New("client is gone")
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

// detached reports whether the request goes on without its client: what a legacy
// client has said counts, though it does not wait for the status, and a server
// that is slow to start is there for its next try. Calls go on too, but that is
// the session layer's, which can give their answers later; see StreamID.
func (x *exchange) detached() bool {
	return x.era == eraLegacy && (x.kind == oneway || x.kind == opening)
}

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

// Send passes one message to the client.
func (x *exchange) Send(ctx context.Context, msg []byte) error { return x.SendEvent(ctx, "", msg) }

// SendEvent passes one message to the client, with its event id if it has one.
// It fails when the client is gone.
func (x *exchange) SendEvent(ctx context.Context, id string, msg []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return errEnded
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if x.gone() {
		return errClientGone
	}
	switch {
	case x.kind == oneway && len(msg) == 0:
		return nil
	case x.kind == oneway:
		return errOneway
	case x.kind == opening:
		return x.hold(msg)
	case len(msg) != 0:
		return x.failed(x.event(id, msg))
	case id != "" && x.knowsPrimes():
		return x.failed(x.prime(id))
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

// failed takes note of a failed write: the connection is dead.
func (x *exchange) failed(err error) error {
	if err == nil {
		return nil
	}
	x.broken = true
	x.cancel(errClientGone)
	return errClientGone
}

// tick opens a stream that has waited long enough, and keeps one alive.
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
	case x.kind == oneway || x.kind == opening || x.gone():
		return // there is nothing to keep alive
	case x.resumable() && x.knowsPrimes() && !x.streaming:
		_ = x.failed(x.prime(firstID(x.req.StreamID)))
	case x.kind == listening && !x.streaming:
		_ = x.failed(x.comment(": ok\n\n"))
	case !x.streaming || now.Sub(x.last) >= keepalive:
		_ = x.failed(x.comment(": keepalive\n\n"))
	default:
		next = keepalive - now.Sub(x.last)
	}
	x.timer.Reset(next)
}
