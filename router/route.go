package router

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"ripstop/kv"
)

// Directory knows the instances of the fabric; kv.Registry is one. The slices
// it returns are sorted by instance id and replaced, never changed.
type Directory interface {
	Instances(server string) []*kv.Instance
	Servers() []string
}

// Nodes says which nodes take new work: those that are up and neither unhealthy
// nor draining. It is asked for every request, so it must answer from memory.
type Nodes interface {
	Healthy(node string) bool
}

// RouterOptions tune a Router. Zero values are fine.
type RouterOptions struct {
	Node  string // this node's name: instances attached to it are preferred
	Nodes Nodes  // nil = all nodes take work

	// Sessions says where sessions are; nil = where their ids say.
	Sessions Sessions

	// Speaks says why requests can't be sent to an instance, as when it speaks
	// another wire version; nil = all can.
	Speaks func(*kv.Instance) error

	// Pinned names the one instance that can answer a modern request, as for the
	// retry of a call that it holds. It is asked for every one; nil = any can.
	Pinned func(*Request) (instance string, ok bool)
}

// Router is where a request is routed: it chooses the instance and hands the
// request to it, in process if it is attached to this node, else through
// remote. A session's requests go to the instance that its id names.
type Router struct {
	dir    Directory
	remote Handler
	opts   RouterOptions
	follow *Follower // nil = sessions stay where they are
	tools  tools     // that may be called twice, of requests without a session
	began  time.Time // what times of peers count from

	mu    sync.RWMutex
	local map[string]Handler // by instance id
	pools map[string]*pool   // by server
	gen   uint64             // counts changes of local, which pools are made from
}

var _ Handler = (*Router)(nil)

// NewRouter returns a router over dir; remote reaches instances elsewhere.
func NewRouter(dir Directory, remote Handler, opts RouterOptions) *Router {
	r := &Router{
		dir: dir, remote: remote, opts: opts, began: time.Now(),
		local: map[string]Handler{}, pools: map[string]*pool{},
	}
	if opts.Sessions != nil {
		r.follow = &Follower{Sessions: opts.Sessions, Send: r.sendTo}
	}
	return r
}

// sendTo hands a session's request to the instance it names.
func (r *Router) sendTo(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	c := r.find(req.Server, req.Instance)
	if c == nil {
		return nil, Errorf(ErrUnavailable, "instance %s of %q is gone; nothing was executed", req.Instance, req.Server)
	}
	if c.deaf != nil {
		return nil, Errorf(ErrUnavailable, "the session's instance: %v", c.deaf)
	}
	return r.send(ctx, req, c, out)
}

// Pick returns the instance of server that a session should move to: any that
// would get a new one, but not avoid. It returns nil if there is none.
func (r *Router) Pick(server, avoid string) *kv.Instance {
	var tried attempts
	if c := r.find(server, avoid); c != nil {
		tried.peers[0], tried.n = c.peer, 1
	}
	c := r.choose(&Request{Server: server, Era: EraLegacy}, &tried)
	if c == nil || c.Instance.Instance == avoid {
		return nil
	}
	return c.Instance
}

// Attach makes an instance of this node reachable without a network hop, until
// detach is called.
func (r *Router) Attach(instance string, h Handler) (detach func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.local[instance] = h
	r.gen++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.local, instance)
		r.gen++
	}
}

// Forget drops what the router keeps of a server if it has no instance left.
func (r *Router) Forget(server string) {
	if len(r.dir.Instances(server)) > 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pools, server)
}

// maxTries is how many instances a request is offered to. Each refusal keeps
// that instance out of the next requests' way, so more would only make callers
// wait.
const maxTries = 3

// attempts are the instances a request was offered to, in vain.
type attempts struct {
	n     int
	peers [maxTries]*peer
	nodes [maxTries]string
}

// Serve routes req. Where an instance says that it executed nothing, the next
// candidate is tried, [maxTries] in all; in any other case there is no second
// try.
func (r *Router) Serve(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	if req.Session != "" {
		return r.serveSession(ctx, req, out)
	}
	if r.opts.Pinned != nil && req.Era == EraModern {
		if instance, ok := r.opts.Pinned(req); ok {
			return r.servePinned(ctx, req, instance, out)
		}
	}
	for wait := unreachedLeast; ; wait *= 2 {
		reply, err := r.serveAny(ctx, req, out)
		if !unreached(err) || wait > unreachedMost || !pause(ctx, wait) {
			return reply, err
		}
	}
}

// An instance that is registered and can't be reached may have just come, or the
// routes of its node: subscriptions take a moment to be known everywhere, up to a
// second where nats-server makes the account's own route anew. So it
// is tried again after unreachedLeast, twice that, and so on to unreachedMost.
const (
	unreachedLeast = 20 * time.Millisecond
	unreachedMost  = 640 * time.Millisecond
)

func unreached(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Unreached
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *Router) serveAny(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	var tried attempts
	var last error
	for tried.n < maxTries {
		c := r.choose(req, &tried)
		if c == nil || errors.Is(last, ErrOutcomeUnknown) && !r.mayRepeat(ctx, req, c) {
			break
		}
		reply, err := r.send(ctx, req, c, out)
		again := refusal(err, req.Server) || errors.Is(err, ErrOutcomeUnknown) && req.Message != nil && maybeRepeatable(req)
		if err == nil || !again || ctx.Err() != nil {
			return reply, err
		}
		if errors.Is(last, ErrOutcomeUnknown) && !errors.Is(err, ErrOutcomeUnknown) {
			err = last // the one before may have executed it
		}
		tried.peers[tried.n], tried.nodes[tried.n] = c.peer, c.Node
		tried.n++
		last = err
	}
	if last == nil {
		return nil, r.nobody(req.Server)
	}
	return nil, gaveUp(last, req.Server, tried.n)
}

