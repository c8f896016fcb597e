// Package aggregate is all servers as one MCP server: what an edge serves on
// /mcp without a name.
//
//	client ─ edge ─▶ Router ─▶ Backend ─┬▶ Router ─▶ member "github"
//	                  (one more server)  ├▶ Router ─▶ member "everything"
//	                                     └▶ …
//
// A [Backend] is attached like any other server, and is a client of the members
// through a router.Handler. Tools and prompts are called <server>__<name>,
// resources ripstop://<server>/<uri> (names.go); what members say is rewritten
// by splicing (rewrite.go), so unknown fields pass unchanged.
//
// One client's way to the members is a caller, of which there are three:
//
//	legacy client  legacyCaller  member sessions opened on first need  legacy.go, session.go
//	modern client  modernCaller  no state                              modern.go
//	bare request   bareCaller    no state                              bare.go
//
// A member that speaks only the other era is translated (translate.go): for a
// modern client by a session of the backend's own with that member
// (anonymous.go), for a legacy client by adding the modern metadata.
//
// What members tell outside of calls reaches a legacy client on its session's
// stream (listen.go), a modern one on its subscription (subscribe.go; feed.go
// for legacy members).
package aggregate

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Defaults of [Options].
const (
	DefaultIdleTimeout = 30 * time.Minute
	DefaultMaxSessions = 10_000
	DefaultListTimeout = 5 * time.Second
	DefaultOpenTimeout = time.Minute
)

// Options say which servers to join.
type Options struct {
	Instance string         // stands in session ids; see router.NewSessionID
	Handler  router.Handler // takes the requests to members, by Request.Server

	// Servers returns the names of the member servers now, sorted, without the
	// aggregate's own. It is called often and must not block.
	Servers func() []string
	// Watch calls changed whenever Servers would answer differently, or the
	// instances behind a name changed, until ctx ends. nil = nothing changes.
	Watch func(ctx context.Context, changed func())

	IdleTimeout time.Duration // a session unused for so long ends; 0 = 30 min
	MaxSessions int           // legacy sessions at once; 0 = 10,000

	// ListTimeout is how long a list waits for each member, and how long
	// ending sessions with members may take. 0 = 5 s.
	ListTimeout time.Duration
	// OpenTimeout is how long a member may take to answer its first request:
	// a stdio server may be downloaded by npx first. 0 = 1 min.
	OpenTimeout time.Duration

	Version string       // software version, for serverInfo
	Logger  *slog.Logger // nil = no log
}

// Backend joins member servers into one. Its zero value is not usable; see
// [New].
type Backend struct {
	opts    Options
	handler router.Handler
	log     *slog.Logger
	info    json.RawMessage // serverInfo

	ctx    context.Context // ends with Close; parent of everything that outlives a request
	stop   context.CancelFunc
	wg     sync.WaitGroup // requests being served, and goroutines
	nextID atomic.Int64   // of requests the backend sends for itself
	epoch  atomic.Int64   // raised whenever members may be others than before

	closing sync.Once

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
	members  map[string]*member
	servers  []string      // as of the last change
	version  int           // raised when servers changed
	changed  chan struct{} // closed at the next change
}

var _ router.Backend = (*Backend)(nil)

