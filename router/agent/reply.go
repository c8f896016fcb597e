package agent

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/wire"
)

// respond sends the last frame. A reply that is too large for NATS becomes an
// error that says so.
func (a *Agent) respond(to string, r *router.Reply, failed bool) {
	err := a.publish(a.ctx, wire.ReplyMsg(to, a.opts.Instance, r, failed))
	if errors.Is(err, nats.ErrMaxPayload) {
		id := replyID(r.Body)
		r = router.ErrorReply(id, router.Errorf(router.ErrTooLarge, "the result has %d bytes, more than the fabric carries; it was executed", len(r.Body)))
		err = a.publish(a.ctx, wire.ReplyMsg(to, a.opts.Instance, r, true))
	}
	if err != nil {
		a.log.Warn("reply not sent", "err", err)
	}
}

var _ router.EventStream = (*frameStream)(nil)

// frameStream publishes a call's messages as "msg" frames.
type frameStream struct {
	a  *Agent
	to string
}

func (s *frameStream) Send(ctx context.Context, msg []byte) error {
	return s.SendEvent(ctx, "", msg)
}

func (s *frameStream) SendEvent(ctx context.Context, id string, msg []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(msg) == 0 {
		return s.a.publish(ctx, wire.AliveMsg(s.to, s.a.opts.Instance, id))
	}
	return s.a.publish(ctx, wire.StreamMsg(s.to, s.a.opts.Instance, id, msg))
}
