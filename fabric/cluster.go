package fabric

import (
	"context"
	"sync"

	"ripstop/fabric/raft"
)

// membership is what a node of a cluster does besides running its server: it
// watches who it has routes to, and has dead leaders replaced at once.
type membership struct {
	watcher    *raft.Watcher
	campaigner *raft.Campaigner

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (n *Node) join(c *Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	j := &membership{cancel: cancel}
	n.member = j
	j.watcher = raft.NewWatcher(n.srv, raft.WatchOptions{
		Timing: c.Timing, Logger: n.log, Addrs: func(string) []string { return c.Peers },
		TLS: c.routeTLS,
	})
	j.wg.Go(func() { j.watcher.Run(ctx) })
	j.campaigner = raft.NewCampaigner(n.srv, j.watcher, c.Timing, n.log)
	j.wg.Go(func() { j.campaigner.Run(ctx) })
}

func (j *membership) leave() {
	if j == nil {
		return
	}
	j.cancel()
	j.wg.Wait()
}

// Routes reports the nodes of the cluster as their routes come and go; nil on a
// node on its own.
func (n *Node) Routes() *raft.Watcher {
	if n.member == nil {
		return nil
	}
	return n.member.watcher
}
