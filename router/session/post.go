package session

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"ripstop/router"
)

// Why a call or a listener was ended from here.
var (
	errTakenOver = errors.New("another stream of the session took over")
	errAbandoned = errors.New("nobody took the call's stream for too long")
)

// keepReplyAfter is how long a call must take for its reply to be kept although
// nothing came before it: edges open a stream for such a call, so its client has
// an id to ask for the reply with if the edge dies. See edge.firstKeepalive,
// which is more.
const keepReplyAfter = 2 * time.Second

// post is a call that outlives its caller: its messages and its reply are kept
// for the client to ask for, from any edge.
type post struct {
	stream
	e      *events
	id     []byte // raw, of the request
	began  time.Duration
	cancel context.CancelCauseFunc
	done   chan struct{}
	reply  *router.Reply // once done
	err    error

	sending sync.Mutex // keeps what goes to out in order
	ctx     context.Context
	out     router.Stream // the caller; nil once it is gone. Guarded by e.mu, like the rest
	opened  bool          // the caller was sent something
	kept    bool          // the reply is in the ring
}

var _ router.Stream = (*post)(nil)

// detached serves a call whose messages can be asked for again. When the caller
// is gone, it goes on.
func (l *Layer) detached(ctx context.Context, u use, req *router.Request, out router.Stream) (*router.Reply, error) {
	p := &post{e: l.eventsOf(u.s), id: req.Message.ID, began: l.now(), done: make(chan struct{}), ctx: ctx, out: out}
	p.name = req.StreamID
	call, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.e.begin(p)
	started := l.employ(func() {
		reply, err := l.deliver(call, u, req, p)
		p.finish(reply, cutOff(call, err))
		cancel(nil)
	})
	if !started {
		l.leave(u, req.Op)
		p.finish(nil, l.errClosing())
		cancel(nil)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		if !p.abandon() {
			return nil, ctx.Err()
		}
	}
	return p.reply, p.err
}

// cutOff returns err as the caller is to see it, where it was this side that
// cancelled the call.
func cutOff(call context.Context, err error) error {
	if err == nil {
		return nil
	}
	var known *router.Error
	cause := context.Cause(call)
	if cause == nil || errors.As(err, &known) {
		return err
	}
	return router.Errorf(router.ErrOutcomeUnknown, "the call was cut off: %v; it may have been executed", cause)
}

func (e *events) begin(p *post) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.IndexFunc(e.posts, func(o *post) bool { return o.name == p.name && o.over }); i >= 0 {
		e.removeLocked(e.posts[i]) // the same call, sent again
	}
	e.posts = append(e.posts, p)
}

// Send implements [router.Stream] for the backend.
func (p *post) Send(ctx context.Context, msg []byte) error {
	p.sending.Lock()
	defer p.sending.Unlock()
	if len(msg) > 0 {
		if err := p.e.push(ctx, p, msg); err != nil {
			return err
		}
	}
	p.e.mu.Lock()
	out, n := p.out, p.last()
	p.opened = p.opened || out != nil
	p.e.mu.Unlock()
	if out == nil {
		return nil
	}
	if err := sendEvent(p.ctx, out, eventID(p.name, n), msg); err != nil {
		p.abandon()
		return nil // the client may come back for it
	}
	p.e.mu.Lock()
	p.sent = max(p.sent, n)
	p.e.mu.Unlock()
	return nil
}

// finish notes the reply. It is kept if the client may ask for it.
func (p *post) finish(reply *router.Reply, err error) {
	e := p.e
	e.mu.Lock()
	defer e.mu.Unlock()
	p.reply, p.err = reply, err
	p.since = e.l.now()
	if p.opened || p.out == nil || p.since-p.began >= keepReplyAfter {
		p.keepLocked()
	} else {
		e.removeLocked(p)
	}
	p.over, p.out = true, nil
	if p.wake != nil {
		nudge(p.wake)
	}
	close(p.done)
}

// keepLocked puts the reply into the ring. e.mu is held.
func (p *post) keepLocked() {
	reply := p.reply
	if p.err != nil {
		reply = router.ErrorReply(p.id, p.err)
	}
	p.kept = true
	if len(reply.Body) > 0 {
		n := p.e.appendLocked(&p.stream, reply.Body)
		if p.err == nil {
			own := *reply
			own.EventID = eventID(p.name, n)
			p.reply = &own
		}
	}
	if p.e.closed == nil {
		p.e.keep()
	}
}

// abandon notes that the caller is gone, and reports whether the call was over
// by then.
func (p *post) abandon() (over bool) {
	e := p.e
	e.mu.Lock()
	defer e.mu.Unlock()
	p.out = nil
	if p.over {
		if !p.kept {
			e.posts = append(e.posts, p)
			p.keepLocked()
		}
		return true
	}
	p.since = e.l.now()
	if e.closed == nil {
		e.keep()
	}
	return false
}

// resume serves a GET for the stream of a call, after its n-th message.
func (l *Layer) resume(ctx context.Context, u use, name string, n uint64, out router.Stream) (*router.Reply, error) {
	e := l.eventsOf(u.s)
	e.mu.Lock()
	var p *post
	for _, o := range e.posts {
		if o.name == name {
			p = o // the newest, if the call was sent again
		}
	}
	if p == nil {
		e.mu.Unlock()
		return l.recall(ctx, u.s.id, name, n, out)
	}
	p.out = nil // its client has come here instead
	e.mu.Unlock()
	return l.take(ctx, e, &p.stream, n, out, nil)
}
