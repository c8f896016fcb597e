package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/failover"
)

// moveTimeout bounds how long a node that stops waits for agents to move to
// others. Those that do not heed the call are cut off.
const moveTimeout = 5 * time.Second

// sendAway asks agents and clients to go to other nodes.
func (n *node) sendAway() {
	if n.fabric == nil || n.fabric.Server() == nil {
		return
	}
	if told := n.fabric.SendAway(); told > 0 {
		n.log.Info("clients are sent to other nodes", "clients", told)
	}
}

// refuseFor is how long an edge that takes nothing new goes on saying so.
const refuseFor = 250 * time.Millisecond

// closeHTTP ends the HTTP server, which has refused requests since then. A
// connection that ends while a request is on its way leaves a client that can't
// know whether it was executed: so who uses one is first told, with the refusal
// of a request, that it ends.
func (n *node) closeHTTP(ctx context.Context, since time.Time) error {
	if n.http == nil {
		return nil
	}
	if n.fabric != nil && n.fabric.Clustered() { // else there is nowhere to go
		t := time.NewTimer(refuseFor - time.Since(since))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if n.http.Shutdown(ctx) != nil {
		return n.http.Close()
	}
	return nil
}

// awaitMoves waits until the agents connected to this node have gone.
func (n *node) awaitMoves(ctx context.Context) {
	if n.registry == nil || n.fabric == nil || !n.fabric.Clustered() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n.holdsInstances() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *node) holdsInstances() bool {
	for _, i := range n.registry.All() {
		if i.Node == n.fabric.Name() {
			return true
		}
	}
	return false
}

// closeAgents detaches what the node hosts, all at once: each waits for its own
// calls.
func (n *node) closeAgents(ctx context.Context) error {
	n.mu.Lock()
	agents := slices.Clone(n.agents)
	n.mu.Unlock()
	errs := make([]error, len(agents))
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() { errs[i] = a.Close(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// workingNodes knows the nodes that take new work, for the router, which asks
// for every request.
type workingNodes struct {
	idle atomic.Pointer[map[string]bool] // those that take none
}

// Healthy reports whether a node takes new work; one that nothing is known of
// does.
func (w *workingNodes) Healthy(name string) bool {
	idle := w.idle.Load()
	return idle == nil || !(*idle)[name]
}

// learn takes the nodes as they are.
func (w *workingNodes) learn(view []failover.NodeState) {
	idle := map[string]bool{}
	for _, s := range view {
		// A node that is never seen may be one that starts; and what this one
		// thinks of itself is no reason to go elsewhere, until it drains.
		bad := s.State == failover.Down && s.Cause != failover.NeverSeen || s.Health == failover.Unhealthy && s.State == failover.Up
		if s.Draining || bad && !s.Self {
			idle[s.Name] = true
		}
	}
	if old := w.idle.Load(); old == nil || !maps.Equal(*old, idle) {
		w.idle.Store(&idle)
	}
}
