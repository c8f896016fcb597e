package raft

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Kind of an [Event].
type Kind int

const (
	Up   Kind = iota + 1 // the first route to a peer is there
	Down                 // the last route to a peer ended and it did not come back
)

func (k Kind) String() string {
	switch k {
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Event is a change in who a server has routes to.
type Event struct {
	Kind Kind
	Peer Peer
	// At is when the change was seen, up to [WatchOptions].Poll after it happened.
	At time.Time
	// Dead, of a Down event: the peer's process is gone. Its cluster address refuses
	// connections, or another process has its name. Otherwise the peer is silent, cut
	// off, or its routes were closed: its process may live and lead.
	Dead bool
	// Reason, of a Down event, is what the redial met, for the log.
	Reason string
}

// Peer is a server of the same cluster, not itself.
type Peer struct {
	Name     string    // server name
	ServerID string    // of this run of the server
	Remotes  []string  // ip:port at the far end of each route; for accepted routes a port nobody listens on
	Since    time.Time // when the first route was seen
	// Addr is a cluster address, ip:port, at which this very server answered, found
	// soon after Up. Without it ("") death can't be told from silence.
	Addr string
}

// WatchOptions configure a [Watcher].
type WatchOptions struct {
	Timing Timing        // Redial is used
	Poll   time.Duration // how often routes are counted; 0 = 20 ms, a few microseconds of work
	// Addrs returns cluster addresses, host:port, that may be the peer's, besides those
	// that NATS knows: solicited routes, configured routes, and the address of an
	// accepted route with this server's own cluster port. None is believed before the
	// peer has answered there. May be nil; must not block.
	Addrs func(peer string) []string
	// TLS returns the client side of the routes' TLS; nil, or a nil result, is plain.
	TLS    func() *tls.Config
	Logger *slog.Logger
}

const (
	defaultPoll = 20 * time.Millisecond
	// A route that ends while another begins leaves the count as it was.
	scanEvery = 10
)

// routeSource is what a Watcher asks of its server.
type routeSource interface {
	NumRoutes() int
	Routez(*server.RoutezOptions) (*server.Routez, error)
	ClusterAddr() *net.TCPAddr
	Varz(*server.VarzOptions) (*server.Varz, error)
}

var _ routeSource = (*server.Server)(nil)

// Watcher reports the peers of a server as their routes come and go. Use
// [NewWatcher], then Run.
type Watcher struct {
	srv  routeSource
	opts WatchOptions

	verdicts chan verdict
	located  chan located
	wake     chan struct{} // the locator has a new peer to find

	leaving map[string]*leaver // of Run's goroutine only

	mu    sync.Mutex // guards what follows
	peers map[string]Peer
	subs  map[*Subscription]struct{}
}

// leaver is a peer without routes whose redial is under way.
type leaver struct {
	peer   Peer
	at     time.Time
	cancel context.CancelFunc
}

type verdict struct {
	of     *leaver
	dead   bool
	reason string
}

type located struct {
	name, serverID, addr string
}

// NewWatcher returns a Watcher of srv.
func NewWatcher(srv *server.Server, opts WatchOptions) *Watcher { return newWatcher(srv, opts) }

func newWatcher(srv routeSource, opts WatchOptions) *Watcher {
	opts.Poll = cmp.Or(opts.Poll, defaultPoll)
	opts.Timing.Redial = cmp.Or(opts.Timing.Redial, LAN().Redial)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		srv: srv, opts: opts,
		verdicts: make(chan verdict), located: make(chan located), wake: make(chan struct{}, 1),
		leaving: map[string]*leaver{}, peers: map[string]Peer{}, subs: map[*Subscription]struct{}{},
	}
}

// Run watches until ctx ends, and returns when all it started has ended. Call it
// once.
func (w *Watcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { w.locate(ctx) })

	tick := time.NewTicker(w.opts.Poll)
	defer tick.Stop()
	seen := 0
	for n := 0; ; n++ {
		if routes := w.srv.NumRoutes(); routes != seen || n%scanEvery == 0 {
			seen = routes
			w.scan(ctx, &wg)
		}
		select {
		case <-ctx.Done():
			return
		case v := <-w.verdicts:
			w.judge(v)
		case l := <-w.located:
			w.setAddr(l)
		case <-tick.C:
		}
	}
}

// Peers returns the peers that have a route now, by name.
func (w *Watcher) Peers() []Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sortedPeers()
}

