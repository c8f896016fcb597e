package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Server is what the Finder asks of the running NATS server.
type Server interface {
	ID() string
	Routez(*server.RoutezOptions) (*server.Routez, error)
}

var _ Server = (*server.Server)(nil)

// Timing of a [Finder]. Zero values are the defaults.
type Timing struct {
	Min     time.Duration // first pause between two attempts at what is not connected; 200 ms
	Max     time.Duration // the pauses double up to this, ± a quarter, and never end; 15 s
	Recheck time.Duration // pause when all is connected, to notice new addresses; 30 s
	Lookup  time.Duration // bound of one DNS lookup; 3 s
	Hold    time.Duration // how long a member is left to connect from its side; 200 ms
	Grace   time.Duration // how long nats-server is left to connect a member it has a route to; 2 s
	Again   time.Duration // pause before one member is given another route; 10 x Grace
	Drop    time.Duration // a route added to an address that is no member for so long is taken back; 30 x Grace
	Poll    time.Duration // how often the server's routes are compared with the last time; 500 ms
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Min, 200*time.Millisecond)
	set(&t.Max, 15*time.Second)
	set(&t.Recheck, 30*time.Second)
	set(&t.Lookup, 3*time.Second)
	set(&t.Hold, 200*time.Millisecond)
	set(&t.Grace, 2*time.Second)
	set(&t.Again, 10*t.Grace)
	set(&t.Drop, 30*t.Grace)
	set(&t.Poll, 500*time.Millisecond)
	return t
}

// Config is what a [Finder] is made of.
type Config struct {
	Routes   RouteConfig // as given to [Routes] for the server's start
	Prober   Prober      // name, cluster, TLS; id and credentials come from Server and Routes
	Server   Server
	Resolver Resolver // nil = net.DefaultResolver
	Memory   *Memory  // may be nil
	Logger   *slog.Logger
	Timing   Timing

	// Apply makes these the server's routes: all of them, those it was started
	// with included. Build the server's options anew with them and call
	// ReloadOptions. It is called by one goroutine at a time, and again later
	// after an error.
	Apply func([]*url.URL) error
}

// Finder looks for the other nodes as long as it runs.
type Finder struct {
	cfg    Config
	timing Timing
	probes chan struct{} // bounds how many run at once

	mu      sync.Mutex
	prober  *Prober // replaced, never changed
	routes  RouteConfig
	entries []*entry
	found   map[string]Finding // last finding at each address
	peers   map[string]conn    // nodes that routes lead to, by name
	links   links
	since   time.Time  // nothing connected since; zero while something is
	applied []*url.URL // the server's routes

	applying sync.Mutex // held while the server takes other routes; taken before mu
}

// entry is a configured peer, or with an empty host the one that stands for
// addresses no entry leads to: remembered ones and those of added routes.
type entry struct {
	peer Peer
	wake chan struct{}

	// guarded by Finder.mu
	addrs    []string // of the last lookup that succeeded
	err      error    // of the last lookup
	lookedUp time.Time
}

// maxProbes bounds how many probes a Finder has under way.
const maxProbes = 16

// NewFinder makes a Finder for a server that was started with Routes(cfg.Routes).
func NewFinder(cfg Config) (*Finder, error) {
	base, err := Routes(cfg.Routes)
	if err != nil {
		return nil, err
	}
	f := &Finder{
		cfg: cfg, timing: cfg.Timing.withDefaults(), probes: make(chan struct{}, maxProbes),
		routes: cfg.Routes, found: map[string]Finding{}, peers: map[string]conn{},
		since: time.Now(), applied: base,
	}
	f.routes.strangers = strangers(cfg.Routes.Found)
	_, f.links = f.routes.initial()
	f.setProber(cfg.Routes.Username, cfg.Routes.Password)
	for _, p := range cfg.Routes.Peers {
		f.entries = append(f.entries, &entry{peer: p, wake: make(chan struct{}, 1)})
	}
	f.entries = append(f.entries, &entry{wake: make(chan struct{}, 1)})
	return f, nil
}

func (f *Finder) setProber(user, password string) {
	p := f.cfg.Prober
	p.ID, p.Username, p.Password = f.cfg.Server.ID(), user, password
	f.prober = &p
}

// Run searches until ctx ends, and returns when all of it has stopped. Its error
// is that of a last write of the memory.
func (f *Finder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, e := range f.entries {
		wg.Go(func() { f.search(ctx, e) })
	}
	f.poll(ctx)
	wg.Wait()
	if f.cfg.Memory == nil {
		return nil
	}
	return f.cfg.Memory.Save(true)
}

// Wake makes the Finder try now what is not connected, instead of after its
// pause: to be called when a route ended or came up.
func (f *Finder) Wake() {
	for _, e := range f.entries {
		select {
		case e.wake <- struct{}{}:
		default: // it will wake already
		}
	}
}

