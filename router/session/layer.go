package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Defaults of Options.
const (
	DefaultIdle         = 30 * time.Minute
	DefaultMaxSessions  = 100_000
	DefaultAdoptTimeout = 35 * time.Second // a little more than a backend has to start its server
)

// Options say whose sessions a Layer keeps.
type Options struct {
	Backend  router.Backend // closed by Close; its own idle limit should be longer than Idle
	Server   string         // logical server name
	Instance string         // id of this instance
	Node     func() string  // the node the instance is attached to, for records; nil = unknown
	Keeper   Keeper

	// OnMove is what becomes of a session whose instance, or whose backend
	// session, is gone: sessions.OnMoveReinitialize (or "") or sessions.OnMoveEnd.
	OnMove string

	// Events keeps the events of streams where another instance finds them; nil =
	// they are kept in this process only.
	Events EventLog

	Idle         time.Duration // ends a session that had neither a call nor a stream for so long; 0 = DefaultIdle
	MaxSessions  int           // held at once; 0 = DefaultMaxSessions
	AdoptTimeout time.Duration // bounds making a backend session anew; 0 = DefaultAdoptTimeout
	Logger       *slog.Logger  // nil = no log
}

// EventLog keeps the numbered messages of sessions' streams for the owner that
// comes after; sessions.EventLog is one.
type EventLog interface {
	// Append keeps message n of a stream. It never blocks, and what it can't keep
	// up with it may lose. msg is not changed any more.
	Append(session, stream string, n uint64, msg []byte)

	// Load calls f with the messages of a stream after a number, in order.
	Load(ctx context.Context, session, stream string, after uint64, f func(n uint64, msg []byte) error) error

	// Forget drops what there is of a session that has ended.
	Forget(session string)
}

// Layer is a backend whose sessions survive it. It is safe for concurrent use.
type Layer struct {
	opts Options
	log  *slog.Logger
	data DataKeeper // nil = servers can't keep any

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	began  time.Time      // what now counts from
	work   sync.WaitGroup // goroutines; none is added once closed, see begin
	tick   atomic.Int64   // when the process was last seen running
	pauses atomic.Uint32  // how often it stood still
	paused atomic.Int64   // when it last went on; 0 = it never stood still

	stats   stats
	workers workers
	bytes   atomic.Int64 // in all rings

	mu       sync.RWMutex // never taken before a session's
	closed   bool
	sessions map[string]*session

	odd     sync.Mutex
	kept    map[*events]struct{}  // those with something that expires
	unsaved map[*session]struct{} // those whose changes are not recorded yet
	left    map[string]departure  // sessions released, by id
	closing sync.Once
	failure error // of Close
}

var _ router.Backend = (*Layer)(nil)

// New returns a layer over opts.Backend.
func New(opts Options) (*Layer, error) {
	switch {
	case opts.Backend == nil || opts.Keeper == nil || opts.Server == "" || opts.Instance == "":
		return nil, errors.New("session layer: backend, keeper, server and instance are required")
	case opts.OnMove != "" && opts.OnMove != sessions.OnMoveReinitialize && opts.OnMove != sessions.OnMoveEnd:
		return nil, fmt.Errorf("session layer: on-move %q is neither %q nor %q", opts.OnMove, sessions.OnMoveReinitialize, sessions.OnMoveEnd)
	case opts.Idle < 0 || opts.MaxSessions < 0 || opts.AdoptTimeout < 0:
		return nil, fmt.Errorf("session layer: idle %v, max sessions %d, adopt timeout %v: none may be negative", opts.Idle, opts.MaxSessions, opts.AdoptTimeout)
	}
	l := &Layer{
		opts: opts.withDefaults(), began: time.Now(),
		sessions: map[string]*session{}, kept: map[*events]struct{}{},
		unsaved: map[*session]struct{}{}, left: map[string]departure{},
	}
	l.log = l.opts.Logger.With("server", opts.Server, "instance", opts.Instance)
	l.data, _ = opts.Keeper.(DataKeeper)
	l.workers.next = make(chan func())
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.work.Go(l.watch)
	l.work.Go(l.tidy)
	return l, nil
}

