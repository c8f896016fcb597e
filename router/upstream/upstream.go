// Package upstream is the backend for an MCP server behind Streamable HTTP: one
// elsewhere, by URL, or an http.Handler in the same process.
//
// Messages pass through byte for byte. Every fabric session has an upstream
// session of its own, so request ids never collide and are never rewritten; the
// one exception is the shared anonymous session behind bare requests (bare.go).
//
// A call is sent at most once. The one way it is sent again is on a connection
// that turned out to be dead before a single byte was written to it, or after
// an answer that says that nothing was executed (a redirect, a lost session
// the backend itself had opened).
//
// Where to look: Serve and sessions here and in session.go, one HTTP exchange
// in call.go, server-sent events in sse.go and stream.go, bare requests and
// what the server is in bare.go and probe.go. Transports: plain.go (HTTP/1.1
// without TLS, the fast path), transport.go (net/http's), inprocess.go.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Limits and times. They are not options: nobody has a reason to know them.
const (
	maxMessage    = 17 << 20 // bytes of one message: the fabric's 16 MiB and some slack for framing
	maxErrorText  = 1 << 10  // bytes of an error page that a client gets to see
	maxSessionID  = 1 << 10  // bytes of an upstream's session id, which is kept
	cancelTimeout = 2 * time.Second
	deleteTimeout = 2 * time.Second // one DELETE of an idle session
	closeTimeout  = 3 * time.Second // all DELETEs of Close
	deleteWorkers = 16              // DELETEs at once
)

// Options configure a Backend.
type Options struct {
	Instance  string            // this instance's id, the prefix of its session ids (router.NewSessionID)
	URL       string            // the MCP endpoint, http or https; user:password@ becomes basic authentication
	Header    http.Header       // added to every request ("headers" in mcp.json)
	Transport http.RoundTripper // nil = the package's own; closed with the backend if it is an io.Closer

	IdleTimeout time.Duration // a session with no call and no stream for so long is ended; 0 = 30 min
	MaxSessions int           // 0 = 100,000
	Logger      *slog.Logger  // nil = none
}

// Backend reaches one MCP server over Streamable HTTP. It is safe for
// concurrent use.
type Backend struct {
	instance  string
	static    http.Header // Options.Header, checked, with Authorization from the URL
	host      string      // Host header; "" = the URL's
	transport http.RoundTripper
	foreign   bool // transport can't abort its calls itself: their contexts must end with ours
	idle      time.Duration
	max       int
	log       *slog.Logger

	target atomic.Pointer[url.URL] // moves with a redirect inside the same origin
	era    atomic.Int32            // eraUnknown, eraModern or eraLegacy: what bare requests are sent as
	seq    atomic.Uint64           // ids of the backend's own requests
	probes chan struct{}           // held while finding out the era
	anon   anonymous

	ctx    context.Context // ends in Close, after the DELETEs
	cancel context.CancelFunc
	calls  sync.WaitGroup // added to only under mu while open, as tasks
	tasks  sync.WaitGroup // short work that outlives the call it is for

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session // by fabric session id
	opening  int                 // initializes in flight, counted against max
	sweeper  *time.Timer         // runs while there are sessions
	done     chan struct{}       // closed when Close is over
}

var _ router.Backend = (*Backend)(nil)

// New returns a backend for the server at opts.URL. It does not connect.
func New(opts Options) (*Backend, error) {
	u, err := parseURL(opts.URL)
	if err != nil {
		return nil, err
	}
	static, host, err := staticHeader(opts.Header, u)
	if err != nil {
		return nil, err
	}
	u.User = nil
	b := &Backend{
		instance: opts.Instance, static: static, host: host, transport: opts.Transport,
		idle: opts.IdleTimeout, max: opts.MaxSessions, log: opts.Logger,
		probes: make(chan struct{}, 1), sessions: map[string]*session{}, done: make(chan struct{}),
	}
	b.anon.init()
	b.target.Store(u)
	if b.idle == 0 {
		b.idle = 30 * time.Minute
	}
	if b.max == 0 {
		b.max = 100_000
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.transport == nil {
		b.transport = defaultTransport(u)
	}
	_, closes := b.transport.(io.Closer)
	b.foreign = !closes
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse upstream url: %w", err)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("upstream url %q: the scheme must be http or https", u.Redacted())
	case u.Hostname() == "":
		return nil, fmt.Errorf("upstream url %q: no host", u.Redacted())
	}
	u.Fragment = ""
	return u, nil
}

