package aggregate

import (
	"context"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// bareCaller sends on what came without a session and without metadata. The
// members' agents do whatever handshake it takes.
type bareCaller struct {
	b   *Backend
	req *router.Request
}

var _ caller = bareCaller{}

func (bareCaller) era() router.Era { return router.EraBare }

// ask implements caller.
func (c bareCaller) ask(ctx context.Context, server string, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	reply, err := c.b.handler.Serve(ctx, &router.Request{
		Server: server, Era: router.EraBare, Version: c.req.Version,
		Message: msg, Params: c.req.Params, Principal: c.req.Principal,
	}, &relay{b: c.b, server: server, out: out})
	return stateless(server, reply, err)
}

// stateless checks a reply to a request without a session. The reply returned is
// the caller's to change.
func stateless(server string, reply *router.Reply, err error) (*router.Reply, error) {
	if err != nil {
		return nil, err
	}
	if reply == nil || len(reply.Body) == 0 {
		return nil, router.Errorf(router.ErrBackend, "server %s sent no response", server)
	}
	own := *reply
	own.Session = ""
	return &own, nil
}

func (b *Backend) serveBare(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	if m.Kind != jsonrpc.Request {
		return &router.Reply{}, nil // there is no session it could be about
	}
	switch m.Method {
	case "ping":
		return &router.Reply{Body: jsonrpc.NewResult(m.ID, okResult)}, nil
	case "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		return nil, invalidRequest("%s needs a session; send initialize first", m.Method)
	}
	return b.route(ctx, bareCaller{b, req}, m, out)
}
