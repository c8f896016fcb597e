package router

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"ripstop/kv"
)

// Directory knows the instances of the fabric; kv.Registry is one.
type Directory interface {
	Instances(server string) []*kv.Instance
	Servers() []string
}

// Router is where a request is routed: it chooses the instance and hands the
// request to it, in process if it is attached to this node, else through
// remote. A session's requests go to the instance that its id names.
type Router struct {
	dir    Directory
	remote Handler

	mu    sync.RWMutex
	local map[string]Handler       // by instance id
	load  map[string]*atomic.Int64 // calls in flight from here, by instance id
	turn  atomic.Uint64            // breaks ties
}

var _ Handler = (*Router)(nil)

// NewRouter returns a router over dir; remote reaches instances elsewhere.
func NewRouter(dir Directory, remote Handler) *Router {
	return &Router{dir: dir, remote: remote, local: map[string]Handler{}, load: map[string]*atomic.Int64{}}
}

// Attach makes an instance of this node reachable without a network hop, until
// detach is called.
func (r *Router) Attach(instance string, h Handler) (detach func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.local[instance] = h
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.local, instance)
	}
}

// Forget drops what the router keeps of an instance that is gone.
func (r *Router) Forget(instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.load, instance)
}

// Serve routes req. Where no instance took it and nothing was executed, the
// next candidate is tried; after that there is no second try.
func (r *Router) Serve(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	if req.Session != "" {
		return r.serveSession(ctx, req, out)
	}
	var tried []string
	for {
		c, ok := r.choose(req, tried)
		if !ok {
			return nil, r.nobody(req.Server, len(tried))
		}
		reply, err := r.send(ctx, req, c.Instance, out)
		// ErrServerNotFound from a chosen instance means it has just left.
		if err == nil || !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return reply, err
		}
		tried = append(tried, c.Instance)
		if len(tried) >= len(r.dir.Instances(req.Server)) {
			return nil, err
		}
	}
}

func (r *Router) serveSession(ctx context.Context, req *Request, out Stream) (*Reply, error) {
	instance := SessionInstance(req.Session)
	if instance == "" || !r.knows(req.Server, instance) {
		return nil, sessionGone(req)
	}
	reply, err := r.send(ctx, req, instance, out)
	if errors.Is(err, ErrUnavailable) && !r.knows(req.Server, instance) {
		return nil, sessionGone(req)
	}
	return reply, err
}

func sessionGone(req *Request) error {
	return Errorf(ErrSessionNotFound, "session %.64q of server %q has ended or never was; send initialize to open one", req.Session, req.Server)
}

// knows reports whether instance is one of server's.
func (r *Router) knows(server, instance string) bool {
	for _, c := range r.dir.Instances(server) {
		if c.Instance == instance {
			return true
		}
	}
	return false
}

// choose picks the instance for a request that may go to any: one that speaks
// the request's era, attached to this node if there is one, with the fewest
// calls in flight from here.
func (r *Router) choose(req *Request, tried []string) (*kv.Instance, bool) {
	list := r.dir.Instances(req.Server)
	if len(list) == 1 && len(tried) == 0 {
		return list[0], true
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var best *kv.Instance
	bestRank, found := int64(0), false
	turn := int(r.turn.Add(1))
	for i := range list {
		c := list[(i+turn)%len(list)]
		if contains(tried, c.Instance) {
			continue
		}
		if rank := r.rank(req, c); !found || rank < bestRank {
			best, bestRank, found = c, rank, true
		}
	}
	return best, found
}

// rank orders candidates; less is better. The caller holds r.mu.
func (r *Router) rank(req *Request, c *kv.Instance) int64 {
	var rank int64
	if n := r.load[c.Instance]; n != nil {
		rank = n.Load()
	}
	if _, here := r.local[c.Instance]; !here {
		rank += 1 << 40
	}
	if req.Era != EraBare && len(c.Eras) > 0 && !contains(c.Eras, req.Era.String()) {
		rank += 1 << 50
	}
	if c.Problem != "" {
		rank += 1 << 51
	}
	return rank
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (r *Router) send(ctx context.Context, req *Request, instance string, out Stream) (*Reply, error) {
	r.mu.RLock()
	h, n := r.local[instance], r.load[instance]
	r.mu.RUnlock()
	if n == nil {
		n = r.counter(instance)
	}
	n.Add(1)
	defer n.Add(-1)
	if h != nil {
		return h.Serve(ctx, req, out)
	}
	to := *req
	to.Instance = instance
	return r.remote.Serve(ctx, &to, out)
}

func (r *Router) counter(instance string) *atomic.Int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.load[instance]
	if n == nil {
		n = new(atomic.Int64)
		r.load[instance] = n
	}
	return n
}

func (r *Router) nobody(server string, tried int) error {
	if tried > 0 {
		return Errorf(ErrUnavailable, "none of the %d instances of %q answers; nothing was executed", tried, server)
	}
	known := r.dir.Servers()
	if len(known) == 0 {
		return Errorf(ErrServerNotFound, "server %q is not attached, and no other is; `ripstop serve %s -- COMMAND` attaches one", server, server)
	}
	return Errorf(ErrServerNotFound, "server %q is not attached; attached are: %s", server, strings.Join(known[:min(len(known), 20)], ", "))
}
