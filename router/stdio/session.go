package stdio

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// metaReinitialized is set in the first result after a session's child was
// started anew: what the old one kept in its memory is gone.
const metaReinitialized = "ripstop/reinitialized"

// session is one legacy session. It owns its child's messages, unless it shares
// the child with others.
type session struct {
	b    *Backend
	id   string
	link *link           // its own, or the one all share
	caps map[string]bool // what its client can be asked for; only known if shared

	active atomic.Int32  // requests and streams
	used   atomic.Int64  // when the last of them ended, Unix nanoseconds
	seen   atomic.Uint64 // gen of the child its last result came from

	own outbox

	mu      sync.Mutex
	state   replay
	asks    map[int64]*ask
	lastAsk int64 // the last id given to a request of the child
}

// replay is what a new child must be told to take a session over.
type replay struct {
	params      []byte // of initialize
	initialized bool
	level       []byte            // params of the last logging/setLevel
	subs        map[string][]byte // params of resources/subscribe, by URI
}

// open answers a legacy initialize.
func (b *Backend) open(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if err := b.admit(); err != nil {
		return nil, err
	}
	defer b.admitted()
	s := &session{b: b, state: replay{params: clone(req.Message.Params)}}
	s.used.Store(time.Now().UnixNano())
	if b.opts.Shared {
		return b.openShared(ctx, req, s)
	}
	s.link = newLink(b, s, s.reinitialize)
	s.link.single = b.opts.EndWithProcess
	o, err := s.start(ctx, req.Message, out)
	if err != nil || o.failed {
		s.close("it was not opened")
		return o.reply(), err
	}
	if !b.keep(s) {
		return nil, errClosing(b)
	}
	r := o.reply()
	r.Session = s.id
	return r, nil
}

// start starts the session's first child with the client's own initialize.
func (s *session) start(ctx context.Context, m *jsonrpc.Message, out router.Stream) (outcome, error) {
	limited, cancel := context.WithTimeout(ctx, s.b.opts.StartTimeout)
	defer cancel()
	c, err := s.b.spawn(s)
	if err != nil {
		return outcome{}, err
	}
	c.gen = 1
	s.seen.Store(c.gen)
	cl := s.call(c, m)
	var o outcome
	if err = c.send(limited, cl, legacyLine(m)); err == nil {
		o, err = cl.wait(limited, out)
	}
	switch {
	case err == nil && o.body != nil:
	case ctx.Err() != nil:
	case limited.Err() != nil:
		err = router.Errorf(router.ErrBackend, "the server did not answer initialize within %v; nothing was executed", s.b.opts.StartTimeout)
	case errors.Is(err, errNotSent):
		err = startFailed(c.unsent())
	default:
		err = startFailed(cmp.Or(err, o.failure(cl)))
	}
	if err != nil || o.failed {
		s.b.discard(c, "initialize failed")
		return o, err
	}
	return o, s.link.set(c)
}

func (s *session) call(c *conn, m *jsonrpc.Message) *call {
	cl := newCall(c)
	cl.clientID, cl.token, cl.method, cl.name, cl.sess = m.ID, m.ProgressToken, m.Method, m.Name, s
	return cl
}

// legacyLine makes the line of a client's request from the id it is given.
func legacyLine(m *jsonrpc.Message) func([]byte) []byte {
	return func(id []byte) []byte {
		return encode(m.Edit(jsonrpc.Edit{ID: id, ProgressToken: id}), true)
	}
}

// release ends one use of the session.
func (s *session) release() {
	s.used.Store(time.Now().UnixNano())
	s.active.Add(-1)
}

func (s *session) idleFor(t time.Time) time.Duration {
	if s.active.Load() > 0 {
		return 0
	}
	return t.Sub(time.Unix(0, s.used.Load()))
}

// request serves a request of the client.
func (s *session) request(ctx context.Context, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if s.keepsSubscription(m) {
		return &router.Reply{Body: jsonrpc.NewResult(m.ID, []byte("{}"))}, nil
	}
	o, err := s.b.roundTrip(ctx, s.link, out, func(c *conn) (*call, func([]byte) []byte, error) {
		return s.call(c, m), legacyLine(m), nil
	})
	if err != nil {
		return nil, err
	}
	if !o.failed && o.body != nil {
		s.remember(m)
	}
	return o.reply(), nil
}

// remember keeps what a new child must be told again.
func (s *session) remember(m *jsonrpc.Message) {
	switch m.Method {
	default:
		return
	case "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.Method {
	case "logging/setLevel":
		s.state.level = clone(m.Params)
	case "resources/subscribe":
		if s.state.subs == nil {
			s.state.subs = map[string][]byte{}
		}
		s.state.subs[m.Name] = clone(m.Params)
	case "resources/unsubscribe":
		delete(s.state.subs, m.Name)
	}
}

// mark notes in the first result of a new child that it is one.
func (s *session) mark(c *conn, m *jsonrpc.Message) *jsonrpc.Message {
	if s.seen.Load() == c.gen || s.seen.Swap(c.gen) == c.gen {
		return m
	}
	marked, err := jsonrpc.Parse(m.WithResultMeta(metaReinitialized, []byte(`{"cause":"the server's process was started anew"}`)))
	if err != nil {
		return m
	}
	return marked
}

