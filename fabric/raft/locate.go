package raft

import (
	"context"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// The locator looks again for a peer's address after these pauses.
const (
	minLocatePause = 250 * time.Millisecond
	maxLocatePause = 30 * time.Second
)

// locate finds the cluster address of each peer: one at which that server, and no
// other, says who it is. A port taken from a route would not do: a peer that dialled
// us has one that refuses connections while it lives.
func (w *Watcher) locate(ctx context.Context) {
	wait := time.NewTimer(maxLocatePause)
	defer wait.Stop()
	pause := minLocatePause
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			pause = minLocatePause
		case <-wait.C:
		}
		if !w.locateAll(ctx) {
			continue // until there is a new peer
		}
		wait.Reset(pause)
		pause = min(2*pause, maxLocatePause)
	}
}

// locateAll reports whether a peer is left without an address.
func (w *Watcher) locateAll(ctx context.Context) (left bool) {
	ids := map[string]string{} // address -> id of the server found there
	for _, p := range w.Peers() {
		if p.Addr != "" {
			ids[p.Addr] = p.ServerID
		}
	}
	for _, p := range w.Peers() {
		if p.Addr != "" {
			continue
		}
		addr := w.find(ctx, p, ids)
		if addr == "" {
			left = true
			continue
		}
		select {
		case w.located <- located{name: p.Name, serverID: p.ServerID, addr: addr}:
		case <-ctx.Done():
			return false
		}
	}
	return left
}

// find returns an address of p, or "". One that leads to the process is evidence
// enough. It asks no address twice, and notes in ids who answered.
func (w *Watcher) find(ctx context.Context, p Peer, ids map[string]string) string {
	for _, a := range w.candidates(ctx, p) {
		if _, asked := ids[a]; !asked {
			ids[a] = w.ask(ctx, a)
		}
		if ids[a] == p.ServerID {
			return a
		}
	}
	return ""
}

func (w *Watcher) ask(ctx context.Context, addr string) (serverID string) {
	ctx, cancel := context.WithTimeout(ctx, w.opts.Timing.Redial)
	defer cancel()
	id, err := probe(ctx, addr, w.tlsConfig())
	if err != nil {
		w.opts.Logger.Debug("look for a peer", "addr", addr, "err", err)
	}
	return id.ServerID
}

// candidates are ip:port addresses where p may listen for routes, likely ones first.
func (w *Watcher) candidates(ctx context.Context, p Peer) []string {
	var all []string
	if w.opts.Addrs != nil {
		all = append(all, w.opts.Addrs(p.Name)...)
	}
	all = append(all, p.Remotes...) // a solicited route's far end
	own := w.srv.ClusterAddr()
	for _, r := range p.Remotes {
		if host, _, err := net.SplitHostPort(r); err == nil && own != nil {
			all = append(all, net.JoinHostPort(host, strconv.Itoa(own.Port)))
		}
	}
	if v, err := w.srv.Varz(&server.VarzOptions{}); err == nil {
		all = append(all, v.Cluster.URLs...)
	}
	var out []string
	for _, a := range all {
		for _, r := range resolve(ctx, a) {
			if !slices.Contains(out, r) && (own == nil || r != own.String()) {
				out = append(out, r)
			}
		}
	}
	return out
}

func resolve(ctx context.Context, addr string) []string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil
	}
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = net.JoinHostPort(ip, port)
	}
	return out
}
