package raft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

var (
	// ErrNoGroup means that the server is not in the group asked for.
	ErrNoGroup = errors.New("not a member of the group")
	// ErrNotLeader means that another server leads the group, or nobody.
	ErrNotLeader = errors.New("not the leader of the group")
	// ErrNoSuccessor means that nobody was heard from lately who could lead instead.
	ErrNoSuccessor = errors.New("no peer can take over")
)

// StepDown hands the leadership of a group that srv leads to the server called
// preferred, or with "" to any peer that is alive. It returns when the transfer has
// been sent, not when the other leads.
func StepDown(srv *server.Server, group, preferred string) error {
	node := lookupRaftNode(srv, group)
	if node == nil {
		return fmt.Errorf("step down from %s: %w", group, ErrNoGroup)
	}
	if !node.Leader() {
		return fmt.Errorf("step down from %s: %w; ask %s", group, ErrNotLeader, leaderOf(srv, group))
	}
	var alive []string // ids; those that nats-server would let lead
	for _, p := range node.Peers() {
		if p.ID != node.ID() && time.Since(p.Last) <= 3*hbInterval {
			alive = append(alive, p.ID)
		}
	}
	id := ""
	if preferred != "" {
		id = PeerID(preferred)
		if !slices.Contains(alive, id) { // nats-server would choose another
			return fmt.Errorf("step down from %s for %s: %w: it is not a member or was not heard from for %s", group, preferred, ErrNoSuccessor, 3*hbInterval)
		}
	}
	if len(alive) == 0 {
		return fmt.Errorf("step down from %s: %w", group, ErrNoSuccessor)
	}
	if err := node.StepDown(id); err != nil {
		return fmt.Errorf("step down from %s: %w", group, err)
	}
	return nil
}

// leaderOf says who leads a group, for people.
func leaderOf(srv *server.Server, group string) string {
	for _, g := range raftGroups(srv) {
		if g.Name == group && g.Leader != "" {
			return g.Leader
		}
	}
	return "again when it has one"
}
