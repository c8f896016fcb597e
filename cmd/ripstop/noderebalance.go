package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/raft"
	"ripstop/failover"
	"ripstop/failover/nodes"
)

// rebalanceEvery is how often the spread of leaders is looked at, and for how
// long nothing must have happened to the nodes before a leader moves: one that
// came back catches up first.
const rebalanceEvery = 10 * time.Second

// rebalance keeps the leaders of streams spread over the voters. The node that
// leads the meta group sees to it, one move at a time.
func (n *node) rebalance(w *nodes.Runner) {
	tick := time.NewTicker(rebalanceEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if !n.fabric.Voter() || raft.MetaLeader(n.fabric.Server()) != n.fabric.Name() {
			continue
		}
		stream, to := nextMove(w.View(), time.Now())
		if stream == "" {
			continue
		}
		if err := n.moveLeader(stream, to); err != nil && n.ctx.Err() == nil {
			n.log.Warn("leader not moved", "stream", stream, "to", to, "err", err)
			continue
		}
		n.log.Info("leader moved", "stream", stream, "to", to)
	}
}

// nextMove names a stream whose leader should move, and where to: from the
// voter that leads the most to the one that leads the least, if they differ by
// two or more. While anything is wrong, or has just changed, nothing moves.
func nextMove(view []failover.NodeState, now time.Time) (stream, to string) {
	leads := map[string][]string{}
	for _, s := range view {
		if s.Report.Role != failover.Voter {
			continue
		}
		if s.State != failover.Up || s.Health != failover.Healthy || s.Draining || !s.Report.Ready || now.Sub(s.Since) < rebalanceEvery {
			return "", ""
		}
		leads[s.Name] = s.Report.Leads
	}
	if len(leads) < 2 {
		return "", ""
	}
	names := slices.Sorted(maps.Keys(leads))
	byLoad := func(a, b string) int { return len(leads[a]) - len(leads[b]) }
	most, least := slices.MaxFunc(names, byLoad), slices.MinFunc(names, byLoad)
	if len(leads[most])-len(leads[least]) < 2 {
		return "", ""
	}
	return slices.Min(leads[most]), least
}

// moveLeader has a stream's leader hand over to the node called to.
func (n *node) moveLeader(stream, to string) error {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	req, err := json.Marshal(server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: to}})
	if err != nil {
		return err
	}
	msg, err := n.fabric.Fabric().RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, stream), req)
	if err != nil {
		return err
	}
	if strings.Contains(string(msg.Data), `"error"`) {
		return errors.New(string(msg.Data))
	}
	return nil
}