// New starts a backend. It works until Close.
func New(opts Options) *Backend {
	opts.IdleTimeout = orDefault(opts.IdleTimeout, DefaultIdleTimeout)
	opts.ListTimeout = orDefault(opts.ListTimeout, DefaultListTimeout)
	opts.OpenTimeout = orDefault(opts.OpenTimeout, DefaultOpenTimeout)
	opts.MaxSessions = orDefault(opts.MaxSessions, DefaultMaxSessions)
	b := &Backend{
		opts:     opts,
		handler:  opts.Handler,
		log:      opts.Logger,
		sessions: map[string]*session{},
		members:  map[string]*member{},
		servers:  slices.Clone(opts.Servers()),
		changed:  make(chan struct{}),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.info, _ = json.Marshal(map[string]string{"name": "ripstop", "version": opts.Version}) // strings always encode
	b.ctx, b.stop = context.WithCancel(context.Background())
	if opts.Watch != nil {
		b.spawn(func() { opts.Watch(b.ctx, b.refresh) })
	}
	b.spawn(b.expire)
	return b
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Serve implements router.Handler.
func (b *Backend) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	switch {
	case req.Op != router.OpMessage:
		return b.serveSession(ctx, req, out)
	case req.Message == nil:
		return nil, router.Errorf(router.ErrRefused, "the request has no message")
	case req.Era == router.EraModern:
		return b.serveStateless(ctx, req, out, b.serveModern)
	case req.Method() == "initialize" && req.Message.Kind == jsonrpc.Request:
		return b.serveStateless(ctx, req, out, b.initialize)
	case req.Era == router.EraBare:
		return b.serveStateless(ctx, req, out, b.serveBare)
	}
	return b.serveSession(ctx, req, out)
}

// serveStateless serves a request that belongs to no session.
func (b *Backend) serveStateless(ctx context.Context, req *router.Request, out router.Stream,
	serve func(context.Context, *router.Request, router.Stream) (*router.Reply, error)) (*router.Reply, error) {
	if !b.hold() {
		return nil, errClosed()
	}
	defer b.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	return serve(ctx, req, out)
}

func errClosed() error {
	return router.Errorf(router.ErrUnavailable, "this node is shutting down; nothing was executed")
}

// hold keeps Close waiting until wg.Done. It fails once Close was called.
func (b *Backend) hold() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.wg.Add(1)
	return true
}

// spawn runs f in a goroutine that Close waits for, unless it is too late.
func (b *Backend) spawn(f func()) bool {
	if !b.hold() {
		return false
	}
	go func() {
		defer b.wg.Done()
		f()
	}()
	return true
}

// Probe implements router.Backend. It asks no member: what the aggregate can
// carry does not depend on who is there.
func (b *Backend) Probe(context.Context) (router.Info, error) {
	return router.Info{
		Name:         "ripstop",
		Version:      b.opts.Version,
		Versions:     versions(),
		Capabilities: json.RawMessage(capabilities),
	}, nil
}

func versions() []string {
	return append([]string{router.Version20260728}, router.LegacyVersions...)
}

// Close implements router.Backend: requests in flight are cancelled, sessions
// with members ended, within ListTimeout.
func (b *Backend) Close() error {
	b.closing.Do(func() {
		b.mu.Lock()
		b.closed = true
		var sessions []*session
		for _, s := range b.sessions {
			sessions = append(sessions, s)
		}
		members := b.members
		b.sessions, b.members = map[string]*session{}, map[string]*member{}
		b.mu.Unlock()

		b.stop()
		ctx, cancel := b.ending()
		defer cancel()
		parallel(sessions, func(s *session) { s.end(ctx) })
		for _, m := range members {
			m.end(ctx)
		}
		b.wg.Wait()
	})
	return nil
}

// parallel calls f for each item, a bounded number at a time, and waits.
func parallel[T any](items []T, f func(T)) {
	const atOnce = 64
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, item := range items {
		slots <- struct{}{}
		wg.Go(func() {
			f(item)
			<-slots
		})
	}
	wg.Wait()
}

// expire ends what was not used for IdleTimeout.
func (b *Backend) expire() {
	tick := time.NewTicker(max(min(b.opts.IdleTimeout/4, time.Minute), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case now := <-tick.C:
			b.expireAt(now)
		}
	}
}

func (b *Backend) expireAt(now time.Time) {
	before := now.Add(-b.opts.IdleTimeout)
	var idle []*session
	b.mu.Lock()
	for id, s := range b.sessions {
		if s.idleSince(before) {
			idle = append(idle, s)
			delete(b.sessions, id)
		}
	}
	var members []*member
	for _, m := range b.members {
		members = append(members, m)
	}
	b.mu.Unlock()
	ctx, cancel := b.ending()
	defer cancel()
	parallel(idle, func(s *session) {
		b.log.Info("session ended: it was not used", "session", s.id, "for", b.opts.IdleTimeout)
		s.end(ctx)
	})
	parallel(members, func(m *member) { m.expire(ctx, before) })
}
