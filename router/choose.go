package router

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"ripstop/kv"
)

// Where an instance is, nearest first. All instances that a registry knows are
// of one region.
const (
	tierHere = iota // attached to this process
	tierNode        // its agent is connected to this node
	tierFar         // on another node, one hop away
	tiers
)

// localBound is how many calls an instance of this node may have in flight from
// here and still be preferred unseen. Beyond, it competes with those elsewhere,
// so that a near instance is never a queue while far ones idle.
const localBound = 8

// probes is how many instances are looked at for one that may be chosen.
const probes = 32

// candidate is an instance and what the choice needs to know of it.
type candidate struct {
	*kv.Instance
	peer    *peer
	handler Handler // nil = remote
	deaf    error   // why it can't be spoken with
}

// pool is a server's instances. It is made anew when the directory has another
// list, and its candidates never change.
type pool struct {
	list    []*kv.Instance // what it was made of
	gen     uint64
	all     []*candidate                // as list
	shelves [3]atomic.Pointer[shelving] // by era, made when first asked for
}

// shelving is a server's instances as a request of one era sees them: sorted
// into ranks, and within a rank by tier.
type shelving [ranks][tiers][]*candidate

// A rank is worse than the one before it: first what speaks the era, or may;
// then what does not; then, in the same order, what failed its probe.
const (
	rankMismatch = 1
	rankProblem  = 2
	ranks        = 4
)

func (p *pool) shelved(era Era, node string) *shelving {
	if s := p.shelves[era].Load(); s != nil {
		return s
	}
	s := new(shelving)
	name := era.String()
	for _, c := range p.all {
		if c.deaf != nil {
			continue
		}
		rank, tier := 0, tierFar
		if era != EraBare && len(c.Eras) > 0 && !slices.Contains(c.Eras, name) {
			rank = rankMismatch
		}
		if c.Problem != "" {
			rank += rankProblem
		}
		switch {
		case c.handler != nil:
			tier = tierHere
		case c.Node == node && node != "":
			tier = tierNode
		}
		shelf := &s[rank][tier]
		*shelf = append(*shelf, c)
	}
	p.shelves[era].Store(s) // another may have done the same
	return s
}

// choose picks the instance for a request that may go to any; nil if there is
// none. It keeps away from instances that refused lately, from nodes that take
// no work and from nodes that this request has failed on, unless that leaves
// only a worse rank; and in any case from the instances it has failed on.
func (r *Router) choose(req *Request, tried *attempts) *candidate {
	p := r.pool(req.Server)
	if p == nil {
		return nil
	}
	if len(p.all) == 1 && tried.n == 0 && p.all[0].deaf == nil {
		return p.all[0]
	}
	now := r.now()
	s := p.shelved(req.Era, r.opts.Node)
	for rank := range s {
		for _, strict := range [2]bool{true, false} {
			if c := r.pick(&s[rank], tried, now, strict); c != nil {
				c.peer.try(now)
				return c
			}
		}
	}
	return nil
}

// pick takes the nearest, or a better one if that has enough to do.
func (r *Router) pick(rank *[tiers][]*candidate, tried *attempts, now time.Duration, strict bool) *candidate {
	var best *candidate
	for _, shelf := range rank {
		if len(shelf) == 0 {
			continue
		}
		c := r.sample(shelf, tried, now, strict)
		if c == nil || best != nil && !better(c.peer, best.peer, now) {
			continue
		}
		best = c
		if best.peer.inFlight.Load() < localBound {
			break
		}
	}
	return best
}

// sample is the power of two choices: the better of two instances at random.
func (r *Router) sample(list []*candidate, tried *attempts, now time.Duration, strict bool) *candidate {
	n := len(list)
	start := rand.IntN(n)
	first := -1
	for i := range min(n, probes) {
		at := (start + i) % n
		if r.may(list[at], tried, now, strict) {
			first = at
			break
		}
	}
	if first < 0 {
		return nil
	}
	a := list[first]
	if n == 1 {
		return a
	}
	start = first + 1 + rand.IntN(n-1)
	for i := range min(n, probes) {
		at := (start + i) % n
		if at == first || !r.may(list[at], tried, now, strict) {
			continue
		}
		if b := list[at]; better(b.peer, a.peer, now) {
			return b
		}
		break
	}
	return a
}

// may reports whether c may be chosen.
func (r *Router) may(c *candidate, tried *attempts, now time.Duration, strict bool) bool {
	for i := range tried.n {
		if tried.peers[i] == c.peer || strict && c.handler == nil && tried.nodes[i] == c.Node {
			return false
		}
	}
	return !strict || c.peer.free(now) && (r.opts.Nodes == nil || r.opts.Nodes.Healthy(c.Node))
}

// find returns the instance of that id, or nil.
func (r *Router) find(server, instance string) *candidate {
	p := r.pool(server)
	if p == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(p.list, instance, func(c *kv.Instance, id string) int { return cmp.Compare(c.Instance, id) })
	if !ok {
		return nil
	}
	return p.all[i]
}

// pool returns the instances of server as they are now; nil if there are none.
func (r *Router) pool(server string) *pool {
	list := r.dir.Instances(server)
	r.mu.RLock()
	p, gen := r.pools[server], r.gen
	r.mu.RUnlock()
	if p != nil && p.gen == gen && sameList(p.list, list) {
		return p
	}
	if p == nil && len(list) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fill(server, list)
}

// sameList tells lists by where they are: a pool holds on to its own, so that no
// other can be there.
func sameList(a, b []*kv.Instance) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// fill makes the pool of server from list. The caller holds r.mu.
func (r *Router) fill(server string, list []*kv.Instance) *pool {
	old := r.pools[server]
	p := &pool{list: list, gen: r.gen, all: make([]*candidate, 0, len(list))}
	known := old != nil && old.gen == r.gen // what is the same still is
	at := 0
	for _, i := range list { // both lists are sorted, and have most in common
		for old != nil && at < len(old.list) && old.list[at] != i && old.list[at].Instance < i.Instance {
			at++
		}
		if known && at < len(old.list) && old.list[at] == i {
			p.all = append(p.all, old.all[at])
			continue
		}
		c := &candidate{Instance: i, handler: r.local[i.Instance], peer: new(peer)}
		if old != nil && at < len(old.list) && old.list[at].Instance == i.Instance {
			c.peer = old.all[at].peer
		}
		if r.opts.Speaks != nil && c.handler == nil {
			c.deaf = r.opts.Speaks(i)
		}
		p.all = append(p.all, c)
	}
	if len(list) == 0 {
		delete(r.pools, server)
		return nil
	}
	r.pools[server] = p
	return p
}
