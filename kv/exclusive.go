package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrAlreadyRegistered: another instance holds the server's name. Errors of
// this kind are *HeldError, which names it.
var ErrAlreadyRegistered = errors.New("already registered")

// HeldError says who holds a server's name.
type HeldError struct {
	Server    string `json:"server"`
	Instance  string `json:"instance"`
	Node      string `json:"node"`
	Agent     string `json:"agent"`
	Exclusive bool   `json:"exclusive"` // the holder wants the name for itself; else the one refused does
}

func (e *HeldError) Error() string {
	how := "held"
	if e.Exclusive {
		how = "held exclusively"
	}
	return fmt.Sprintf("%v: server %q is %s by instance %s on node %s (agent %s)", ErrAlreadyRegistered, e.Server, how, e.Instance, e.Node, e.Agent)
}

// Unwrap makes errors.Is know ErrAlreadyRegistered.
func (e *HeldError) Unwrap() error { return ErrAlreadyRegistered }

// heldBy says who stands in i's way: an exclusive holder, or for an exclusive
// registration any other instance. The caller holds reg.change.
func (r *Registrar) heldBy(i Instance) error {
	if c := r.reg.claims[i.Server]; c != nil && c.Instance != "" && c.Instance != i.Instance && !r.leftover(c.Claim) {
		return claimHeld(c.Claim)
	}
	return r.shownBeside(i)
}

// shownBeside is heldBy, but leaves it to the bucket's leader whether a claim
// stands. The caller holds reg.change.
func (r *Registrar) shownBeside(i Instance) error {
	for _, other := range r.reg.byServer[i.Server] {
		if other.Instance != i.Instance && (i.Exclusive || other.Exclusive) {
			return &HeldError{other.Server, other.Instance, other.Node, other.Agent, other.Exclusive}
		}
	}
	if other := r.claiming[i.Server]; other != "" && other != i.Instance {
		return &HeldError{Server: i.Server, Instance: other, Node: r.reg.opts.Node, Exclusive: true}
	}
	return nil
}

func claimHeld(c Claim) *HeldError {
	return &HeldError{c.Server, c.Instance, c.Node, c.Agent, true}
}

// leftover reports whether a claim is one of this node that nobody here holds:
// an earlier run's. The caller holds reg.change.
func (r *Registrar) leftover(c Claim) bool {
	_, held := r.reg.own[c.Server+"."+c.Instance]
	return c.Node == r.reg.opts.Node && !held && r.claiming[c.Server] != c.Instance
}

// acceptExclusive registers i once it holds its server's name, by CAS on the
// claim: among all nodes one succeeds. Without quorum nobody can.
func (r *Registrar) acceptExclusive(ctx context.Context, i Instance) error {
	r.reg.change.Lock()
	own, ok := r.reg.own[i.Key()]
	holds := ok && own.Exclusive
	var err error
	if !holds {
		r.remember(i) // before the question: what frees the name meanwhile is not missed
		if err = r.shownBeside(i); err == nil {
			r.claiming[i.Server] = i.Instance
		}
	}
	r.reg.change.Unlock()
	if holds {
		return r.accept(i, true)
	}
	if err != nil {
		return err
	}
	err = r.claim(ctx, i)
	if err == nil {
		err = r.accept(i, true)
	}
	r.reg.change.Lock()
	defer r.reg.change.Unlock()
	delete(r.claiming, i.Server)
	if err != nil {
		r.q.add(claimPrefix + i.Server) // it may have been applied
		return err
	}
	r.unwait(i.Server, i.Instance)
	return nil
}

// claim writes the claim of i's server.
func (r *Registrar) claim(ctx context.Context, i Instance) error {
	for {
		have, rev, err := r.getClaim(ctx, i.Server)
		if err != nil {
			return fmt.Errorf("server %q can't be claimed, the registry's bucket does not answer: %w", i.Server, err)
		}
		r.reg.change.Lock()
		free := have.Instance == "" || have.Instance == i.Instance || r.leftover(have)
		r.reg.change.Unlock()
		if !free {
			return claimHeld(have)
		}
		_, err = r.putClaim(ctx, i, rev)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("server %q can't be claimed: %w", i.Server, err)
		}
	}
}

