package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// owner takes what a child sends that answers no call, and its end. Messages
// alias a buffer that is reused when the method returns. The methods are called
// by the child's reader, one at a time, except exited.
type owner interface {
	notified(c *conn, m *jsonrpc.Message)  // a notification without a request it belongs to
	asked(c *conn, m *jsonrpc.Message)     // a request to the client
	withdrawn(c *conn, m *jsonrpc.Message) // the child cancels such a request
	exited(c *conn, e *exit)               // the child is gone
}

// conn is JSON-RPC over one child. It gives every request an id of its own, so
// that requests of several clients can be in flight together, and uses the same
// number for the request's progress token.
type conn struct {
	proc     *process
	owner    owner
	log      *slog.Logger
	started  time.Time
	patience time.Duration // how long a slow client may stop the reading

	// Set by the handshake, before the conn is used by anyone else.
	gen uint64 // counts the children of a link

	hello  atomic.Pointer[hello] // of a kept child, once it has shaken hands
	ending atomic.Bool           // this side ends the child
	lost   chan struct{}         // closed when gone is set
	junk   limiter               // used by the reader only

	mu      sync.Mutex
	pending map[int64]*call
	newest  *call
	lastID  int64
	gone    *exit // nil while the child lives
}

func newConn(p *process, o owner, log *slog.Logger) *conn {
	return &conn{proc: p, owner: o, log: log.With("pid", p.pid), started: time.Now(), lost: make(chan struct{}), pending: map[int64]*call{}, patience: patience}
}

// run reads the child until it is gone, and calls done then.
func (c *conn) run(done func()) { c.proc.run(c.line, c.fail, done) }

func (c *conn) modern() bool {
	h := c.hello.Load()
	return h != nil && h.modern
}

// alive reports whether a request may be sent.
func (c *conn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone == nil && !c.ending.Load()
}

func (c *conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending) > 0
}

// register gives cl an id and makes it the newest request in flight.
func (c *conn) register(cl *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil || c.ending.Load() {
		return errNotSent
	}
	c.lastID++
	cl.id = c.lastID
	c.pending[cl.id] = cl
	if cl.prev = c.newest; cl.prev != nil {
		cl.prev.next = cl
	}
	c.newest = cl
	return nil
}

// remove takes cl out of flight and reports whether it was; only one caller is
// told so.
func (c *conn) remove(cl *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removeLocked(cl)
}

func (c *conn) removeLocked(cl *call) bool {
	if c.pending[cl.id] != cl {
		return false
	}
	delete(c.pending, cl.id)
	if cl.prev != nil {
		cl.prev.next = cl.next
	}
	if cl.next != nil {
		cl.next.prev = cl.prev
	} else {
		c.newest = cl.prev
	}
	cl.prev, cl.next = nil, nil
	return true
}

// find returns the newest call in flight that is a client's and that ok takes.
func (c *conn) find(ok func(*call) bool) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cl := c.newest; cl != nil; cl = cl.prev {
		if !cl.hidden && ok(cl) {
			return cl
		}
	}
	return nil
}

// sole returns the one call in flight, or nil if there are none or several.
func (c *conn) sole() *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.newest; cl != nil && cl.prev == nil && !cl.hidden {
		return cl
	}
	return nil
}

func (c *conn) byID(raw []byte) *call {
	id, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[id]
}

// send registers cl and sends its request, which build makes of the call's id.
// With errNotSent the child has seen nothing of it, and is gone.
func (c *conn) send(ctx context.Context, cl *call, build func(id []byte) []byte) error {
	if err := c.register(cl); err != nil {
		return err
	}
	err := c.write(ctx, build(cl.wireID()))
	if !errors.Is(err, errNotSent) {
		return nil // a failure comes with ctx or the end of the child, and wait hears of it from them
	}
	c.remove(cl)
	switch ctx.Err() {
	case nil:
		return errNotSent
	case context.DeadlineExceeded:
		return router.Errorf(router.ErrUnavailable, "%s was not executed: the server does not read its input; try again later", cl)
	}
	return fmt.Errorf("send %s: %w", cl, ctx.Err())
}

// write sends one line. If it fails for another reason than ctx, the child is
// gone when it returns.
func (c *conn) write(ctx context.Context, line []byte) error {
	err := c.proc.stdin.send(ctx, line)
	if err == nil || ctx.Err() != nil || c.ending.Load() {
		return err
	}
	if !within(c.proc.exited, flushGrace) {
		c.proc.kill("it closed its standard input")
	}
	select {
	case <-c.lost:
	case <-ctx.Done():
	}
	return err
}

// request sends a request of this side's own. The reply is taken with answer.
func (c *conn) request(ctx context.Context, method string, params []byte) (*call, error) {
	cl := newCall(c)
	cl.method, cl.hidden = method, true
	err := c.send(ctx, cl, func(id []byte) []byte {
		cl.clientID = id
		return encode(jsonrpc.NewRequest(id, method, params), true)
	})
	if errors.Is(err, errNotSent) {
		err = c.unsent()
	}
	return cl, err
}

