package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ripstop/fabric/admin"
	"ripstop/fabric/raft"
	"ripstop/failover"
	"ripstop/failover/nodes"
	"ripstop/kv"
)

// rosterEvery is how often the committed roster is read. It changes by an
// operator's command only, which tells no node but its own.
const rosterEvery = 2 * time.Second

// roster keeps this node in agreement with the committed list of voters, and
// changes it when a node is removed for good.
type roster struct {
	n    *node
	w    *nodes.Runner
	book *kv.RosterBook
}

var _ admin.Roster = (*roster)(nil)

func (n *node) followRoster(w *nodes.Runner) (*roster, error) {
	book, err := kv.NewRosterBook(n.fabric.Fabric(), n.fabric.Region(), n.fabric.Votes(), n.fabric.Name())
	if err != nil {
		return nil, err
	}
	r := &roster{n: n, w: w, book: book}
	if known := n.fabric.Roster(); len(known) > 0 {
		w.SetVoters(known)
	}
	n.wg.Go(r.run)
	return r, nil
}

func (r *roster) run() {
	tick := time.NewTicker(rosterEvery)
	defer tick.Stop()
	for {
		if state, _ := r.n.gate(); state == failover.GateWritable {
			if err := r.look(); err != nil && r.n.ctx.Err() == nil {
				r.n.log.Warn("roster", "err", err)
			}
		}
		select {
		case <-r.n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look reads the roster, commits the first one, and follows it.
func (r *roster) look() error {
	ctx, cancel := context.WithTimeout(r.n.ctx, 5*time.Second)
	defer cancel()
	now, _, err := r.book.Read(ctx)
	if errors.Is(err, kv.ErrNotFound) {
		return r.first(ctx)
	}
	if err != nil {
		return err
	}
	name := r.n.fabric.Name()
	r.w.SetVoters(now.Voters)
	if err := r.n.fabric.SetRoster(now.Voters, now.WasRemoved(name)); err != nil {
		return err
	}
	if now.WasRemoved(name) {
		select { // it would be counted twice; the directory is marked, so that it does not start again
		case r.n.failed <- fmt.Errorf("node %s was removed from the cluster (by %s, %s): start it with another --name and an empty --data-dir", name, now.By, now.Changed.Format(time.RFC3339)):
		default:
		}
	}
	return nil
}

// first commits the voters this cluster was started with. Where they were given
// by their addresses, the meta group knows their names when all have come.
func (r *roster) first(ctx context.Context) error {
	f := r.n.fabric
	if !f.Voter() || raft.MetaLeader(f.Server()) != f.Name() {
		return nil
	}
	voters := slices.Clone(r.n.settings.Cluster.Voters)
	if len(voters) == 0 {
		for _, g := range raft.Groups(f.Server()) {
			for _, p := range g.Peers {
				if g.Name == raft.MetaGroup && p.Name != "" {
					voters = append(voters, p.Name)
				}
			}
		}
	}
	if len(voters) != f.Votes() {
		return nil // some were never seen
	}
	slices.Sort(voters)
	if err := r.book.Commit(ctx, kv.Roster{Voters: voters}, 0); err != nil && !errors.Is(err, kv.ErrConflict) {
		return err
	}
	r.n.log.Info("roster committed", "voters", voters)
	return nil
}

// successor is the relay that votes next: the one that has been up longest; ""
// if there is none.
func (r *roster) successor(now kv.Roster) string {
	var relays []failover.NodeState
	for _, s := range r.w.View() {
		if s.State == failover.Up && s.Report.Role == failover.Relay && !s.Draining && !now.Has(s.Name) && !now.WasRemoved(s.Name) {
			relays = append(relays, s)
		}
	}
	if len(relays) == 0 {
		return ""
	}
	return slices.MinFunc(relays, func(a, b failover.NodeState) int { return a.Report.Started.Compare(b.Report.Started) }).Name
}

// PlanRemove says who votes in the place of node.
func (r *roster) PlanRemove(ctx context.Context, node string) ([]string, error) {
	now, _, err := r.book.Read(ctx)
	if err != nil {
		return nil, err
	}
	if !now.Has(node) {
		return []string{fmt.Sprintf("the name %s is not to be used again", node)}, nil
	}
	if next := r.successor(now); next != "" {
		return []string{fmt.Sprintf("relay %s votes in the place of %s, and gets its replicas", next, node)}, nil
	}
	return []string{fmt.Sprintf("no relay is up to vote in its place: %d voters are left, and every bucket has a replica less until a node joins", len(now.Voters)-1)}, nil
}

// Removing has the successor vote before the node that is gone loses its vote:
// its replicas can then move.
func (r *roster) Removing(ctx context.Context, node string) ([]string, error) {
	now, rev, err := r.book.Read(ctx)
	if err != nil {
		return nil, err
	}
	if now.WasRemoved(node) {
		return nil, nil
	}
	voted, next := now.Has(node), ""
	if voted {
		next = r.successor(now)
	}
	if err := r.book.Commit(ctx, now.Replace(node, next), rev); err != nil {
		return nil, err
	}
	done := []string{fmt.Sprintf("the name %s is not to be used again", node)}
	if next == "" {
		return done, nil
	}
	if err := r.awaitVoter(ctx, next); err != nil {
		return done, err
	}
	return append(done, next+" votes in its place"), nil
}

// awaitVoter waits until the meta group has name as a peer.
func (r *roster) awaitVoter(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r.w.Refresh(ctx)
		for _, s := range r.w.View() {
			if s.Name == name && s.Report.Role == failover.Voter && s.Report.MetaLeader != "" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not vote yet; look at its log, and repeat the command", name)
		case <-tick.C:
		}
	}
}

// Removed forgets the node.
func (r *roster) Removed(ctx context.Context, node string) ([]string, error) {
	r.w.Forget(node)
	r.n.fabric.Forget(node)
	count, err := r.n.registry.RemoveNode(ctx, node)
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%d registrations of %s removed", count, node)}, nil
}
