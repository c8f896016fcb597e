package fabric

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/discovery"
	"ripstop/fabric/raft"
)

// membership is what a node of a cluster does besides running its server: it
// looks for the others, watches who it has routes to, and has dead leaders
// replaced at once.
type membership struct {
	finder  *discovery.Finder
	watcher *raft.Watcher
	log     *slog.Logger

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// search is what a node knows of the others before its server runs.
type search struct {
	routes discovery.RouteConfig
	prober discovery.Prober
	memory *discovery.Memory
}

// seek asks the peers who they are, and sets the routes to start with. It
// refuses a start under the name of a node that runs.
func (n *Node) seek(ctx context.Context, so *server.Options, c *Cluster) (*search, error) {
	peers, err := discovery.Parse(c.Peers)
	if err != nil {
		return nil, err
	}
	s := &search{prober: discovery.Prober{
		Name: n.Name(), Cluster: clusterName(n.Region()),
		Username: so.Cluster.Username, Password: so.Cluster.Password, TLS: c.routeTLS,
	}}
	if s.memory, err = discovery.OpenMemory(n.dir.path, s.prober.Cluster); err != nil {
		n.log.Warn("remembered peers", "err", err)
	}
	found, err := discovery.CheckBeforeStart(ctx, discovery.Check{Prober: &s.prober, Peers: peers, Memory: s.memory})
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		switch f.Outcome {
		case discovery.Unauthorized, discovery.OtherCluster, discovery.NotNATS, discovery.TLSMismatch:
			n.log.Warn("this peer is not of use", "addr", f.Addr, "err", f.Err)
		}
	}
	s.routes = discovery.RouteConfig{
		Peers: peers, Own: c.ownAddrs(), Found: found, TLS: c.TLS != nil,
		Username: so.Cluster.Username, Password: so.Cluster.Password,
	}
	if n.Voter() {
		s.routes.Voters = c.size()
	}
	so.Routes, err = discovery.Routes(s.routes)
	return s, err
}

func (n *Node) join(c *Cluster, s *search) error {
	ctx, cancel := context.WithCancel(context.Background())
	j := &membership{cancel: cancel, log: n.log}
	n.member = j
	var err error
	j.finder, err = discovery.NewFinder(discovery.Config{
		Routes: s.routes, Prober: s.prober, Server: n.srv, Memory: s.memory, Logger: n.log,
		Apply: func(routes []*url.URL) error {
			return n.reloadOptions(func(so *server.Options) { so.Routes = routes })
		},
	})
	if err != nil {
		return fmt.Errorf("look for peers: %w", err)
	}
	j.watcher = raft.NewWatcher(n.srv, raft.WatchOptions{
		Timing: c.Timing, Logger: n.log, TLS: c.routeTLS, Addrs: j.finder.Addrs,
	})
	campaigner := raft.NewCampaigner(n.srv, j.watcher, c.Timing, n.log)
	j.wg.Go(func() {
		if err := j.finder.Run(ctx); err != nil {
			n.log.Warn("peers are not remembered", "err", err)
		}
	})
	j.wg.Go(func() { j.watcher.Run(ctx) })
	j.wg.Go(func() { campaigner.Run(ctx) })
	j.wg.Go(func() { j.wakeFinder(ctx) })
	return nil
}

// wakeFinder has the finder look again as soon as a route ends.
func (j *membership) wakeFinder(ctx context.Context) {
	sub := j.watcher.Subscribe()
	defer sub.Close()
	for {
		if _, err := sub.Next(ctx); err != nil {
			return
		}
		j.finder.Wake()
	}
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

// Search says what is known of the peers that were configured or remembered.
func (n *Node) Search() discovery.View {
	if n.member == nil || n.member.finder == nil {
		return discovery.View{}
	}
	return n.member.finder.View()
}

// Misconfigured says which of the peers are of no use, and why: what a person
// must put right.
func (n *Node) Misconfigured() []string {
	if n.member == nil || n.member.finder == nil {
		return nil
	}
	return n.member.finder.Misconfigured()
}

// Forget gives a node up that was removed for good.
func (n *Node) Forget(name string) {
	if n.member != nil {
		n.member.finder.Forget(name)
	}
}

// ErrDuplicate says that a node of this name runs already.
var ErrDuplicate = discovery.ErrDuplicate

// ownAddrs are the addresses that mean this node.
func (c *Cluster) ownAddrs() []string {
	own := []string{c.Addr}
	if c.Advertise != "" {
		own = append(own, c.Advertise)
	}
	for _, p := range c.Peers {
		if !slices.Contains(own, p) && c.own(p) {
			own = append(own, p)
		}
	}
	return own
}
