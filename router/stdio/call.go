package stdio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"ripstop/router"
)

// A call's messages wait for the client up to these bounds; then the child is
// not read on for patience, and then the call is given up. The time is for a
// client that is only slow; the end of it, for one that no longer reads but
// whose connection still stands, so that it can't hold up the other requests of
// its session for ever.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 4 << 20
	patience        = 5 * time.Second

	// keptPatience is patience where the child serves other clients too.
	keptPatience = 250 * time.Millisecond
)

// cancelGrace is how long a request may stay open after its client cancelled
// it: the server should not answer any more (MCP, cancellation), but many do.
const cancelGrace = 2 * time.Second

// outcome is what a call came to.
type outcome struct {
	body   []byte // the response for the client; nil if it was cancelled
	status int    // its HTTP status; 0 = 200
	failed bool   // it is a JSON-RPC error
	exit   *exit  // the child ended instead
	err    error  // it failed on this side
}

// failure says for the client why there is no response, or returns nil.
func (o *outcome) failure(cl *call) error {
	switch {
	case o.exit == nil:
		return o.err
	case cl.hidden || cl.method == "initialize":
		return fmt.Errorf("its process %v during %s", o.exit, cl)
	}
	return router.Errorf(router.ErrOutcomeUnknown,
		"the server's process %v during %s; it may or may not have been executed", o.exit, cl)
}

func (o *outcome) reply() *router.Reply {
	return &router.Reply{Body: o.body, Status: o.status}
}

// call is one request in flight at a child.
type call struct {
	conn     *conn
	id       int64    // what the child knows it by
	clientID []byte   // raw JSON, what the client knows it by
	token    []byte   // the client's progress token, raw JSON; nil = none
	method   string   //
	name     string   // tool, prompt or resource, for messages
	sess     *session // nil = none
	hidden   bool     // a request of this side's own

	prev, next *call // in conn's list, older and newer; guarded by conn.mu

	wake chan struct{} // holds a token when there is something to take
	room chan struct{} // holds a token when something was taken

	mu     sync.Mutex
	queue  [][]byte
	size   int
	over   bool // result stands, and nothing is queued any more
	result outcome
	timer  *time.Timer // ends a cancelled call
}

func newCall(c *conn) *call {
	return &call{conn: c, wake: make(chan struct{}, 1)}
}

// wireID returns the raw id that the child knows the call by.
func (cl *call) wireID() []byte { return strconv.AppendInt(nil, cl.id, 10) }

func (cl *call) String() string {
	if cl.name == "" {
		return cl.method
	}
	return fmt.Sprintf("%s %q", cl.method, cl.name)
}

// push queues a message for the client, which must be the call's to keep. It
// reports false if the call is over. Only the child's reader calls it.
func (cl *call) push(msg []byte) bool {
	cl.mu.Lock()
	for !cl.over && len(cl.queue) > 0 && (len(cl.queue) >= maxWaiting || cl.size+len(msg) > maxWaitingBytes) {
		if cl.room == nil {
			cl.room = make(chan struct{}, 1)
		}
		room := cl.room
		cl.mu.Unlock()
		if !cl.awaitRoom(room) {
			return false
		}
		cl.mu.Lock()
	}
	defer cl.mu.Unlock()
	if cl.over {
		return false
	}
	cl.queue = append(cl.queue, msg)
	cl.size += len(msg)
	nudge(cl.wake)
	return true
}

func (cl *call) awaitRoom(room <-chan struct{}) bool {
	timer := time.NewTimer(cl.conn.patience)
	defer timer.Stop()
	select {
	case <-room:
		return true
	case <-timer.C:
	}
	if cl.conn.remove(cl) {
		cl.conn.cancel(cl, "the client reads too slowly")
		cl.settle(outcome{err: router.Errorf(router.ErrOutcomeUnknown,
			"%s was given up: the client does not read its messages (%d wait); it may or may not have been executed", cl, maxWaiting)})
	}
	return false
}

// settle ends the call. Only the one that removed it from its conn calls it.
func (cl *call) settle(o outcome) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.over, cl.result = true, o
	if cl.timer != nil {
		cl.timer.Stop()
	}
	nudge(cl.wake)
	if cl.room != nil {
		nudge(cl.room)
	}
}

// abandon ends the call with nothing left to deliver.
func (cl *call) abandon() {
	cl.settle(outcome{})
	cl.mu.Lock()
	cl.queue = nil
	cl.mu.Unlock()
}

func (cl *call) take() (queue [][]byte, over bool, o outcome) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	queue, cl.queue, cl.size = cl.queue, nil, 0
	if cl.room != nil {
		nudge(cl.room)
	}
	return queue, cl.over, cl.result
}

// wait passes the call's messages to out until the call is over. When ctx ends
// or the client is gone it cancels the call at the child.
//
// Messages go to out from here only, so that none can follow the reply.
func (cl *call) wait(ctx context.Context, out router.Stream) (outcome, error) {
	for {
		select {
		case <-cl.wake:
		case <-ctx.Done():
			cl.giveUp(ctx.Err())
			return outcome{}, cl.timedOut(ctx)
		}
		queue, over, o := cl.take()
		for _, msg := range queue {
			if err := out.Send(ctx, msg); err != nil {
				cl.giveUp(err)
				return outcome{}, fmt.Errorf("send to the client of %s: %w", cl, err)
			}
		}
		if over {
			return o, nil
		}
	}
}

func (cl *call) giveUp(why error) {
	if !cl.conn.remove(cl) {
		return
	}
	cl.conn.cancel(cl, why.Error())
	cl.abandon()
	if cl.sess != nil {
		cl.sess.dropAsks(cl)
	}
}

func (cl *call) timedOut(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return router.Errorf(router.ErrOutcomeUnknown,
			"%s got no answer in time and was cancelled; it may or may not have been executed", cl)
	}
	return fmt.Errorf("wait for %s: %w", cl, ctx.Err())
}

// cancelled notes that the client has cancelled the call, and ends it soon.
func (cl *call) cancelled() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.over || cl.timer != nil {
		return
	}
	cl.timer = time.AfterFunc(cancelGrace, func() {
		if cl.conn.remove(cl) {
			cl.settle(outcome{})
		}
	})
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// clone is for bytes that alias a buffer about to be reused.
func clone(b []byte) []byte { return slices.Clone(b) }
