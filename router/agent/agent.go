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
	"ripstop/router/wire"
)

// Options say what to attach and where.
type Options struct {
	Server    string         // logical server name; see router.CheckServerName
	Instance  string         // instance id; "" = a new one
	Transport string         // stdio, http or go, for the registry
	Backend   router.Backend // closed by Agent.Close
	Conn      *nats.Conn     // stays the caller's to close
	Relay     router.Handler // reaches other instances of the server, for requests of their sessions

	Scope     string // kv.ScopeGlobal (or ""), or kv.ScopeLocal: known to the node it is attached to only
	Exclusive bool   // refuse to share the server's name with another instance, anywhere in the cluster
	Standby   bool   // with Exclusive: wait while another has the name, and take over when it goes

	Software     string        // version of ripstop, for the registry
	MaxInFlight  int           // calls at once; 0 = 4096
	ProbeTimeout time.Duration // how long the server may take to say what it is; 0 = 60 s (npx downloads)
	Logger       *slog.Logger
}

// Agent is an attached instance. It is a router.Handler, so that an edge in the
// same process calls it without a network hop.
type Agent struct {
	opts Options
	log  *slog.Logger
	reg  kv.RegistryClient

	subs       []*nats.Subscription // as long as it is attached
	stats      stats
	table      table // calls that came over NATS
	workers    workers
	inFlight   atomic.Int64
	draining   atomic.Bool
	registered chan struct{} // closed after the first registration
	refused    chan error    // why the name can't be had

	ctx    context.Context // ends with Close; parent of calls over NATS
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of the agent and its calls

	probing sync.Once // of an exclusive instance

	mu      sync.Mutex
	record  kv.Instance
	changed bool                 // the record differs from what was registered last
	shared  []*nats.Subscription // on what any instance of the server may answer; the queue group's first
	asleep  bool                 // another holds the name
	again   chan struct{}        // asks the registration loop for another round
	closed  bool                 // Close was called
	stopped bool                 // no call is taken any more
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
		reg:        kv.RegistryClient{Conn: opts.Conn},
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
		Wire: wire.Version, Started: time.Now().UTC().Truncate(time.Millisecond),
		Scope: opts.Scope, Exclusive: opts.Exclusive, Standby: opts.Standby, Run: rand.Text()[:10],
	}
	if opts.Scope == "" {
		a.record.Scope = kv.ScopeGlobal
	}
	if err := a.subscribe(); err != nil {
		a.cancel()
		return nil, errors.Join(fmt.Errorf("attach %s: %w", opts.Server, err), a.unsubscribe())
	}
	a.wg.Go(a.keepRegistered)
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

func (a *Agent) subscribe() error {
	nc, server, id := a.opts.Conn, a.opts.Server, a.opts.Instance
	add := func(sub *nats.Subscription, err error) error {
		if err == nil {
			a.subs = append(a.subs, sub)
		}
		return err
	}
	return errors.Join(
		add(nc.Subscribe(wire.InstanceSubject(server, id), a.onRequest)),
		add(nc.Subscribe(wire.ControlSubject(server, "*"), a.table.onControl)),
		add(a.reg.OnCensus(id, a.registerSoon)),
	)
}

// join takes requests that any instance of the server may answer, and shows the
// instance as a micro service. It waits for the registry's consent: another may
// hold the name.
func (a *Agent) join() error {
	joined, err := a.subscribeShared()
	if err != nil || !joined {
		return err
	}
	return a.opts.Conn.Flush() // what is registered must be reachable
}

func (a *Agent) subscribeShared() (joined bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asleep = false
	if len(a.shared) > 0 || a.closed {
		return false, nil
	}
	add := func(sub *nats.Subscription, err error) error {
		if err == nil {
			a.shared = append(a.shared, sub)
		}
		return err
	}
	err = add(a.opts.Conn.QueueSubscribe(wire.ServerSubject(a.opts.Server), wire.QueueGroup, a.onRequest))
	if err == nil {
		err = a.subscribeMicro(add)
	}
	if err == nil {
		return true, nil
	}
	err = errors.Join(err, unsubscribe(a.shared))
	a.shared = nil
	return false, err
}

// leave undoes join: another has the name.
func (a *Agent) leave() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asleep = true
	err := unsubscribe(a.shared)
	a.shared = nil
	return err
}

func (a *Agent) unsubscribe() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return unsubscribe(append(a.subs, a.shared...))
}

