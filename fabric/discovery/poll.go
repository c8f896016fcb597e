package discovery

import (
	"context"
	"slices"
	"time"
)

// conn is the connection to a node, of one or several routes.
type conn struct {
	id      string
	addr    string // of its cluster port, if this side dialed
	settled bool   // has lasted for settleTime
}

// settleTime is how long a route must last to count: a server that solicits one
// registers it before the other side has checked its credentials.
const settleTime = 500 * time.Millisecond

// poll keeps up with the server's routes, and keeps the memory.
func (f *Finder) poll(ctx context.Context) {
	tick := time.NewTicker(f.timing.Poll)
	defer tick.Stop()
	for {
		f.refresh(time.Now())
		if m := f.cfg.Memory; m != nil {
			if err := m.Save(false); err != nil {
				f.cfg.Logger.Warn("remembering peers failed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// refresh reads the server's routes, and wakes the search when other nodes are
// connected than before. A route that does not last wakes nobody: one between
// nodes of different secrets comes and goes every second.
func (f *Finder) refresh(now time.Time) {
	z, err := f.cfg.Server.Routez(nil)
	if err != nil {
		return // it is shutting down
	}
	peers := map[string]conn{}
	for _, r := range z.Routes {
		c := peers[r.RemoteName]
		c.id, c.settled = r.RemoteID, c.settled || now.Sub(r.Start) >= settleTime
		if r.DidSolicit && c.addr == "" {
			c.addr = addrOf(r.IP, r.Port)
		}
		peers[r.RemoteName] = c
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.settledPeers()
	f.peers = peers
	if !slices.Equal(before, f.settledPeers()) {
		f.Wake()
	}
	f.remember()
	switch {
	case len(f.settledPeers()) > 0:
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	}
}

// remember notes where connected nodes are. f.mu is held.
func (f *Finder) remember() {
	if f.cfg.Memory == nil {
		return
	}
	for name, c := range f.peers {
		if c.settled && c.addr != "" {
			f.cfg.Memory.Saw(name, c.addr, "")
		}
	}
	for _, x := range f.found {
		if c := f.peers[x.Identity.Name]; x.Outcome == Member && c.settled && c.id == x.Identity.ID {
			f.cfg.Memory.Saw(x.Identity.Name, x.Addr, "")
		}
	}
}

// settledPeers returns the names of the nodes with a lasting connection, sorted.
// f.mu is held.
func (f *Finder) settledPeers() []string {
	var names []string
	for name, c := range f.peers {
		if c.settled {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
