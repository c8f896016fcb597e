// Package agent attaches a backend to the fabric as an instance: it subscribes
// the instance's subjects, answers what comes in over NATS or from the same
// process, registers, and lets go in order.
package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/session"
	"ripstop/router/wire"
)

// Options say what to attach and where.
type Options struct {
	Server    string         // logical server name; see router.CheckServerName
	Instance  string         // instance id; "" = a new one
	Transport string         // stdio, http or go, for the registry
	Backend   router.Backend // closed by Agent.Close
	Conn      *nats.Conn     // stays the caller's to close; see Move
	Relay     router.Handler // reaches other instances of the server, for requests of their sessions

	Scope     string          // kv.ScopeGlobal (or ""), or kv.ScopeLocal: known to the node it is attached to only
	Exclusive bool            // refuse to share the server's name with another instance, anywhere in the cluster
	After     <-chan struct{} // register, and take what any instance may answer, only when it is closed; nil = at once
	Standby   bool            // with Exclusive: wait while another has the name, and take over when it goes

	// Keeper keeps the records of sessions, and Events the events of their
	// streams; nil = the node that Conn leads to.
	Keeper session.Keeper
	Events session.EventLog

	OnMove      string        // what becomes of a session whose instance is gone: sessions.OnMoveReinitialize (or ""), or sessions.OnMoveEnd
	Idle        time.Duration // ends a session unused for so long; 0 = session.DefaultIdle
	MaxSessions int           // held at once; 0 = session.DefaultMaxSessions

	Software     string        // version of ripstop, for the registry
	MaxInFlight  int           // calls at once; 0 = 4096
	ProbeTimeout time.Duration // how long the server may take to say what it is; 0 = 60 s (npx downloads)
	Logger       *slog.Logger
}

// Agent is an attached instance. It is a router.Handler, so that an edge in the
// same process calls it without a network hop.
type Agent struct {
	opts    Options
	log     *slog.Logger
	layer   *session.Layer // around the backend
	keeper  session.Keeper
	follow  *router.Follower // of sessions that may be elsewhere
	unwatch func()           // stops following moves
	out     outlet           // of replies

	stats      stats
	table      table // calls that came over NATS
	workers    workers
	inFlight   atomic.Int64
	draining   atomic.Bool
	registered chan struct{} // closed after the first registration
	refused    chan error    // why the name can't be had

	ctx     context.Context // ends with Close; parent of calls over NATS
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines of the agent and its calls
	moving  sync.Mutex     // held while it moves
	closing chan struct{}  // closed when Close is called

	probing sync.Once // of an exclusive instance

	mu      sync.Mutex
	record  kv.Instance
	changed bool          // the record differs from what was registered last
	line    *line         // where it registers
	left    *line         // where it was before, while it moves
	joined  bool          // it takes what any instance of the server may answer
	asleep  bool          // another holds the name
	again   chan struct{} // asks the registration loop for another round
	closed  bool          // Close was called
	stopped bool          // no call is taken any more
}

var _ router.Handler = (*Agent)(nil)

// Attach subscribes the instance and starts registering it, which goes on in
// the background until it succeeds, and again whenever the connection or the
// node comes back.
func Attach(opts Options) (*Agent, error) {
	if err := router.CheckServerName(opts.Server); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if opts.Instance == "" {
		opts.Instance = router.NewInstanceID()
	}
	if opts.MaxInFlight == 0 {
		opts.MaxInFlight = 4096
	}
	if opts.ProbeTimeout == 0 {
		opts.ProbeTimeout = time.Minute
	}
	a := &Agent{
		opts:       opts,
		log:        opts.Logger.With("server", opts.Server, "instance", opts.Instance),
		line:       newLine(opts.Conn),
		out:        outlet{nc: opts.Conn},
		closing:    make(chan struct{}),
		registered: make(chan struct{}),
		refused:    make(chan error, 1),
		workers:    workers{next: make(chan *nats.Msg)},
		again:      make(chan struct{}, 1),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.table.init(a)
	host, _ := os.Hostname() // "" is as good as any name for people
	a.record = kv.Instance{
		Server: opts.Server, Instance: opts.Instance, Transport: opts.Transport,
		Agent: fmt.Sprintf("%s/%d", host, os.Getpid()), Software: opts.Software,
		Wire: wire.Version, WireMin: wire.MinVersion, Started: time.Now().UTC().Truncate(time.Millisecond),
		Scope: opts.Scope, Exclusive: opts.Exclusive, Standby: opts.Standby, Run: rand.Text()[:10],
	}
	if opts.Scope == "" {
		a.record.Scope = kv.ScopeGlobal
	}
	if err := a.layered(); err != nil {
		a.cancel()
		return nil, fmt.Errorf("attach %s: %w", opts.Server, err)
	}
	if err := a.subscribe(a.line); err != nil {
		a.cancel()
		a.unwatch()
		return nil, errors.Join(fmt.Errorf("attach %s: %w", opts.Server, err), a.line.unsubscribe(), a.layer.Close())
	}
	a.wg.Go(a.keepRegistered)
	if opts.Keeper == nil { // else the node is in this process
		a.wg.Go(a.watchNode)
	}
	if !opts.Exclusive { // one that stands by must not start anything
		a.wg.Go(a.probe)
	}
	return a, nil
}

// Instance returns the instance's id.
func (a *Agent) Instance() string { return a.opts.Instance }

// Server returns the server's name.
func (a *Agent) Server() string { return a.opts.Server }

// Registered is closed once the instance stands in the registry.
func (a *Agent) Registered() <-chan struct{} { return a.registered }

// Refused gives the error why the instance can't have its server's name, when it
// does not stand by: another holds it (kv.ErrAlreadyRegistered). The agent takes
// no calls then, but goes on asking, until it is closed.
func (a *Agent) Refused() <-chan error { return a.refused }

// Serve answers req in process. It refuses, with nothing executed, while the
// agent drains or has as many calls in flight as it may.
func (a *Agent) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if a.draining.Load() && req.Session == "" {
		return nil, router.Errorf(router.ErrUnavailable, "instance %s of %s is draining; nothing was executed", a.opts.Instance, a.opts.Server)
	}
	return a.serve(ctx, req, out)
}