// SetCredentials makes f use new route credentials, and Apply routes that bear
// them.
func (f *Finder) SetCredentials(user, password string) error {
	f.mu.Lock()
	f.routes.Username, f.routes.Password = user, password
	f.setProber(user, password)
	f.mu.Unlock()
	return f.apply()
}

// Forget drops what is known of a node that was removed for good.
func (f *Finder) Forget(name string) {
	if f.cfg.Memory != nil {
		f.cfg.Memory.Forget(name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for addr, x := range f.found {
		if x.Identity.Name == name {
			delete(f.found, addr)
			delete(f.links, addr)
		}
	}
}

// search visits one entry again and again.
func (f *Finder) search(ctx context.Context, e *entry) {
	pause := f.timing.Min
	for {
		wait := pause
		if done := f.visit(ctx, e); done {
			pause, wait = f.timing.Min, f.timing.Recheck
		} else {
			pause = min(2*pause, f.timing.Max)
		}
		timer := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.wake:
			timer.Stop()
			pause = f.timing.Min
		case <-timer.C:
		}
	}
}

// jitter spreads d by a quarter both ways, so that nodes started together do not
// ask together.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

// visit resolves e and probes what is behind it. It reports whether nothing is
// left to find: every address is this node or a connected one.
func (f *Finder) visit(ctx context.Context, e *entry) (done bool) {
	addrs, err := f.addresses(ctx, e)
	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() { f.probe(ctx, a) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false
	}
	if err := f.apply(); err != nil {
		f.cfg.Logger.Warn("adding routes failed; it will be tried again", "err", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return err == nil && !slices.ContainsFunc(addrs, func(a target) bool { return !f.settled(f.found[a.addr]) })
}

// settled reports whether there is nothing more to do about x. f.mu is held.
func (f *Finder) settled(x Finding) bool {
	return x.Outcome == Self || x.Outcome == Member && f.connected(x)
}

// connected reports whether a route leads to the node x found. f.mu is held.
func (f *Finder) connected(x Finding) bool {
	return f.peers[x.Identity.Name].settled
}

// probe asks who is at a and notes the answer.
func (f *Finder) probe(ctx context.Context, a target) {
	select {
	case f.probes <- struct{}{}:
		defer func() { <-f.probes }()
	case <-ctx.Done():
		return
	}
	f.mu.Lock()
	prober := f.prober
	login := !f.settled(f.found[a.addr]) // before the server is given a route, or keeps it
	f.mu.Unlock()
	x := prober.ask(ctx, a.addr, a.host, login)
	if ctx.Err() != nil {
		return
	}
	if x.Outcome == Member {
		f.refresh(time.Now()) // it may have connected by itself meanwhile
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note(x)
	switch {
	case x.Outcome.stranger():
		f.routes.strangers[a.addr] = true
	case x.Outcome == Member:
		delete(f.routes.strangers, a.addr)
	}
	grace := f.timing.Hold
	if slices.Contains(f.routes.direct(), a.addr) {
		grace = f.timing.Grace
	}
	c := f.peers[x.Identity.Name]
	f.links.judge(x, c, f.dial(a), grace, time.Now(), f.timing)
	if f.cfg.Memory != nil && x.Outcome == Member && (c.settled || login) {
		f.cfg.Memory.Saw(x.Identity.Name, a.addr, a.host)
	}
}

// note keeps x and logs what is new about it. f.mu is held.
func (f *Finder) note(x Finding) {
	old := f.found[x.Addr]
	f.found[x.Addr] = x
	if old.Outcome == x.Outcome && old.Identity.ID == x.Identity.ID {
		return
	}
	level := slog.LevelDebug
	if x.Outcome.misconfigured() {
		level = slog.LevelWarn
	}
	f.cfg.Logger.Log(context.Background(), level, "peer probed", "addr", x.Addr, "outcome", x.Outcome, "node", x.Identity.Name, "err", x.Err)
}

// misconfigured tells what a person must put right from what passes.
func (o Outcome) misconfigured() bool {
	switch o {
	case Duplicate, OtherCluster, Unauthorized, NotNATS, TLSMismatch:
		return true
	}
	return false
}

// stranger reports whether something else is there than a node of this cluster.
func (o Outcome) stranger() bool {
	return o == OtherCluster || o == Unauthorized || o == NotNATS
}

// apply gives the server its routes if they are not those it has.
func (f *Finder) apply() error {
	f.applying.Lock()
	defer f.applying.Unlock()
	want, changed := f.wanted()
	if !changed {
		return nil
	}
	if err := f.cfg.Apply(want); err != nil {
		return fmt.Errorf("apply %d routes: %w", len(want), err)
	}
	f.mu.Lock()
	f.applied = want
	f.mu.Unlock()
	f.cfg.Logger.Info("routes changed", "routes", redacted(want))
	return nil
}

// wanted returns the routes the server should have, and whether it has others.
func (f *Finder) wanted() (want []*url.URL, changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	want = f.routes.fill(f.routes.direct(), f.links)
	same := slices.EqualFunc(want, f.applied, func(a, b *url.URL) bool { return a.String() == b.String() })
	return want, !same
}