// mayRepeat reports whether req, which may have been executed, may be executed
// again at c.
func (r *Router) mayRepeat(ctx context.Context, req *Request, c *candidate) bool {
	return r.tools.repeatable(ctx, req, func(ctx context.Context, req *Request, out Stream) (*Reply, error) {
		return r.send(ctx, req, c, out)
	})
}

// Suspect keeps an instance that hangs out of the way for a while.
func (r *Router) Suspect(server, instance string) {
	if c := r.find(server, instance); c != nil {
		c.peer.hangs(r.now())
	}
}

// refusal reports whether err says that the instance executed nothing, and
// another may. What a router further down has given up on is no fault of this
// instance.
func refusal(err error, server string) bool {
	var e *Error
	if !errors.As(err, &e) || e.routed != "" && e.routed != server {
		return false
	}
	return e.Code == CodeUnavailable || e.Code == CodeOverloaded
}

func gaveUp(err error, server string, tried int) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	own := *e
	own.routed = server
	if tried > 1 && e.Code != CodeOutcomeUnknown {
		own.Text = Errorf(e, "%d instances of %q were tried and none took the call; the last: %s", tried, server, e.Text).Text
	}
	return &own
}

func (r *Router) serveSession(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	if r.follow != nil {
		return r.follow.Serve(ctx, req, out)
	}
	instance := SessionInstance(req.Session)
	c := r.find(req.Server, instance)
	if instance == "" || c == nil {
		return nil, sessionGone(req)
	}
	if c.deaf != nil {
		return nil, Errorf(ErrUnavailable, "the session's instance: %v", c.deaf)
	}
	for wait := unreachedLeast; ; wait *= 2 {
		reply, err := r.send(ctx, req, c, out)
		if errors.Is(err, ErrUnavailable) && r.find(req.Server, instance) == nil {
			return nil, sessionGone(req)
		}
		if !unreached(err) || wait > unreachedMost || !pause(ctx, wait) {
			return reply, err
		}
	}
}

// servePinned sends req to the one instance that can answer it.
func (r *Router) servePinned(ctx context.Context, req *Request, instance string, out Stream) (*Reply, error) {
	c := r.find(req.Server, instance)
	if c == nil {
		return nil, PinnedGone(instance)
	}
	if c.deaf != nil {
		return nil, Errorf(ErrUnavailable, "the call's instance: %v", c.deaf)
	}
	reply, err := r.send(ctx, req, c, out)
	if errors.Is(err, ErrUnavailable) && r.find(req.Server, instance) == nil {
		return nil, PinnedGone(instance)
	}
	return reply, err
}

// PinnedGone is the error for a call that only instance can go on with, which is
// no more.
func PinnedGone(instance string) error {
	return Errorf(ErrOutcomeUnknown, "the call waited at instance %.20s, which is gone: what the server did before it asked for input is done; check, and send it again without requestState", instance)
}

func sessionGone(req *Request) error {
	return Errorf(ErrSessionNotFound, "session %.64q of server %q has ended or never was; send initialize to open one", req.Session, req.Server)
}

// send hands req to the instance c, and notes how it went.
func (r *Router) send(ctx context.Context, req *Request, c *candidate, out Stream) (*Reply, error) {
	c.peer.inFlight.Add(1)
	defer c.peer.inFlight.Add(-1)
	start := r.now()
	var reply *Reply
	var err error
	if c.handler != nil {
		reply, err = c.handler.Serve(ctx, req, out)
	} else {
		to := *req
		to.Instance = c.Instance.Instance
		reply, err = r.remote.Serve(ctx, &to, out)
	}
	r.judge(ctx, req, c, start, err)
	return reply, err
}

// judge draws from a call what the next choice should know.
func (r *Router) judge(ctx context.Context, req *Request, c *candidate, start time.Duration, err error) {
	if err == nil {
		c.peer.well()
		if req.Op == OpMessage && req.Method() != "subscriptions/listen" { // a stream's length is no latency
			now := r.now()
			c.peer.took(now, now-start)
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.routed != "" && e.routed != req.Server {
		return
	}
	switch e.Code {
	case CodeOverloaded:
		c.peer.full(r.now())
	case CodeUnavailable, CodeOutcomeUnknown:
		c.peer.failed(r.now())
	}
}

// now is the time since the router began; monotonic.
func (r *Router) now() time.Duration { return time.Since(r.began) }

// nobody says why no instance could even be tried.
func (r *Router) nobody(server string) error {
	if p := r.pool(server); p != nil {
		for _, c := range p.all {
			if c.deaf != nil {
				return Errorf(ErrUnavailable, "none of the %d instances of %q can be spoken with: %v; nothing was executed", len(p.all), server, c.deaf)
			}
		}
	}
	known := r.dir.Servers()
	if len(known) == 0 {
		return Errorf(ErrServerNotFound, "server %q is not attached, and no other is; `ripstop serve %s -- COMMAND` attaches one", server, server)
	}
	return Errorf(ErrServerNotFound, "server %q is not attached; attached are: %s", server, strings.Join(known[:min(len(known), 20)], ", "))
}