// Serve implements router.Handler.
func (b *Backend) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if !b.enter(&b.calls) {
		return nil, b.errClosed()
	}
	defer b.calls.Done()
	if b.foreign {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(b.ctx, cancel)()
	}
	switch req.Op {
	case router.OpListen:
		return b.listen(ctx, req, out)
	case router.OpEnd:
		return b.end(ctx, req)
	}
	switch m := req.Message; {
	case m == nil:
		return nil, router.Errorf(router.ErrRefused, "request without a message")
	case len(m.Raw) > maxMessage:
		return nil, router.Errorf(router.ErrTooLarge, "the message has %d bytes, more than the %d the fabric carries; nothing was executed", len(m.Raw), maxMessage)
	case m.Method == "initialize" && m.Kind == jsonrpc.Request && req.Era != router.EraModern:
		return b.initialize(ctx, req, out)
	case req.Era == router.EraBare:
		return b.bare(ctx, req, out)
	}
	return b.pass(ctx, req, out)
}

// pass sends a message to the session it names, or to none.
func (b *Backend) pass(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	c := call{req: req, body: req.Message.Raw, out: out}
	if req.Message.Kind == jsonrpc.Request {
		c.id = req.Message.ID
	}
	return b.passIn(ctx, &c)
}

// passIn posts c in the session its request names.
func (b *Backend) passIn(ctx context.Context, c *call) (*router.Reply, error) {
	id := c.req.Session
	if c.req.Era == router.EraModern || id == "" {
		return b.post(ctx, c)
	}
	s, err := b.acquire(id)
	if err != nil {
		return nil, err
	}
	defer b.release(s)
	c.session = s.upstream
	reply, err := b.post(ctx, c)
	if errors.Is(err, errSessionGone) {
		b.drop(id)
		err = b.errSession(id)
	}
	return reply, err
}

func (b *Backend) errClosed() error {
	return router.Errorf(router.ErrUnavailable, "the backend of %s is closing; nothing was executed, try again", b.where())
}

// where names the upstream in errors and logs, without credentials or query,
// which may hold some.
func (b *Backend) where() string {
	u := *b.target.Load()
	if u.String() == InProcessURL {
		return "the server"
	}
	u.RawQuery = ""
	return u.Redacted()
}

// enter counts a call or task, or says that the backend is closed.
func (b *Backend) enter(work *sync.WaitGroup) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		work.Add(1)
	}
	return !b.closed
}

// background runs f in a goroutine that Close waits for. It does nothing once
// the backend is closed: then all sessions end anyway.
func (b *Backend) background(timeout time.Duration, f func(context.Context)) {
	if !b.enter(&b.tasks) {
		return
	}
	go func() {
		defer b.tasks.Done()
		ctx, cancel := context.WithTimeout(b.ctx, timeout)
		defer cancel()
		f(ctx)
	}()
}

// Close ends all sessions at the upstream (bounded to 3 s), aborts what is in
// flight, and closes the connections.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		<-b.done
		return nil
	}
	b.closed = true
	sessions := b.sessions
	b.sessions = map[string]*session{}
	if b.sweeper != nil {
		b.sweeper.Stop()
	}
	b.mu.Unlock()
	defer close(b.done)

	abort := time.AfterFunc(closeTimeout, b.cancel)
	b.deleteAll(b.ctx, sessions)
	b.tasks.Wait()
	abort.Stop()
	b.cancel()
	var err error
	if c, ok := b.transport.(io.Closer); ok {
		err = c.Close()
	} else if c, ok := b.transport.(interface{ CloseIdleConnections() }); ok {
		defer c.CloseIdleConnections()
	}
	b.calls.Wait()
	if err != nil {
		return fmt.Errorf("close upstream %s: %w", b.where(), err)
	}
	return nil
}
