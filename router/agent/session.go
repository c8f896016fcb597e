package agent

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/session"
	"ripstop/router/session/keep"
)

// layered puts the session layer around the backend. An agent in a node's own
// process has the node's keeper; any other asks the node it is connected to.
func (a *Agent) layered() error {
	opts := a.opts
	if opts.Keeper == nil {
		c := keep.Client{Server: opts.Server, Conn: a.conn}
		opts.Keeper, opts.Events = c, c
	}
	layer, err := session.New(session.Options{
		Backend: opts.Backend, Server: opts.Server, Instance: opts.Instance, Keeper: opts.Keeper, Events: opts.Events,
		OnMove: opts.OnMove, Idle: opts.Idle, MaxSessions: opts.MaxSessions, Logger: opts.Logger,
	})
	if err != nil {
		return err
	}
	a.layer, a.keeper = layer, opts.Keeper
	a.unwatch = a.followMoves()
	a.follow = &router.Follower{Sessions: &whereabouts{a: a}, Send: a.sendTo}
	return nil
}

// conn is the connection the agent registers over now.
func (a *Agent) conn() *nats.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.line.nc
}

// sendTo hands a session's request to the instance it names: this one, or
// another. The caller's name counts only where an edge says it.
func (a *Agent) sendTo(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Instance == a.opts.Instance {
		return a.serve(ctx, req, out)
	}
	if a.opts.Relay == nil {
		return nil, router.Errorf(router.ErrUnavailable, "instance %s of %q does not reach instance %s; nothing was executed", a.opts.Instance, a.opts.Server, req.Instance)
	}
	to := *req
	to.Principal = ""
	return a.opts.Relay.Serve(ctx, &to, out)
}

// maxWhere bounds how many moved sessions an agent remembers.
const maxWhere = 4096

// whereabouts says where sessions are, as far as this agent has found out.
type whereabouts struct {
	a *Agent

	mu    sync.Mutex
	moved map[string]place // sessions that are not where their ids say
}

type place struct {
	instance string
	epoch    uint64
}

var _ router.Sessions = (*whereabouts)(nil)

// Owner implements [router.Sessions].
func (w *whereabouts) Owner(id string) (string, uint64, bool) {
	if w.a.layer.Holds(id) {
		return w.a.opts.Instance, 0, true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p, known := w.moved[id]
	return p.instance, p.epoch, known
}

// Locate implements [router.Sessions].
func (w *whereabouts) Locate(ctx context.Context, server, id, avoid string, epoch uint64) (string, uint64, error) {
	r, err := w.a.keeper.Locate(ctx, server, id, avoid, epoch)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || r.Instance == router.SessionInstance(id) {
		delete(w.moved, id)
		return r.Instance, r.Epoch, err
	}
	if w.moved == nil || len(w.moved) >= maxWhere {
		w.moved = map[string]place{} // those that matter are found again
	}
	w.moved[id] = place{r.Instance, r.Epoch}
	return r.Instance, r.Epoch, nil
}
