package session

import (
	"context"
	"errors"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// maxRenewals is how often one message finds its backend session gone and is
// sent in a new one: a server that forgets sessions at once is no good.
const maxRenewals = 3

// message serves one message in a session.
func (l *Layer) message(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	u, err := l.enter(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.StreamID != "" && req.Message.Kind == jsonrpc.Request {
		return l.detached(ctx, u, req, out)
	}
	return l.deliver(ctx, u, req, out)
}

// deliver hands a message to the backend, in a new session of it if the one it
// had is gone. It ends the use.
func (l *Layer) deliver(ctx context.Context, u use, req *router.Request, out router.Stream) (*router.Reply, error) {
	for renewals := 0; ; renewals++ {
		reply, err := l.once(ctx, u, req, out)
		if err == nil || !errors.Is(err, router.ErrSessionNotFound) {
			l.leave(u, req.Op)
			return reply, err
		}
		u.s.lost(u) // so nothing was executed
		l.leave(u, req.Op)
		if renewals == maxRenewals {
			return nil, router.Errorf(router.ErrUnavailable, "the server behind %q forgets its session as soon as it is made: %v; nothing was executed", l.opts.Server, err)
		}
		if u, err = l.enter(ctx, req); err != nil {
			return nil, err
		}
	}
}

// once hands a message to the backend.
func (l *Layer) once(ctx context.Context, u use, req *router.Request, out router.Stream) (*router.Reply, error) {
	to := *req
	to.Session, to.Epoch, to.StreamID = u.backend, 0, ""
	m := req.Message
	if m.Kind == jsonrpc.Response {
		own, refused := l.answer(u, m)
		if refused != nil {
			return refused, nil
		}
		to.Message = own
	}
	sink := out
	if u.tag != 0 {
		sink = &asker{out, u.tag}
	}
	in, _ := l.withData(ctx, u.s.id, u.epoch)
	reply, err := l.call(in, &to, sink)
	if err != nil || m.Kind == jsonrpc.Response {
		return reply, err
	}
	if err := l.changed(ctx, u, m, reply); err != nil {
		return nil, err
	}
	if u.tag != 0 && m.Kind == jsonrpc.Request && !router.Own(m) {
		reply = l.mark(ctx, u, reply, out)
	}
	return reply, nil
}