// unsent explains errNotSent during a handshake.
func (c *conn) unsent() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone == nil {
		return errNotSent
	}
	return fmt.Errorf("its process %v before it read anything", c.gone)
}

// ask sends a request of this side's own and waits for its result.
func (c *conn) ask(ctx context.Context, method string, params []byte) ([]byte, error) {
	cl, err := c.request(ctx, method, params)
	if err != nil {
		return nil, err
	}
	o, err := cl.wait(ctx, router.Discard)
	if err != nil {
		return nil, err
	}
	return o.result(cl)
}

// forget sends a request of this side's own that nobody waits for.
func (c *conn) forget(method string, params []byte) {
	cl := newCall(c)
	cl.method, cl.hidden = method, true
	if c.register(cl) == nil {
		c.remove(cl) // only its id was wanted
		c.post(jsonrpc.NewRequest(cl.wireID(), method, params))
	}
}

// notify sends what gets no answer: a notification, or an answer to the child.
func (c *conn) notify(ctx context.Context, msg []byte) error {
	return c.write(ctx, encode(msg, false))
}

// cancel tells the child that nobody waits for cl any more. It does not block.
func (c *conn) cancel(cl *call, reason string) {
	if cl.method == "initialize" {
		return // MCP, cancellation: it must not be cancelled
	}
	params := fmt.Appendf(nil, `{"requestId":%d,"reason":%s}`, cl.id, jsonrpc.Quote(reason))
	c.post(jsonrpc.NewRequest(nil, "notifications/cancelled", params))
}

// refuse answers a request of the child with an error.
func (c *conn) refuse(id []byte, code int, text string) {
	c.post(jsonrpc.NewError(id, code, text, nil))
}

func (c *conn) post(msg []byte) {
	if !c.proc.stdin.post(encode(msg, true)) && c.alive() {
		c.log.Warn("message to server dropped: it does not read its input", "message", string(msg[:min(len(msg), 200)]))
	}
}

// stop ends the child, and tells what is in flight at once. It returns when the
// child is gone.
func (c *conn) stop(why string) {
	c.ending.Store(true)
	for _, cl := range c.takeAll(nil) {
		cl.settle(outcome{exit: &exit{why: why}})
	}
	c.proc.stop(why)
}

// fail is told by the process how it ended.
func (c *conn) fail(e *exit) {
	calls := c.takeAll(e)
	c.owner.exited(c, e) // first: who hears of it may try again at once
	for _, cl := range calls {
		cl.settle(outcome{exit: e})
	}
	close(c.lost)
}

func (c *conn) takeAll(gone *exit) []*call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gone != nil {
		c.gone = gone
	}
	var all []*call
	for c.newest != nil {
		all = append(all, c.newest)
		c.removeLocked(c.newest)
	}
	return all
}

// line takes one line of the child's stdout.
func (c *conn) line(b []byte) {
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return
	}
	if b[0] == '[' { // a batch of MCP 2025-03-26
		if items, err := jsonrpc.SplitBatch(b); err == nil {
			for _, item := range items {
				c.line(item)
			}
			return
		}
	}
	m, err := jsonrpc.Parse(b)
	if err != nil {
		c.unreadable(b, err)
		return
	}
	switch m.Kind {
	case jsonrpc.Response:
		c.answered(m)
	case jsonrpc.Request:
		if m.Method == "ping" { // asks whether this end of the pipe is there, not the client
			c.post(jsonrpc.NewResult(m.ID, []byte("{}")))
			return
		}
		c.owner.asked(c, m)
	case jsonrpc.Notification:
		c.notified(m)
	}
}

func (c *conn) answered(m *jsonrpc.Message) {
	cl := c.byID(m.ID)
	if cl == nil || !c.remove(cl) {
		if string(m.ID) == "null" {
			c.log.Warn("server could not read a message", "error", string(m.Error))
		}
		return // or an answer to a call that was cancelled
	}
	o := outcome{failed: m.Error != nil}
	if o.failed && c.modern() {
		o.status = modernStatus(m.Error)
	}
	if cl.sess != nil && !o.failed {
		m = cl.sess.mark(c, m)
	}
	if c.modern() && cl.method == methodListen && !o.failed {
		o.body = restoreListenResult(m, cl.clientID)
	} else {
		o.body = m.Edit(jsonrpc.Edit{ID: cl.clientID}) // a copy, since it has an id
	}
	cl.settle(o)
}

func (c *conn) notified(m *jsonrpc.Message) {
	switch m.Method {
	case "notifications/progress":
		if cl := c.byID(m.ProgressToken); cl != nil && cl.token != nil {
			cl.push(m.Edit(jsonrpc.Edit{ProgressToken: cl.token}))
		}
	case "notifications/cancelled":
		c.owner.withdrawn(c, m)
	default:
		if c.modern() && c.pushSubscribed(m) {
			return
		}
		c.owner.notified(c, m)
	}
}
