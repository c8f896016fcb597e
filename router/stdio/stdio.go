// Package stdio runs an MCP server as a child process that speaks
// newline-delimited JSON-RPC on its standard input and output (MCP, transports,
// "stdio"), and offers it as a [router.Backend].
//
// A legacy session has a child of its own, and with it a state of its own,
// unless Options.Shared. Requests without a session, of the modern era or bare,
// go to one kept child. The layers, from the bottom:
//
//	process.go   one child: pipes, process group, end; guard.go outlives kill -9
//	conn.go      JSON-RPC over one child: ids rewritten, answers matched
//	call.go      one request in flight, and the messages that belong to it
//	link.go      a child that is started again when it died, with backoff
//	session.go   a legacy session: what to replay, its own stream, its child's questions
//	kept.go      the child without a session, or of all sessions
//	stdio.go     which of them a request goes to
package stdio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// closeTimeout bounds Close. It is more than a child's end can take, unless the
// kernel does not let it die.
const closeTimeout = stopGrace*5/2 + time.Second

// Backend runs an MCP server as child processes. It is safe for concurrent use.
type Backend struct {
	opts Options
	cmd  command
	log  *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	anon   *link // the kept child: requests without a session, and all sessions if Shared
	legacy *link // Shared, and anon's child turned out to be of the modern era: the sessions' child
	known  atomic.Pointer[hello]
	noDisc atomic.Bool // don't try server/discover: it is known to be no use

	mu       sync.Mutex
	closed   bool
	sweeping bool // the janitor runs
	sessions map[string]*session
	opening  int // sessions being opened
	conns    map[*conn]struct{}
	work     sync.WaitGroup // goroutines and processes; none is added once closed
	closing  sync.Once
	closeErr error
}

var _ router.Backend = (*Backend)(nil)

// New returns a backend. It checks that the command can be found and starts
// nothing: processes are started for the requests that need them.
func New(o Options) (*Backend, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("stdio server: %w", err)
	}
	cmd, err := o.resolve()
	if err != nil {
		return nil, fmt.Errorf("stdio server: %w", err)
	}
	b := &Backend{opts: o, cmd: cmd, log: o.Logger.With("instance", o.Instance),
		sessions: map[string]*session{}, conns: map[*conn]struct{}{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.anon = newKept(b, b.greet)
	if o.Shared {
		b.legacy = newKept(b, b.initialize)
	}
	guard.join()
	return b, nil
}

// Serve implements [router.Handler].
func (b *Backend) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if out == nil {
		out = router.Discard
	}
	if req.Op == router.OpMessage {
		return b.message(ctx, req, out)
	}
	s, err := b.session(req)
	if err != nil {
		return nil, err
	}
	defer s.release()
	if req.Op == router.OpEnd {
		b.end(s, "its client ended it")
		return &router.Reply{Status: http.StatusNoContent}, nil
	}
	return s.listen(ctx, out)
}

func (b *Backend) message(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	switch {
	case m == nil:
		return nil, errors.New("stdio backend: request without a message")
	case m.Kind == jsonrpc.Request && m.Method == "initialize" && req.Session == "" && req.Era != router.EraModern:
		return b.open(ctx, req, out)
	case req.Era != router.EraLegacy:
		if m.Kind != jsonrpc.Request {
			return accepted(), nil // nothing a client without a session could refer to
		}
		return b.once(ctx, req, out)
	}
	s, err := b.session(req)
	if err != nil {
		return nil, err
	}
	defer s.release()
	switch m.Kind {
	case jsonrpc.Notification:
		return s.notify(ctx, m)
	case jsonrpc.Response:
		return s.answer(ctx, m)
	}
	return s.request(ctx, m, out)
}

func accepted() *router.Reply { return &router.Reply{Status: http.StatusAccepted} }

// session returns the session req names, marked as in use until release.
func (b *Backend) session(req *router.Request) (*session, error) {
	if req.Session == "" {
		return nil, &router.Error{Code: jsonrpc.CodeInvalidRequest, Status: http.StatusBadRequest,
			Text: "Mcp-Session-Id is required; send initialize first"}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosing(b)
	}
	s := b.sessions[req.Session]
	if s == nil {
		return nil, router.Errorf(router.ErrSessionNotFound, "session %q is not known here: it ended or never was; send initialize again", req.Session)
	}
	s.active.Add(1)
	return s, nil
}

