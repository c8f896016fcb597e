package session

import (
	"context"
	"time"

	"ripstop/router"
)

// outlive serves a call that is in no session, so that its client can't come
// back for anything: when the caller is gone the call goes on, for as long as one
// in a session would, and what it still sends is dropped.
func (l *Layer) outlive(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	to := *req
	to.StreamID = ""
	call, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var reply *router.Reply
	var err error
	done := make(chan struct{})
	started := l.employ(func() {
		defer cancel(nil)
		reply, err = l.call(call, &to, &caller{ctx, out})
		err = cutOff(call, err)
		close(done)
	})
	if !started {
		cancel(nil)
		return nil, l.errClosing()
	}
	select {
	case <-done:
		return reply, err
	case <-ctx.Done():
	}
	late := time.AfterFunc(keepFor, func() { cancel(errAbandoned) })
	closing := context.AfterFunc(l.ctx, func() { cancel(errAbandoned) })
	context.AfterFunc(call, func() {
		late.Stop()
		closing()
	})
	return nil, ctx.Err()
}

// caller is a stream whose end does not end the call.
type caller struct {
	ctx context.Context // of the caller
	out router.Stream
}

func (c *caller) Send(_ context.Context, msg []byte) error {
	if c.ctx.Err() == nil {
		_ = c.out.Send(c.ctx, msg) // if it fails, the caller is about to be gone
	}
	return nil
}
