package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

const (
	// maxRequests bounds a client's requests in flight. Those past it are
	// refused, not queued: a queue that blocks the reader would also block the
	// cancel, or the answer to an elicitation, that would free a place.
	maxRequests = 1024

	// maxOrdered bounds the notifications and responses that wait to be sent on;
	// the reader waits past it. They never wait for the client, so this can't
	// lock up.
	maxOrdered = 256

	// endFor bounds the end of a session once nobody waits for it.
	endFor = 2 * time.Second
)

// Conn is one client's connection to a server of the fabric, whatever carries
// the messages. It is open from NewConn to Close.
type Conn struct {
	handler  router.Handler
	server   string
	log      *slog.Logger
	retryFor time.Duration
	send     func(ctx context.Context, msg []byte) error

	ctx     context.Context // done when the connection is
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup
	once    sync.Once
	ordered chan ordered
	legacy  legacy
	seen    atomic.Bool   // the server has answered before
	replays atomic.Uint64 // counts the ids of replayed requests

	mu      sync.Mutex
	calls   map[string]*call // by raw id
	running int              // requests
	waiting int              // of ordered
	closing bool             // takes nothing more
	tail    chan struct{}    // closed when all ordered messages so far are delivered; nil = none yet
	idle    chan struct{}    // set by Drain, closed when nothing is in flight
}

// call is a request in flight.
type call struct {
	cancel    context.CancelFunc
	endless   bool // runs until the client goes
	cancelled bool // by the client, which expects no answer
}

// ordered is a notification or a response, on its way after those before it.
type ordered struct {
	msg  *jsonrpc.Message
	done chan struct{}
}

// NewConn opens a connection to o.Server. What the server says goes to send,
// which may be called concurrently, must keep no reference to msg, and should
// fail once ctx is done; when it fails the connection ends. Cancelling ctx ends
// the connection; Close is due all the same.
func NewConn(ctx context.Context, o Options, send func(ctx context.Context, msg []byte) error) *Conn {
	c := &Conn{
		handler:  o.Handler,
		server:   o.Server,
		log:      o.Logger,
		retryFor: o.RetryFor,
		send:     send,
		ordered:  make(chan ordered, maxOrdered),
		calls:    map[string]*call{},
		legacy:   legacy{restoring: make(chan struct{}, 1)},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.retryFor == 0 {
		c.retryFor = DefaultRetryFor
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.wg.Go(c.deliver)
	return c
}

// Close cancels what is in flight, waits for it and ends the client's session,
// the last for at most 2 s. It is idempotent.
func (c *Conn) Close() {
	c.once.Do(func() {
		c.mu.Lock()
		c.closing = true
		c.mu.Unlock()
		c.cancel(context.Canceled)
		c.wg.Wait()
		c.endSession(c.legacy.current())
	})
}

// Drain takes nothing more from the client and waits until what is in flight is
// done, for at most d. Streams that only the client would end are cut at once.
func (c *Conn) Drain(d time.Duration) {
	c.mu.Lock()
	c.closing = true
	idle := make(chan struct{})
	c.idle = idle
	for _, k := range c.calls {
		if k.endless {
			k.cancelled = true
			k.cancel()
		}
	}
	c.checkIdle()
	c.mu.Unlock()
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-idle:
	case <-wait.C:
	case <-c.ctx.Done():
	}
}

// checkIdle is called with mu held, when something may have become idle.
func (c *Conn) checkIdle() {
	if c.idle != nil && c.running == 0 && c.waiting == 0 {
		close(c.idle)
		c.idle = nil
	}
}

// Err returns why the connection broke: the error of send, or nil.
func (c *Conn) Err() error {
	var broken *brokenError
	if errors.As(context.Cause(c.ctx), &broken) {
		return broken.error
	}
	return nil
}

// brokenError marks the cause of a connection that its client broke.
type brokenError struct{ error }

// SessionID returns the legacy session's id, "" while there is none.
func (c *Conn) SessionID() string { return c.legacy.current().id }

// Receive takes one message, or a batch, from the client. It owns raw from here
// on, and returns before the message is answered. Messages keep the order in
// which they are received; it is safe for concurrent use.
func (c *Conn) Receive(raw []byte) {
	if jsonrpc.IsBatch(raw) {
		c.receiveBatch(raw)
		return
	}
	m, err := jsonrpc.Parse(raw)
	if err != nil {
		c.refuse(nil, err)
		return
	}
	c.take(m, c.write)
}

// take starts a message on its way. The answer to a request goes to reply, nil
// if it was cancelled; for other messages reply is not called.
func (c *Conn) take(m *jsonrpc.Message, reply func(body []byte)) {
	switch {
	case m.Kind == jsonrpc.Request:
		c.start(m, reply)
	case m.Method == "notifications/cancelled":
		c.cancelCall(m.CancelID)
	default:
		c.enqueue(m)
	}
}

// cancelCall ends the request of that id. Cancelling its context is what tells
// the server, so the notification itself goes no further.
func (c *Conn) cancelCall(id []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[string(id)]; k != nil {
		k.cancelled = true
		k.cancel()
	}
}

func (c *Conn) start(m *jsonrpc.Message, reply func([]byte)) {
	ctx, cancel := context.WithCancel(c.ctx)
	k := &call{cancel: cancel, endless: m.Method == "subscriptions/listen"}
	c.mu.Lock()
	full := c.running >= maxRequests
	if full || c.closing {
		c.mu.Unlock()
		cancel()
		if full {
			reply(router.ErrorReply(m.ID, router.Errorf(router.ErrOverloaded, "%d requests of this client are in flight, the most it may have; nothing was executed", maxRequests)).Body)
		}
		return
	}
	c.calls[string(m.ID)] = k
	c.running++
	after := c.tail
	c.wg.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.wg.Done()
		defer cancel()
		var body []byte
		if wait(ctx, after) {
			body = c.answer(ctx, m)
		}
		c.finish(m.ID, k, body, reply)
	}()
}