func errClosing(b *Backend) error {
	return router.Errorf(router.ErrUnavailable, "instance %s is shutting down; nothing was executed", b.opts.Instance)
}

// admit takes a place for a session to be opened; admitted gives it back.
func (b *Backend) admit() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Processes of ended sessions take seconds to die; without a bound on them
	// too, a client could pile them up.
	held := len(b.sessions) + b.opening
	switch {
	case b.closed:
		return errClosing(b)
	case held >= b.opts.MaxSessions || len(b.conns) > 2*b.opts.MaxSessions+8:
		return router.Errorf(router.ErrOverloaded,
			"instance %s holds %d sessions and may hold %d: end one, or start the server with a higher limit", b.opts.Instance, held, b.opts.MaxSessions)
	}
	b.opening++
	return nil
}

func (b *Backend) admitted() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opening--
}

// keep makes s known under a fresh id, in place of the place admit gave.
func (b *Backend) keep(s *session) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	s.id = router.NewSessionID(b.opts.Instance)
	b.sessions[s.id] = s
	b.sweepLocked()
	return true
}

// end ends a session; its child dies in the background.
func (b *Backend) end(s *session, why string) {
	b.mu.Lock()
	known := b.sessions[s.id] == s
	delete(b.sessions, s.id)
	b.mu.Unlock()
	if known {
		b.log.Debug("session ended", "session", s.id, "why", why)
		s.close(why)
	}
}

// sessionsOf returns the sessions that share l's child.
func (b *Backend) sessionsOf(l *link) []*session {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*session
	for _, s := range b.sessions {
		if s.link == l {
			all = append(all, s)
		}
	}
	return all
}

// background runs f in a goroutine that Close waits for. It reports whether it
// could.
func (b *Backend) background(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.work.Go(f)
	return true
}

// spawn starts a child. The error is one for the client.
func (b *Backend) spawn(o owner) (*conn, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, errClosing(b)
	}
	b.work.Add(1) // until the process is gone
	b.sweepLocked()
	b.mu.Unlock()
	p, err := startProcess(b.cmd, b.log)
	if err != nil {
		b.work.Done()
		return nil, router.Errorf(router.ErrBackend, "%v; nothing was executed", err)
	}
	c := newConn(p, o, b.log)
	if _, ok := o.(*kept); ok {
		c.patience = keptPatience
	}
	b.mu.Lock()
	b.conns[c] = struct{}{}
	closed := b.closed
	b.mu.Unlock()
	c.run(func() {
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
		b.work.Done()
	})
	if closed { // Close has not seen it
		c.stop("the instance is shutting down")
		return nil, errClosing(b)
	}
	b.log.Debug("server process started", "pid", p.pid)
	return c, nil
}

// discard stops a child without waiting for it.
func (b *Backend) discard(c *conn, why string) {
	b.background(func() { c.stop(why) }) // once closed, Close stops it
}

// Close implements [router.Backend]. It takes at most 6 s, and then says which
// processes are left.
func (b *Backend) Close() error {
	b.closing.Do(func() { b.closeErr = b.close() })
	return b.closeErr
}

func (b *Backend) close() error {
	b.mu.Lock()
	b.closed = true
	sessions, conns := b.sessions, b.conns
	b.sessions = nil
	for c := range conns {
		b.work.Go(func() { c.stop("the instance is shutting down") })
	}
	b.mu.Unlock()
	for _, s := range sessions {
		s.close("the instance is shutting down")
	}
	for _, l := range []*link{b.anon, b.legacy} {
		if l != nil {
			l.close("the instance is shutting down", errClosing(b))
		}
	}
	b.cancel()
	gone := make(chan struct{})
	go func() { b.work.Wait(); close(gone) }()
	defer guard.leave()
	if within(gone, closeTimeout) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Errorf("close instance %s: %d processes do not end", b.opts.Instance, len(b.conns))
}
