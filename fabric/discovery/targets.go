package discovery

import (
	"context"
	"maps"
	"net"
	"time"
)

// target is an address to probe.
type target struct {
	addr     string
	host     string // name that led to it; "" = none
	resolved bool   // the name leads there now
}

// addresses returns what to probe for e: with a name, what the lookup says, or
// what it last said when it fails.
func (f *Finder) addresses(ctx context.Context, e *entry) (targets []target, err error) {
	if e.peer.Host == "" {
		return f.strays(), nil
	}
	addrs, err := lookup(ctx, resolverOr(f.cfg.Resolver), e.peer, f.timing.Lookup)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if (err == nil) != (e.err == nil) {
		f.noteLookup(e.peer, err)
	}
	e.lookedUp, e.err = time.Now(), err
	if err == nil {
		e.addrs = addrs
	}
	for _, a := range e.addrs {
		targets = append(targets, target{a, nameOf(e.peer), err == nil && e.peer.IsName()})
	}
	return targets, err
}

func (f *Finder) noteLookup(p Peer, err error) {
	if err != nil {
		f.cfg.Logger.Warn("a peer's name does not resolve; trying the addresses known before", "peer", p.String(), "err", err)
		return
	}
	f.cfg.Logger.Info("a peer's name resolves again", "peer", p.String())
}

// strays returns the addresses that no entry leads to and that are worth a try:
// remembered peers that are not connected, and those of added routes. What is
// known of any other address is dropped.
func (f *Finder) strays() []target {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := map[string]bool{}
	for _, e := range f.entries {
		for _, a := range e.addrs {
			known[a] = true
		}
	}
	strays := map[string]string{} // address to the name that led there
	for addr := range f.links {
		if !known[addr] {
			strays[addr] = ""
		}
	}
	if f.cfg.Memory != nil {
		for _, s := range f.cfg.Memory.Peers() {
			_, linked := strays[s.Addr]
			if linked || !f.peers[s.Name].settled && !known[s.Addr] {
				strays[s.Addr] = s.Host
			}
		}
	}
	maps.DeleteFunc(f.found, func(a string, _ Finding) bool { _, stray := strays[a]; return !known[a] && !stray })
	targets := make([]target, 0, len(strays))
	for addr, host := range strays {
		targets = append(targets, target{addr, host, false})
	}
	return targets
}

// dial is where a new route to a leads: with TLS, first to the name its
// certificate bears, where nats-server picks one of the addresses; next time, or
// while the name does not resolve, to the address, which nats-server verifies by
// the first name it was ever given a route to. f.mu is held.
func (f *Finder) dial(a target) string {
	l := f.links[a.addr]
	if !f.routes.TLS || !a.resolved || l != nil && l.round%2 == 1 {
		return a.addr
	}
	_, port, _ := net.SplitHostPort(a.addr) // lookup joined it
	return net.JoinHostPort(a.host, port)
}
