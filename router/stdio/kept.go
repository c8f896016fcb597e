package stdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// kept owns the messages of a child that serves requests without a session,
// and all sessions if Options.Shared.
type kept struct {
	b    *Backend
	link *link
}

func newKept(b *Backend, shake func(context.Context, *conn) error) *link {
	k := &kept{b: b}
	k.link = newLink(b, k, shake)
	return k.link
}

// Probe implements [router.Backend]. It starts the kept child unless it runs,
// and keeps it until it has been idle for Options.IdleTimeout.
func (b *Backend) Probe(ctx context.Context) (router.Info, error) {
	c, err := b.anon.acquire(ctx)
	if err != nil {
		return router.Info{}, fmt.Errorf("probe %s: %w", b.opts.Command[0], err)
	}
	return c.hello.Load().info, nil
}

// once serves a request without a session.
func (b *Backend) once(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	if h := b.known.Load(); req.Era == router.EraModern && h != nil && !h.modern {
		return nil, router.UnsupportedVersion(m.Version, h.info.Versions)
	}
	o, err := b.roundTrip(ctx, b.anon, out, func(c *conn) (*call, func([]byte) []byte, error) {
		line := legacyLine(m)
		switch {
		case req.Era == router.EraModern && !c.modern():
			return nil, nil, router.UnsupportedVersion(m.Version, c.hello.Load().info.Versions)
		case req.Era == router.EraBare && c.modern():
			params, err := withMeta(m.Params, modernMeta)
			if err != nil {
				return nil, nil, &router.Error{Code: jsonrpc.CodeInvalidParams, Status: 400, Text: err.Error()}
			}
			full, err := jsonrpc.Parse(jsonrpc.NewRequest(m.ID, m.Method, params))
			if err != nil {
				return nil, nil, err
			}
			line = legacyLine(full)
		}
		cl := newCall(c)
		cl.clientID, cl.token, cl.method, cl.name = m.ID, m.ProgressToken, m.Method, m.Name
		return cl, line, nil
	})
	if err != nil {
		return nil, err
	}
	return o.reply(), nil
}

// roundTrip sends one request to a link's child and waits for its end. prepare
// makes a call of it, and its line, for the child it gets.
func (b *Backend) roundTrip(ctx context.Context, l *link, out router.Stream,
	prepare func(*conn) (*call, func(id []byte) []byte, error)) (outcome, error) {
	for range 3 {
		c, err := l.acquire(ctx)
		if err != nil {
			return outcome{}, err
		}
		cl, line, err := prepare(c)
		if err != nil {
			return outcome{}, err
		}
		err = c.send(ctx, cl, line)
		if errors.Is(err, errNotSent) {
			continue // the child is gone and has seen nothing of it
		}
		if err != nil {
			return outcome{}, err
		}
		o, err := cl.wait(ctx, out)
		l.touch()
		if err == nil {
			err = o.failure(cl)
		}
		return o, err
	}
	return outcome{}, router.Errorf(router.ErrUnavailable, "the server's process ends as soon as it is started; nothing was executed; its stderr is in the log")
}

// exited implements owner.
func (k *kept) exited(c *conn, e *exit) {
	for _, s := range k.b.sessionsOf(k.link) {
		s.forget(c)
	}
	k.link.exited(c, e)
}

// notified implements owner.
func (k *kept) notified(c *conn, m *jsonrpc.Message) {
	uri := ""
	switch {
	case m.Method == "notifications/resources/updated":
		uri = updatedURI(m.Params)
	case !ofSession(m.Method):
		// With several clients in flight it can't be told whose it is, unless
		// they are sessions that have agreed to share.
		cl := c.find(func(cl *call) bool { return cl.sess != nil })
		if cl == nil {
			cl = c.sole()
		}
		if cl != nil && cl.push(clone(m.Raw)) {
			return
		}
	}
	for _, s := range k.b.sessionsOf(k.link) {
		if uri == "" || s.subscribed(uri) {
			s.queue(note{msg: clone(m.Raw)})
		}
	}
}

func updatedURI(params []byte) string {
	var p struct {
		URI string `json:"uri"`
	}
	_ = json.Unmarshal(params, &p) // no uri: all may want to know
	return p.URI
}