// finish answers, unless the client cancelled or is gone.
func (c *Conn) finish(id []byte, k *call, body []byte, reply func([]byte)) {
	c.mu.Lock()
	if c.calls[string(id)] == k {
		delete(c.calls, string(id))
	}
	if k.cancelled || c.ctx.Err() != nil {
		body = nil
	}
	c.mu.Unlock()
	reply(body)
	c.mu.Lock()
	c.running--
	c.checkIdle()
	c.mu.Unlock()
}

func (c *Conn) enqueue(m *jsonrpc.Message) {
	o := ordered{m, make(chan struct{})}
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return
	}
	c.tail = o.done
	c.waiting++
	c.mu.Unlock()
	select {
	case c.ordered <- o:
	case <-c.ctx.Done():
	}
}

// deliver sends notifications and responses on, in their order. Requests wait
// for those that came before them, as they would with a server at the pipe.
func (c *Conn) deliver() {
	for {
		select {
		case o := <-c.ordered:
			c.forwardQuietly(o.msg)
			close(o.done)
			c.mu.Lock()
			c.waiting--
			c.checkIdle()
			c.mu.Unlock()
		case <-c.ctx.Done():
			return
		}
	}
}

// forwardQuietly sends a message on that nobody waits for an answer to.
func (c *Conn) forwardQuietly(m *jsonrpc.Message) {
	reply, err := c.forward(c.ctx, m)
	if err == nil && reply != nil && reply.Status >= 400 {
		err = errors.New(string(reply.Body))
	}
	if err != nil && c.ctx.Err() == nil {
		c.log.Warn("message not delivered", "server", c.server, "method", m.Method, "error", err)
	}
	if m.Method == "notifications/initialized" {
		c.startListening()
	}
}

// wait waits for done and reports whether ctx is still alive. A nil done has
// nothing to wait for.
func wait(ctx context.Context, done <-chan struct{}) bool {
	if done == nil {
		return true
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// write sends an answer to the client; nil is none.
func (c *Conn) write(body []byte) {
	if body == nil {
		return
	}
	if err := c.send(c.ctx, body); err != nil && c.ctx.Err() == nil {
		c.cancel(&brokenError{err})
	}
}

// refuse answers a message that goes nowhere.
func (c *Conn) refuse(id []byte, err error) { c.write(router.ErrorReply(id, err).Body) }
