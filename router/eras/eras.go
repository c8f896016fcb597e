// Package eras makes clients and servers of different protocol generations work
// together: a [router.Handler] around a backend that gives a server of one era
// the other one too.
//
//	              legacy-only server        modern-only server        speaks both
//	legacy client untouched                 sessions here (legacy.go) untouched
//	modern client calls held here (held.go) untouched                 untouched
//
// What a server speaks is learned by [router.Backend.Probe], before the first
// request that depends on it; from then on it costs a request one atomic load.
// Bare requests are none of this package's: backends translate them themselves.
//
// Legacy client, modern-only server: a session is kept here, in memory, and each
// request gets the metadata of 2026-07-28. A result that asks for input becomes
// requests on the client's stream, whose answers go to the server in a new
// request (input.go). One subscriptions/listen feeds the session's own stream
// (follow.go).
//
// Modern client, legacy-only server: requests that the server can't ask anything
// about go through the anonymous session of bare requests (modern.go). A call
// whose client can be asked has a legacy session to itself, from a pool (own.go);
// when the server asks, the call is held, and its client gets the questions with
// a sealed requestState by which its retry finds the call again (held.go,
// state.go). Subscriptions of one principal share a session (feed.go).
package eras

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Options configure [Wrap]. Zero values are fine.
type Options struct {
	Instance string // this instance's id, the prefix of session ids and in every requestState; "" = a new one
	Keys     Keys   // what requestState is sealed with; nil = a key of this process

	// Fallback has server/discover of a legacy-only server name only the versions
	// that the server speaks itself. Then a client that speaks both eras goes on
	// with initialize, and keeps a session, and with it a state at the server, that
	// is its own. Requests of 2026-07-28 are answered all the same.
	Fallback bool

	StateTTL time.Duration // how long a held call waits for its client's answer, and a requestState holds; 0 = 5 min
	MaxHeld  int           // calls of modern clients that the server can ask something; 0 = 1024

	IdleTimeout time.Duration // a legacy client's session with no call and no stream for so long is ended; 0 = 30 min
	MaxSessions int           // sessions of legacy clients at once; 0 = 100,000

	Logger *slog.Logger // nil = none
}

func (o Options) withDefaults() Options {
	if o.Instance == "" {
		o.Instance = router.NewInstanceID()
	}
	if o.Keys == nil {
		o.Keys = RandomKeys()
	}
	if o.StateTTL == 0 {
		o.StateTTL = 5 * time.Minute
	}
	if o.MaxHeld == 0 {
		o.MaxHeld = 1024
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 30 * time.Minute
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 100_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// wrapper is what Wrap returns.
type wrapper struct {
	inner router.Backend
	opts  Options
	log   *slog.Logger

	era    atomic.Int32 // eraUnknown until learned
	learns learning
	greets greeting
	pool   pool
	feeds  feeds
	tools  tools

	open atomic.Int64 // len(sessions), so that most requests need no lock

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines; added to under mu while open

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session // of legacy clients, by id
	opening  int
	sweeper  *time.Timer
	held     map[callID]*held
}

var _ router.Backend = (*wrapper)(nil)

// Wrap returns b with the era that its server lacks. Closing it closes b.
func Wrap(b router.Backend, opts Options) router.Backend {
	opts = opts.withDefaults()
	w := &wrapper{
		inner: b, opts: opts, log: opts.Logger,
		sessions: map[string]*session{}, held: map[callID]*held{},
	}
	w.pool.w, w.feeds.w = w, w
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Serve implements [router.Handler].
func (w *wrapper) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Session != "" && w.open.Load() > 0 {
		if s := w.session(req.Session); s != nil {
			defer s.release()
			return s.serve(ctx, req, out)
		}
	}
	m := req.Message
	if req.Op != router.OpMessage || m == nil {
		return w.inner.Serve(ctx, req, out)
	}
	switch {
	case req.Era == router.EraModern:
		if w.speaks(ctx, modernPatience) == eraLegacy {
			return w.serveModern(ctx, req, out)
		}
		reply, err := w.inner.Serve(ctx, req, out)
		if err == nil && reply != nil && reply.Status == 400 {
			w.doubt(req, reply)
		}
		return reply, err
	case req.Era == router.EraLegacy && m.Method == "initialize" && m.Kind == jsonrpc.Request && req.Session == "":
		if w.speaks(ctx, legacyPatience) == eraModern {
			return w.initialize(ctx, req)
		}
	}
	return w.inner.Serve(ctx, req, out)
}

// spawn runs f in a goroutine that Close waits for. It reports whether it could.
func (w *wrapper) spawn(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.wg.Go(f)
	return true
}

// ending is the context for what is done when something ends, whoever waits.
func (w *wrapper) ending() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(w.ctx), endTimeout)
}

// endTimeout bounds what is said to a server as something ends.
const endTimeout = 2 * time.Second

// Close implements [router.Backend].
func (w *wrapper) Close() error {
	w.mu.Lock()
	w.closed = true
	sessions := w.sessions
	w.sessions = map[string]*session{}
	w.open.Store(0)
	if w.sweeper != nil {
		w.sweeper.Stop()
	}
	w.mu.Unlock()
	for _, s := range sessions {
		s.close()
	}
	w.cancel()
	w.wg.Wait()
	return w.inner.Close()
}

func (w *wrapper) errClosing() error {
	return router.Errorf(router.ErrUnavailable, "instance %s is shutting down; nothing was executed", w.opts.Instance)
}

// errorCode returns the code of an error response, or 0.
func errorCode(m *jsonrpc.Message) int {
	var code int
	if raw := field(m.Error, "code"); raw != nil {
		_, _ = fmt.Sscan(string(raw), &code) // what is no number is no code
	}
	return code
}

// answered returns a reply's response; a JSON-RPC error in it is the error.
func answered(reply *router.Reply, err error) (*jsonrpc.Message, error) {
	if err != nil {
		return nil, err
	}
	if reply == nil || len(reply.Body) == 0 {
		return nil, errors.New("the server did not answer")
	}
	m, err := jsonrpc.Parse(reply.Body)
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	if m.Error != nil {
		return nil, &router.Error{Code: errorCode(m), Status: 200, Text: text(field(m.Error, "message")), Data: field(m.Error, "data")}
	}
	return m, nil
}

func accepted() *router.Reply { return &router.Reply{Status: 202} }

func result(id, raw []byte) *router.Reply { return &router.Reply{Body: jsonrpc.NewResult(id, raw)} }

func refuse(code, status int, format string, args ...any) error {
	return &router.Error{Code: code, Status: status, Text: fmt.Sprintf(format, args...)}
}