func (r *Registrar) putClaim(ctx context.Context, i Instance, base uint64) (uint64, error) {
	c := Claim{
		Schema: recordSchema, Server: i.Server, Instance: i.Instance, Run: i.Run, Node: r.reg.opts.Node, Agent: i.Agent,
		Since: time.Now().UTC().Truncate(time.Millisecond), Mutation: Mutation{r.reg.opts.Node, r.opts.Incarnation, r.n.Add(1)},
	}
	data, err := Encode(c)
	if err != nil {
		return 0, err
	}
	return r.reg.bucket.Update(ctx, c.Key(), data, base)
}

// getClaim asks the bucket's leader. A claim that is gone, or unreadable, has no
// instance.
func (r *Registrar) getClaim(ctx context.Context, server string) (Claim, uint64, error) {
	e, err := r.reg.bucket.Get(ctx, claimPrefix+server)
	if err != nil || e.Gone {
		return Claim{}, e.Rev, err
	}
	c, err := Decode[Claim](e.Value)
	if err != nil {
		r.log.Warn("exclusive registration is unreadable and gives way", "server", server, "revision", e.Rev, "err", err)
		return Claim{}, e.Rev, nil
	}
	return c, e.Rev, nil
}

// convergeClaim makes the claim of a server what it should be, and the instances
// of this node bow to another's.
func (r *Registrar) convergeClaim(ctx context.Context, server string) error {
	have, rev, err := r.getClaim(ctx, server)
	if err != nil {
		return err
	}
	r.reg.change.Lock()
	if r.claiming[server] != "" {
		r.reg.change.Unlock()
		return nil
	}
	var holder *Instance
	var bow []Instance
	for _, i := range r.reg.byServer[server] {
		own := r.reg.own[i.Key()]
		switch {
		case own == nil:
		case own.Exclusive && (have.Instance == "" || have.Instance == own.Instance):
			holder = own
		case have.Instance != "" && have.Instance != own.Instance && have.Node != r.reg.opts.Node:
			bow = append(bow, *own)
		}
	}
	r.reg.change.Unlock()
	for _, i := range bow {
		if r.drop(i, claimHeld(have).Error()) {
			r.remember(i)
			if err := r.census(census{Instance: i.Instance}); err != nil { // it registers again, and is told why not
				return err
			}
		}
	}
	switch {
	case holder != nil && have.Instance == "":
		_, err = r.putClaim(ctx, *holder, rev)
	case holder == nil && have.Instance != "" && have.Node == r.reg.opts.Node:
		err = r.reg.bucket.Purge(ctx, claimPrefix+server, rev)
	}
	if errors.Is(err, ErrConflict) {
		r.q.add(claimPrefix + server)
		return nil
	}
	return err
}

// remember notes that i was refused, so that it is told when to try again.
func (r *Registrar) remember(i Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[i.Server] == nil {
		r.waiting[i.Server] = map[string]bool{}
	}
	r.waiting[i.Server][i.Instance] = true
}

func (r *Registrar) unwait(server, instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.waiting[server], instance); len(r.waiting[server]) == 0 {
		delete(r.waiting, server)
	}
}

// wakeWaiting tells those that were refused that a server's name may be free.
func (r *Registrar) wakeWaiting() {
	for server := range r.q.takeWakes() {
		r.mu.Lock()
		waiting := r.waiting[server]
		delete(r.waiting, server)
		r.mu.Unlock()
		for instance := range waiting {
			if err := r.census(census{Instance: instance}); err != nil {
				r.log.Warn("a waiting instance was not told", "server", server, "instance", instance, "err", err)
			}
		}
	}
}

// claimOf returns the server whose claim has this key.
func claimOf(key string) (server string, ok bool) { return strings.CutPrefix(key, claimPrefix) }
