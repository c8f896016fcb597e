package raft

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Campaigner has a server stand for election at once in the groups whose leader's
// process is dead, instead of after an election timeout. A leader that is silent is
// left to the timeout: there is no pre-vote, so a campaign would depose it if it lives.
type Campaigner struct {
	srv     *server.Server
	watcher *Watcher
	stagger time.Duration
	log     *slog.Logger
	count   atomic.Int64
}

// NewCampaigner returns a Campaigner that acts on what w reports of srv. Of t it uses
// CampaignStagger. log may be nil.
func NewCampaigner(srv *server.Server, w *Watcher, t Timing, log *slog.Logger) *Campaigner {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Campaigner{srv: srv, watcher: w, stagger: t.CampaignStagger, log: log}
}

// Count returns in how many groups it has campaigned so far.
func (c *Campaigner) Count() int64 { return c.count.Load() }

// Run acts until ctx ends, and returns when all it started has ended.
func (c *Campaigner) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	sub := c.watcher.Subscribe()
	defer sub.Close()
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			return
		}
		if e.Kind == Down && e.Dead {
			c.succeed(ctx, &wg, e)
		}
	}
}

// succeed campaigns, or has it done later, in the groups that the dead peer led.
func (c *Campaigner) succeed(ctx context.Context, wg *sync.WaitGroup, e Event) {
	dead := PeerID(e.Peer.Name)
	alive := map[string]bool{c.srv.Name(): true}
	for _, p := range c.watcher.Peers() {
		alive[p.Name] = true
	}
	later := map[int][]string{}
	for _, cand := range candidacies(raftGroups(c.srv), dead, alive) {
		if cand.rank == 0 {
			c.campaign(cand.group, dead, false)
		} else {
			later[cand.rank] = append(later[cand.rank], cand.group)
		}
	}
	for rank, groups := range later {
		wg.Go(func() {
			if !sleep(ctx, time.Duration(rank)*c.stagger) || c.watcher.connected(e.Peer.Name) {
				return
			}
			for _, g := range groups {
				c.campaign(g, dead, true)
			}
		})
	}
}

// campaign stands for election unless the group has found a leader. A follower that
// has voted since the leader died knows none; only who waited its turn goes on then.
func (c *Campaigner) campaign(group, dead string, evenLeaderless bool) {
	node := lookupRaftNode(c.srv, group)
	if node == nil || node.State() != server.Follower {
		return
	}
	if leader := node.GroupLeader(); leader != dead && (leader != "" || !evenLeaderless) {
		return
	}
	// Never CampaignImmediately: it counts the votes of empty logs, and has elected a
	// leader that lacked acknowledged writes.
	if err := node.Campaign(); err != nil {
		c.log.Debug("campaign", "group", group, "err", err)
		return
	}
	c.count.Add(1)
	c.log.Info("campaigning: the leader's process is dead", "group", group)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// candidacy is a group to campaign in; rank is how many survivors come first.
type candidacy struct {
	group string
	rank  int
}

// candidacies chooses among groups, as one server sees them, those that the peer
// with the id dead led and that this server may lead: it has a vote and a full log,
// and with the peers alive (by name, itself included) there is a quorum. Without one
// it may be this server that is cut off, and a campaign would only raise its term.
func candidacies(groups []Group, dead string, alive map[string]bool) []candidacy {
	var out []candidacy
	for _, g := range groups {
		if g.LeaderID != dead || !g.Member || g.Observer || g.CatchingUp || g.Err != "" {
			continue
		}
		votes, rank, before := 0, 0, true
		for _, p := range g.Peers { // by name
			if p.ID == dead || !alive[p.Name] {
				continue
			}
			votes++
			if before = before && !p.Self; before {
				rank++
			}
		}
		if votes >= g.QuorumNeeded {
			out = append(out, candidacy{group: g.Name, rank: rank})
		}
	}
	return out
}