func (o Options) withDefaults() Options {
	if o.Node == nil {
		o.Node = func() string { return "" }
	}
	if o.OnMove == "" {
		o.OnMove = sessions.OnMoveReinitialize
	}
	if o.Idle == 0 {
		o.Idle = DefaultIdle
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.AdoptTimeout == 0 {
		o.AdoptTimeout = DefaultAdoptTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Serve implements [router.Handler]. What is in no session goes to the backend
// as it is.
func (l *Layer) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if out == nil {
		out = router.Discard
	}
	if req.Session == "" {
		if m := req.Message; m != nil && m.Kind == jsonrpc.Request && m.Method == "initialize" && req.Era != router.EraModern {
			return l.open(ctx, req, out)
		}
		if req.StreamID != "" {
			return l.outlive(ctx, req, out)
		}
		return l.opts.Backend.Serve(ctx, req, out)
	}
	switch {
	case req.Op == router.OpListen:
		return l.listen(ctx, req, out)
	case req.Op == router.OpEnd:
		return l.end(ctx, req)
	case req.Era != router.EraLegacy || req.Message == nil:
		return l.opts.Backend.Serve(ctx, req, out)
	}
	return l.message(ctx, req, out)
}

// Probe implements [router.Backend].
func (l *Layer) Probe(ctx context.Context) (router.Info, error) { return l.opts.Backend.Probe(ctx) }

// Close implements [router.Backend]: backend sessions end, and with them what is
// in flight. Their records stay, for another instance to take over, unless
// sessions end with their instance.
func (l *Layer) Close() error {
	l.closing.Do(func() { l.failure = l.close() })
	return l.failure
}

// endTimeout bounds telling the keeper of ended sessions when the layer closes.
const endTimeout = 3 * time.Second

func (l *Layer) close() error {
	l.mu.Lock()
	l.closed = true
	all := l.sessions
	l.sessions = map[string]*session{}
	l.mu.Unlock()
	l.cancel()
	var held []*session
	for _, s := range all {
		held = append(held, s)
		s.kill(l.errClosing())
	}
	if l.opts.OnMove == sessions.OnMoveEnd {
		ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
		defer cancel()
		l.endRecords(ctx, held)
	}
	err := l.opts.Backend.Close()
	l.work.Wait()
	return err
}

func (l *Layer) errClosing() *router.Error {
	return router.Errorf(router.ErrUnavailable, "instance %s of %q is shutting down; nothing was executed", l.opts.Instance, l.opts.Server)
}

// begin counts a goroutine that Close waits for; it must call l.work.Done. It
// reports false once the layer is closed.
func (l *Layer) begin() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if !l.closed {
		l.work.Add(1)
	}
	return !l.closed
}

// background runs f in a goroutine of the layer, if it is open.
func (l *Layer) background(f func()) bool {
	if !l.begin() {
		return false
	}
	go func() {
		defer l.work.Done()
		f()
	}()
	return true
}

// call asks the backend. A panic of a server in this process fails the call it
// happened in, whatever goroutine that is in.
func (l *Layer) call(ctx context.Context, req *router.Request, out router.Stream) (reply *router.Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			l.log.Error("server panicked", "method", req.Method(), "panic", p, "stack", string(debug.Stack()))
			reply, err = nil, router.Errorf(router.ErrOutcomeUnknown, "server %q panicked while it worked on this call; it may have been executed", l.opts.Server)
		}
	}()
	reply, err = l.opts.Backend.Serve(ctx, req, out)
	if reply == nil && err == nil {
		reply = &router.Reply{Status: http.StatusAccepted}
	}
	return reply, err
}

// now is the time since the layer began, on the monotonic clock.
func (l *Layer) now() time.Duration { return time.Since(l.began) }

// Info is a session that a Layer holds.
type Info struct {
	ID        string
	Epoch     uint64
	Used      time.Time // when it last had something to do
	InFlight  int       // calls
	Listening bool      // its own stream has a taker
}

// Sessions returns the sessions held here, in no order.
func (l *Layer) Sessions() []Info {
	var list []Info
	for _, s := range l.held() {
		if i, ok := l.info(s); ok {
			list = append(list, i)
		}
	}
	return list
}

// Session returns a session, if it is held here.
func (l *Layer) Session(id string) (Info, bool) {
	l.mu.RLock()
	s := l.sessions[id]
	l.mu.RUnlock()
	if s == nil {
		return Info{}, false
	}
	return l.info(s)
}

func (l *Layer) info(s *session) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.backend == "" {
		return Info{}, false
	}
	return Info{ID: s.id, Epoch: s.epoch, Used: l.began.Add(s.used), InFlight: int(s.calls), Listening: s.listening()}, true
}

// Any reports whether sessions are held here.
func (l *Layer) Any() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.sessions) > 0
}

// Holds reports whether a session is held here.
func (l *Layer) Holds(id string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.sessions[id] != nil
}

func (l *Layer) held() []*session {
	l.mu.RLock()
	defer l.mu.RUnlock()
	list := make([]*session, 0, len(l.sessions))
	for _, s := range l.sessions {
		list = append(list, s)
	}
	return list
}

// Stats count what has happened since the layer was made.
type Stats struct {
	Opened        uint64 // by initialize
	Reinitialized uint64 // backend sessions made anew, for whatever reason
	Deposed       uint64 // sessions given up to another owner
	Ended         uint64 // by their clients, by idleness, or since they could not be made anew
}

type stats struct{ opened, reinitialized, deposed, ended atomic.Uint64 }

// Stats returns the counts.
func (l *Layer) Stats() Stats {
	return Stats{l.stats.opened.Load(), l.stats.reinitialized.Load(), l.stats.deposed.Load(), l.stats.ended.Load()}
}