func unsubscribe(subs []*nats.Subscription) error {
	var errs []error
	for _, s := range subs {
		if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

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
		return nil, router.Errorf(router.ErrOverloaded, "instance %s of %s has %d calls in flight, its limit; nothing was executed", a.opts.Instance, a.opts.Server, a.opts.MaxInFlight)
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
	return a.opts.Backend.Serve(ctx, req, out)
}

func (a *Agent) answer(msg *nats.Msg) {
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
	reply, err := a.dispatch(ctx, in, out)
	switch {
	case err != nil && ctx.Err() != nil && a.ctx.Err() == nil:
		return // cancelled by the caller, who does not wait for an answer
	case err != nil:
		a.respond(msg.Reply, router.ErrorReply(in.ID(), err), true)
	default:
		a.respond(msg.Reply, reply, false)
	}
}

// dispatch hands the request to the backend, or to the instance that holds its
// session: the queue group may have picked any.
func (a *Agent) dispatch(ctx context.Context, in *wire.Inbound, out router.Stream) (*router.Reply, error) {
	owner := router.SessionInstance(in.Session)
	if in.Session == "" || owner == a.opts.Instance || in.Instance != "" {
		return a.serve(ctx, &in.Request, out)
	}
	if owner == "" || a.opts.Relay == nil {
		return nil, router.Errorf(router.ErrSessionNotFound, "session %q is not one of this fabric; send initialize to open one", clip(in.Session))
	}
	req := in.Request
	req.Instance, req.Principal = owner, ""
	reply, err := a.opts.Relay.Serve(ctx, &req, out)
	if errors.Is(err, router.ErrUnavailable) {
		return nil, router.Errorf(router.ErrSessionNotFound, "session %s ended with its instance; send initialize to open another", in.Session)
	}
	return reply, err
}

func clip(s string) string {
	return s[:min(len(s), 80)]
}

// respond sends the last frame. A reply that is too large for NATS becomes an
// error that says so.
func (a *Agent) respond(to string, r *router.Reply, failed bool) {
	err := a.opts.Conn.PublishMsg(wire.ReplyMsg(to, a.opts.Instance, r, failed))
	if errors.Is(err, nats.ErrMaxPayload) {
		id := replyID(r.Body)
		r = router.ErrorReply(id, router.Errorf(router.ErrTooLarge, "the result has %d bytes, more than the fabric carries; it was executed", len(r.Body)))
		err = a.opts.Conn.PublishMsg(wire.ReplyMsg(to, a.opts.Instance, r, true))
	}
	if err != nil {
		a.log.Warn("reply not sent", "err", err)
	}
}

// frameStream publishes a call's messages as "msg" frames.
type frameStream struct {
	a  *Agent
	to string
}

func (s *frameStream) Send(ctx context.Context, msg []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(msg) == 0 {
		return s.a.opts.Conn.PublishMsg(wire.AliveMsg(s.to, s.a.opts.Instance))
	}
	return s.a.opts.Conn.PublishMsg(wire.StreamMsg(s.to, s.a.opts.Instance, msg))
}

// Close detaches the instance: it leaves the registry and the queue group, the
// calls in flight finish until ctx ends, then the backend is closed. It is
// idempotent.
func (a *Agent) Close(ctx context.Context) error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	record := a.record
	a.mu.Unlock()

	a.draining.Store(true)
	var errs []error
	if a.opts.Conn.IsConnected() {
		if err := a.reg.Remove(ctx, record); err != nil && !errors.Is(err, nats.ErrNoResponders) {
			errs = append(errs, err)
		}
	}
	a.leaveQueue(ctx)
	a.table.drain(ctx)
	errs = append(errs, a.unsubscribe())
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	a.cancel()
	errs = append(errs, a.opts.Backend.Close())
	a.wg.Wait()
	err := errors.Join(errs...)
	if err != nil {
		return fmt.Errorf("detach %s: %w", a.opts.Server, err)
	}
	return nil
}

// leaveQueue stops taking requests that any instance may answer, and returns
// when those already received have been handed on. Requests of this instance's
// sessions are still taken.
func (a *Agent) leaveQueue(ctx context.Context) {
	a.mu.Lock()
	shared := a.shared
	a.mu.Unlock()
	if len(shared) == 0 {
		return
	}
	queue := shared[0]
	closed := queue.StatusChanged(nats.SubscriptionClosed)
	if queue.Drain() != nil {
		return // the connection is gone, and the subscription with it
	}
	select {
	case <-closed:
	case <-ctx.Done():
	}
}
