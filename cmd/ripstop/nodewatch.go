package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ripstop/fabric/raft"
	"ripstop/failover"
	"ripstop/failover/nodes"
)

// watchNodes starts watching the other nodes.
func (n *node) watchNodes() error {
	var voters []string
	if n.settings.Cluster != nil {
		voters = n.settings.Cluster.Voters
	}
	w, err := nodes.Open(nodes.Options{
		Conn: n.fabric.Fabric(), Name: n.fabric.Name(), Self: n.report, Voters: voters,
		Config: n.settings.Monitor, Metrics: n.metrics, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.nodes.Store(w)
	routes := n.fabric.Routes()
	if routes == nil {
		return n.serveAdmin(nil)
	}
	r, err := n.followRoster(w)
	if err != nil {
		return err
	}
	if err := n.serveAdmin(r); err != nil {
		return err
	}
	if err := w.WatchSystem(n.fabric.System()); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	wake := make(chan struct{}, 1)
	stop := w.OnChange(func(e failover.Event) { n.onNode(e, wake) })
	n.wg.Go(func() {
		defer stop()
		n.removeGone(w, wake)
	})
	n.wg.Go(func() { n.followRoutes(routes, w) })
	n.wg.Go(func() { n.followGate(w) })
	n.wg.Go(func() { n.rebalance(w) })
	return nil
}

// onNode acts on what happened to another node.
func (n *node) onNode(e failover.Event, wake chan<- struct{}) {
	switch e.Kind {
	case failover.NodeDown:
		n.registry.NodeGone(e.Node, e.Server)
	case failover.NodeUp, failover.NodeRestarted:
		n.registry.NodeBack(e.Node)
		n.registry.Resync()
	}
	view := n.nodes.Load().View()
	n.working.learn(view)
	if len(usedNodes(view)) == 0 {
		n.joined.Store(false)
	}
	select {
	case wake <- struct{}{}:
	default:
	}
}

// removeEvery is how often records of nodes that are down are looked for,
// besides at every event.
const removeEvery = 5 * time.Second

// removeGone takes the records of nodes that are down out of the registry. The
// node that leads the meta group does it: there is one at most, and it is on
// the side that can write.
func (n *node) removeGone(w *nodes.Runner, wake <-chan struct{}) {
	tick := time.NewTicker(removeEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
		if !n.fabric.Voter() || raft.MetaLeader(n.fabric.Server()) != n.fabric.Name() {
			continue
		}
		for _, name := range n.goneNodes(w.View()) {
			ctx, cancel := context.WithTimeout(n.ctx, removeEvery)
			count, err := n.registry.RemoveNode(ctx, name)
			cancel()
			switch {
			case err != nil && n.ctx.Err() == nil:
				n.log.Warn("registry keeps records of a node that is down", "node", name, "err", err)
			case count > 0:
				n.log.Info("instances of a node that is down removed", "node", name, "instances", count)
			}
		}
	}
}

// settleAfter is how long after its start a node believes in records of nodes
// that it has never seen: all may be starting.
const settleAfter = 15 * time.Second

// goneNodes names the nodes whose records mean nothing any more: those that
// went down, and those that have records and were never seen.
func (n *node) goneNodes(view []failover.NodeState) []string {
	up := map[string]bool{n.fabric.Name(): true}
	gone := map[string]bool{}
	for _, p := range n.fabric.Routes().Peers() {
		up[p.Name] = true // it comes back: its records are its own to mend
	}
	for _, s := range view {
		up[s.Name] = up[s.Name] || s.State == failover.Up
		if s.State == failover.Down && s.Cause != failover.NeverSeen && !up[s.Name] {
			gone[s.Name] = true
		}
	}
	if time.Since(n.started) > settleAfter {
		for _, i := range n.registry.All() {
			if !up[i.Node] {
				gone[i.Node] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(gone))
}

// followRoutes tells the monitor of routes that come and go.
func (n *node) followRoutes(routes *raft.Watcher, w *nodes.Runner) {
	sub := routes.Subscribe()
	defer sub.Close()
	for {
		e, err := sub.Next(n.ctx)
		if err != nil {
			return
		}
		if e.Kind == raft.Up {
			n.metPeers.Store(true)
			n.registry.NodeBack(e.Peer.Name) // it can be reached; whether it is well, a call will tell
			w.RouteUp(e.Peer.Name)
		} else {
			w.RouteDown(e.Peer.Name, e.Dead)
		}
	}
}

// gateEvery is how often the gate is looked at. Raft says nowhere that a quorum
// is lost, so it is asked; the answer is in memory.
const gateEvery = 200 * time.Millisecond

// followGate says when the gate moves.
func (n *node) followGate(w *nodes.Runner) {
	tick := time.NewTicker(gateEvery)
	defer tick.Stop()
	was := ""
	for {
		n.lag.look(raft.Groups(n.fabric.Server()), time.Now())
		if is, why := n.gate(); is != was {
			if why != nil {
				n.log.Warn("write gate", "state", is, "was", was, "why", why)
			} else {
				n.log.Info("write gate", "state", is, "was", was)
			}
			was = is
			w.Changed()
		}
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// report is what this node says of itself to the others.
func (n *node) report() failover.Report {
	r := failover.Report{
		Region: n.fabric.Region(), Role: failover.Relay, ServerID: n.fabric.Server().ID(),
		Incarnation: n.fabric.Incarnation(), Started: n.started,
		Draining: n.draining.Load(), Clients: n.fabric.Connections(), Instances: len(n.registry.All()),
	}
	if n.keepsSessions.Load() {
		r.Pending = n.sessions.Pending()
	}
	if n.fabric.Voter() {
		r.Role = failover.Voter
		r.MetaLeader = raft.MetaLeader(n.fabric.Server())
		for _, g := range raft.Groups(n.fabric.Server()) {
			if g.Leads && g.Stream != "" {
				r.Leads = append(r.Leads, g.Stream)
			}
		}
	}
	if routes := n.fabric.Routes(); routes != nil {
		for _, p := range routes.Peers() {
			r.Routes = append(r.Routes, p.Name)
		}
	}
	var why error
	r.Gate, why = n.gate()
	r.Ready = !r.Draining && why == nil && n.unregistered() == "" && n.catchingUp() == ""
	for _, err := range []error{why, n.fabric.StorageError()} {
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	if !errors.Is(why, errAlone) { // which names them all
		r.Problems = append(r.Problems, n.fabric.Misconfigured()...)
	}
	return r
}

// errMinority says why a node does not write.
var (
	errFirst    = errors.New("no leader was elected yet: a new cluster elects its first one when all its voters have come")
	errMinority = errors.New("no leader is known: this node is on a side of a partition without the majority of the votes, or too many voters are down")
	errAlone    = errors.New("no other node of the cluster has been reached since the start")
)

// alone is errAlone with what was found at each of the peers.
func (n *node) alone() error {
	var found []string
	for _, e := range n.fabric.Search().Entries {
		if e.Error != "" {
			found = append(found, e.Error)
			continue
		}
		for _, a := range e.Addresses {
			if a.Error != "" {
				found = append(found, a.Error)
			}
		}
	}
	if len(found) == 0 {
		return errAlone
	}
	return fmt.Errorf("%w; it goes on looking: %s", errAlone, strings.Join(found, "; "))
}

// gate says whether buckets can be written from here, and why not. A relay
// knows no leader of its own: it goes by what voters say.
func (n *node) gate() (state string, why error) {
	routes := n.fabric.Routes()
	switch {
	case routes == nil:
		return failover.GateWritable, nil
	case n.fabric.Voter() && raft.MetaLeader(n.fabric.Server()) != "":
		return failover.GateWritable, nil
	case len(routes.Peers()) == 0 && !n.metPeers.Load():
		return failover.GateStandalone, n.alone()
	case n.fabric.Voter() && len(n.fabric.Roster()) == 0:
		return failover.GateReadOnly, errFirst
	case n.fabric.Voter():
		return failover.GateReadOnly, errMinority
	}
	if w := n.nodes.Load(); w != nil {
		for _, s := range w.View() {
			if s.State == failover.Up && s.Report.Role == failover.Voter && s.Report.Gate == failover.GateWritable {
				return failover.GateWritable, nil
			}
		}
	}
	return failover.GateReadOnly, errMinority
}