func (a *Agent) serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if a.opts.Exclusive && !a.holds() {
		return nil, router.Errorf(router.ErrUnavailable, "instance %s does not hold the name %s; nothing was executed", a.opts.Instance, a.opts.Server)
	}
	if req.Op == router.OpListen { // bounded by sessions, and idle
		return a.backend(ctx, req, out)
	}
	n := a.inFlight.Add(1)
	defer a.inFlight.Add(-1)
	if n > int64(a.opts.MaxInFlight) {
		return nil, router.Errorf(router.ErrOverloaded, "instance %s of %s has %d calls in flight, its limit; nothing was executed, try again later", a.opts.Instance, a.opts.Server, n-1)
	}
	start := time.Now()
	reply, err := a.backend(ctx, req, out)
	a.stats.add(req, time.Since(start), err)
	return reply, err
}

// backend calls the backend. A panic of a server in process fails the call it
// happened in, not every session of the process.
func (a *Agent) backend(ctx context.Context, req *router.Request, out router.Stream) (reply *router.Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("server panicked", "method", req.Method(), "panic", p, "stack", string(debug.Stack()))
			reply, err = nil, router.Errorf(router.ErrOutcomeUnknown, "instance %s of %s panicked while it worked on this call; it may have been executed", a.opts.Instance, a.opts.Server)
		}
	}()
	return a.layer.Serve(ctx, req, out)
}

func (a *Agent) answer(msg *nats.Msg) {
	if e := wire.ErrandOf(msg.Subject); e != "" {
		a.errand(e, msg)
		return
	}
	in, err := wire.Decode(msg, a.opts.Server, a.opts.Instance)
	if err != nil {
		a.respond(msg.Reply, router.ErrorReply(in.ID(), err), true)
		return
	}
	ctx, done := a.table.enter(in, msg.Reply)
	defer done()
	var out router.Stream = router.Discard
	if in.Frames {
		out = &frameStream{a: a, to: msg.Reply}
	}
	var reply *router.Reply
	if err = a.current(ctx); err == nil {
		reply, err = a.dispatch(ctx, in, out)
	}
	switch {
	case err != nil && ctx.Err() != nil && a.ctx.Err() == nil:
		return // cancelled by the caller, who does not wait for an answer
	case err != nil:
		a.respond(msg.Reply, router.ErrorReply(in.ID(), err), true)
	default:
		a.respond(msg.Reply, reply, false)
	}
}

// settleFor is how long a request waits in an agent that has just stood still, for
// the word that its caller has given it up.
const settleFor = 100 * time.Millisecond

// current refuses a request that may have been given up while the process stood
// still, before it could begin: its connection was ended then, and its caller told
// that the outcome is unknown.
func (a *Agent) current(ctx context.Context) error {
	if !a.layer.Paused() {
		return nil
	}
	a.mu.Lock()
	nc, was := a.line.nc, a.record.Conn
	a.mu.Unlock()
	t := time.NewTimer(settleFor)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	cid, _ := nc.GetClientID() // 0 while not connected
	if was != (kv.Conn{ServerID: nc.ConnectedServerId(), ClientID: cid}) {
		return router.Errorf(router.ErrUnavailable, "instance %s of %s stood still, and lost its connection; nothing was executed", a.opts.Instance, a.opts.Server)
	}
	return nil
}

// dispatch hands the request to the backend, or to the instance that holds its
// session: the queue group may have picked any.
func (a *Agent) dispatch(ctx context.Context, in *wire.Inbound, out router.Stream) (*router.Reply, error) {
	if in.Session == "" && in.Instance == "" && a.opts.Relay != nil {
		if holder, ok := eras.Pinned(&in.Request); ok && holder != a.opts.Instance {
			return a.relayPinned(ctx, in, holder, out)
		}
	}
	if in.Session == "" || in.Instance != "" { // who names an instance follows the session himself
		return a.serve(ctx, &in.Request, out)
	}
	return a.follow.Serve(ctx, &in.Request, out)
}

// relayPinned hands the retry of a call to the instance that holds the call.
func (a *Agent) relayPinned(ctx context.Context, in *wire.Inbound, holder string, out router.Stream) (*router.Reply, error) {
	req := in.Request
	req.Instance, req.Principal = holder, ""
	reply, err := a.opts.Relay.Serve(ctx, &req, out)
	if errors.Is(err, router.ErrUnavailable) {
		return nil, router.PinnedGone(holder)
	}
	return reply, err
}