// asked implements owner: a request of a child that clients share goes to the
// newest request in flight whose client can answer it.
func (k *kept) asked(c *conn, m *jsonrpc.Message) {
	capability, _, _ := strings.Cut(m.Method, "/")
	able := func(cl *call) bool { return cl.sess != nil && cl.sess.caps[capability] }
	for cl := c.find(able); cl != nil; cl = c.find(able) {
		if cl.sess.forward(c, m, cl) {
			return
		}
	}
	c.refuse(m.ID, jsonrpc.CodeMethodNotFound, "no client that could answer "+m.Method+" has a request in flight")
}

// withdrawn implements owner.
func (k *kept) withdrawn(c *conn, m *jsonrpc.Message) {
	for _, s := range k.b.sessionsOf(k.link) {
		if s.withdraw(c, m) {
			return
		}
	}
}

// openShared answers an initialize with what the shared child answered to this
// side's.
func (b *Backend) openShared(ctx context.Context, req *router.Request, s *session) (*router.Reply, error) {
	l := b.anon
	c, err := l.acquire(ctx)
	if err == nil && c.modern() { // its sessions need a child that was initialized
		l = b.legacy
		c, err = l.acquire(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.link = l
	s.caps = capabilities(req.Message.Params)
	s.seen.Store(c.gen)
	result, err := versioned(c.hello.Load().result, req.Message.Params)
	if err != nil {
		return nil, router.Errorf(router.ErrBackend, "the server's result of initialize can't be used: %v", err)
	}
	if !b.keep(s) {
		return nil, errClosing(b)
	}
	return &router.Reply{Body: jsonrpc.NewResult(req.Message.ID, result), Session: s.id}, nil
}

// versioned returns a result of initialize in the version the client asked for,
// if that is an older one than the child speaks: the client may not know newer.
func versioned(result, params []byte) ([]byte, error) {
	var asked struct {
		Version string `json:"protocolVersion"`
	}
	_ = json.Unmarshal(params, &asked) // a client that asks for none gets what there is
	object := map[string]json.RawMessage{}
	if err := json.Unmarshal(result, &object); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	var spoken string
	if err := json.Unmarshal(object["protocolVersion"], &spoken); err != nil {
		return nil, fmt.Errorf("read protocolVersion: %w", err)
	}
	if !slices.Contains(router.LegacyVersions, asked.Version) || asked.Version >= spoken {
		return result, nil
	}
	return setKey(object, "protocolVersion", asked.Version)
}

// keepsSubscription reports whether an unsubscribe must not reach the child,
// since another session that shares it is subscribed too; it is done then.
func (s *session) keepsSubscription(m *jsonrpc.Message) bool {
	if !s.shared() || m.Method != "resources/unsubscribe" || !s.wantedElsewhere(m.Name) {
		return false
	}
	s.remember(m)
	return true
}

func (s *session) wantedElsewhere(uri string) bool {
	return slices.ContainsFunc(s.b.sessionsOf(s.link), func(other *session) bool { return other != s && other.subscribed(uri) })
}

func (s *session) subscribed(uri string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.subs[uri] != nil
}

// replay returns what the sessions have told a shared child.
func (k *kept) replay() *replay {
	all := &replay{subs: map[string][]byte{}}
	for _, s := range k.b.sessionsOf(k.link) {
		s.mu.Lock()
		maps.Copy(all.subs, s.state.subs)
		if s.state.level != nil {
			all.level = s.state.level
		}
		s.mu.Unlock()
	}
	return all
}

// leave takes a session off the child it shared: its requests are cancelled,
// what it was asked is declined, what only it subscribed to is unsubscribed.
func (b *Backend) leave(s *session, asks map[int64]*ask, why string) {
	c := s.link.live()
	if c == nil {
		return
	}
	for cl := c.find(s.isMine); cl != nil; cl = c.find(s.isMine) {
		if c.remove(cl) {
			c.cancel(cl, why)
			cl.settle(outcome{err: router.Errorf(router.ErrOutcomeUnknown,
				"%s was in flight when its session ended (%s); it may or may not have been executed", cl, why)})
		}
	}
	for _, a := range asks {
		a.conn.refuse(a.id, jsonrpc.CodeInternal, "the client's session has ended")
	}
	s.mu.Lock()
	subs := slices.Collect(maps.Keys(s.state.subs))
	s.mu.Unlock()
	for _, uri := range subs {
		if !s.wantedElsewhere(uri) {
			c.forget("resources/unsubscribe", []byte(`{"uri":`+jsonrpc.Quote(uri)+`}`))
		}
	}
}