// notify serves a notification of the client. Without a child there is no one
// to tell: a new one learns of initialized by replay, and has nothing to cancel.
func (s *session) notify(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	if m.Method == "notifications/initialized" {
		s.mu.Lock()
		s.state.initialized = true
		s.mu.Unlock()
	}
	c := s.link.live()
	if c == nil || s.shared() && (m.Method == "notifications/initialized" || strings.HasPrefix(m.Method, "notifications/roots/")) {
		return accepted(), nil // the shared child was initialized by this side, without roots
	}
	msg := m.Raw
	if m.Method == "notifications/cancelled" {
		cl := c.find(func(cl *call) bool { return cl.sess == s && bytes.Equal(cl.clientID, m.CancelID) })
		if cl == nil || cl.method == "initialize" {
			return accepted(), nil
		}
		cl.cancelled()
		msg = m.Edit(jsonrpc.Edit{CancelID: cl.wireID()})
	}
	if err := c.notify(ctx, msg); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return accepted(), nil
}

// listen serves the session's own stream until the client leaves, another
// listener takes over, or the session ends.
func (s *session) listen(ctx context.Context, out router.Stream) (*router.Reply, error) {
	l := s.own.attach(ctx)
	defer s.own.detach(l)
	if err := out.Send(l.ctx, nil); err != nil && l.ctx.Err() == nil { // it is open
		return nil, err
	}
	for {
		n, ok := s.own.next(l)
		if !ok {
			break
		}
		if err := out.Send(l.ctx, n.msg); err != nil {
			s.own.putBack(n)
			if l.ctx.Err() == nil {
				return nil, err
			}
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &router.Reply{Status: http.StatusOK}, nil
}

// reinitialize is the handshake of every child but the first: it replays what
// the client told the old one.
func (s *session) reinitialize(ctx context.Context, c *conn) error {
	s.mu.Lock()
	st := s.state
	st.subs = maps.Clone(st.subs)
	s.mu.Unlock()
	if _, err := c.ask(ctx, "initialize", st.params); err != nil {
		return startFailed(err)
	}
	if st.initialized {
		if err := c.notify(ctx, jsonrpc.NewRequest(nil, "notifications/initialized", nil)); err != nil {
			return startFailed(err)
		}
	}
	return st.restore(ctx, c)
}

// restore sets log level and subscriptions. What the server refuses now is
// logged: the session is of more use without it than not at all.
func (st *replay) restore(ctx context.Context, c *conn) error {
	ask := func(method string, params []byte) error {
		_, err := c.ask(ctx, method, params)
		if err != nil && c.alive() && ctx.Err() == nil {
			c.log.Warn("server refused what it had accepted before its restart", "method", method, "err", err)
			return nil
		}
		return err
	}
	if st.level != nil {
		if err := ask("logging/setLevel", st.level); err != nil {
			return startFailed(err)
		}
	}
	for _, params := range st.subs {
		if err := ask("resources/subscribe", params); err != nil {
			return startFailed(err)
		}
	}
	return nil
}

func (s *session) close(why string) {
	s.own.close()
	s.mu.Lock()
	asks := s.asks
	s.asks = nil
	s.mu.Unlock()
	ended := router.Errorf(router.ErrSessionNotFound, "session %q has ended: %s; send initialize again", s.id, why)
	if s.shared() {
		s.b.leave(s, asks, why)
		return
	}
	s.link.close(why, ended)
}

// notified implements owner.
func (s *session) notified(c *conn, m *jsonrpc.Message) {
	s.deliver(c, clone(m.Raw), ofSession(m.Method))
}

// ofSession reports whether a notification is about the session rather than a
// request of it.
func ofSession(method string) bool {
	return method == "notifications/resources/updated" || strings.HasSuffix(method, "/list_changed")
}

// deliver brings a notification to the client: on the stream of its newest
// request, or the session's own.
func (s *session) deliver(c *conn, msg []byte, ownFirst bool) {
	if !(ownFirst && s.own.attached()) {
		for cl := c.find(s.isMine); cl != nil; cl = c.find(s.isMine) {
			if cl.push(msg) {
				return
			}
		}
	}
	s.queue(note{msg: msg})
}

func (s *session) isMine(cl *call) bool { return cl.sess == s }

func (s *session) queue(n note) {
	for _, id := range s.own.push(n, s.b.log.With("session", s.id)) {
		s.refuseAsk(id, "no stream of the client took the request")
	}
}

// exited implements owner.
func (s *session) exited(c *conn, e *exit) {
	s.forget(c)
	s.link.exited(c, e)
	if s.link.single && !s.shared() && !c.ending.Load() {
		s.b.end(s, "the server's process ended")
	}
}

// forget drops what a child asked that is gone.
func (s *session) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.asks, func(_ int64, a *ask) bool { return a.conn == c })
}

func (s *session) shared() bool { return s.link.owner != owner(s) }

// capabilities returns what the client of an initialize can be asked for.
func capabilities(params []byte) map[string]bool {
	var p struct {
		Capabilities map[string]json.RawMessage `json:"capabilities"`
	}
	if json.Unmarshal(params, &p) != nil {
		return nil
	}
	caps := make(map[string]bool, len(p.Capabilities))
	for name, value := range p.Capabilities {
		caps[name] = !slices.Equal(value, []byte("null"))
	}
	return caps
}