func (w *Watcher) sortedPeers() []Peer {
	ps := make([]Peer, 0, len(w.peers))
	for _, p := range w.peers {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	return ps
}

// connected reports whether the peer has a route now.
func (w *Watcher) connected(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.peers[name]
	return ok
}

// scan compares the routes with the peers known.
func (w *Watcher) scan(ctx context.Context, wg *sync.WaitGroup) {
	z, err := w.srv.Routez(nil)
	if err != nil {
		w.opts.Logger.Warn("list routes", "err", err)
		return
	}
	now := time.Now()
	found := routesByPeer(z.Routes, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, p := range w.peers {
		f, ok := found[name]
		switch {
		case !ok:
			delete(w.peers, name)
			w.depart(ctx, wg, p, now)
		case f.ServerID != p.ServerID:
			w.emit(Event{Kind: Down, Peer: p, At: now, Dead: true, Reason: "another run of the server has its name"})
			w.arrive(f, now)
		default:
			p.Remotes = f.Remotes
			w.peers[name] = p
		}
	}
	for name, f := range found {
		if _, ok := w.peers[name]; !ok {
			w.comeBack(f, now)
		}
	}
}

func routesByPeer(routes []*server.RouteInfo, now time.Time) map[string]Peer {
	newest := map[string]time.Time{}
	found := map[string]Peer{}
	for _, r := range routes {
		if r.RemoteName == "" {
			continue // its INFO is on the way
		}
		p := found[r.RemoteName]
		// While a restarted server's old routes linger, the newest route says who it is.
		if p.Name == "" || r.Start.After(newest[p.Name]) {
			newest[r.RemoteName] = r.Start
			p.ServerID = r.RemoteID
		}
		p.Name, p.Since = r.RemoteName, now
		if r.IP != "" {
			p.Remotes = append(p.Remotes, hostPort(r.IP, r.Port))
		}
		found[p.Name] = p
	}
	return found
}

// comeBack adds a peer that has routes and had none.
func (w *Watcher) comeBack(p Peer, now time.Time) {
	if l := w.leaving[p.Name]; l != nil {
		l.cancel()
		delete(w.leaving, p.Name)
		if l.peer.ServerID == p.ServerID {
			w.opts.Logger.Debug("routes came back before the redial ended", "peer", p.Name, "away", now.Sub(l.at))
			l.peer.Remotes = p.Remotes
			w.peers[p.Name] = l.peer
			return
		}
		w.emit(Event{Kind: Down, Peer: l.peer, At: l.at, Dead: true, Reason: "another run of the server has its name"})
	}
	w.arrive(p, now)
}

func (w *Watcher) arrive(p Peer, now time.Time) {
	w.peers[p.Name] = p
	w.emit(Event{Kind: Up, Peer: p, At: now})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// depart starts the redial that decides what to say about a peer that went.
func (w *Watcher) depart(ctx context.Context, wg *sync.WaitGroup, p Peer, now time.Time) {
	dial, cancel := context.WithTimeout(ctx, w.opts.Timing.Redial)
	l := &leaver{peer: p, at: now, cancel: cancel}
	w.leaving[p.Name] = l
	wg.Go(func() {
		defer cancel()
		v := verdict{of: l}
		v.dead, v.reason = redial(dial, p, w.tlsConfig())
		select {
		case w.verdicts <- v:
		case <-ctx.Done():
		}
	})
}

// judge ends a departure, unless the peer came back meanwhile.
func (w *Watcher) judge(v verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leaving[v.of.peer.Name] != v.of {
		return
	}
	delete(w.leaving, v.of.peer.Name)
	w.emit(Event{Kind: Down, Peer: v.of.peer, At: v.of.at, Dead: v.dead, Reason: v.reason})
}

func (w *Watcher) setAddr(l located) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p, ok := w.peers[l.name]; ok && p.ServerID == l.serverID {
		p.Addr = l.addr
		w.peers[l.name] = p
	}
}

func (w *Watcher) tlsConfig() *tls.Config {
	if w.opts.TLS == nil {
		return nil
	}
	return w.opts.TLS()
}

// emit logs e and queues it for every subscriber. w.mu is held.
func (w *Watcher) emit(e Event) {
	level := slog.LevelInfo
	if e.Kind == Down {
		level = slog.LevelWarn
	}
	w.opts.Logger.Log(context.Background(), level, "routes "+e.Kind.String(), "peer", e.Peer.Name, "dead", e.Dead, "reason", e.Reason)
	for s := range w.subs {
		s.push(e)
	}
}
