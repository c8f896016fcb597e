package upstream

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// A bare request has neither a session nor modern metadata: `nats req` with one
// line of JSON. If the server speaks 2026-07-28 it becomes a modern request;
// else it goes through an anonymous session that the backend opens itself. That
// is the one place where several callers share an upstream session, so there
// ids are rewritten, one session serves one principal only, and what would
// change the session for others is refused.

// anonymous holds the anonymous sessions by principal.
type anonymous struct {
	mu     sync.Mutex
	byName map[string]*anonSession
}

type anonSession struct {
	held    chan struct{} // full while someone opens the session; guards the rest
	open    bool
	id      string // fabric session id; "" = the server is stateless
	version string // negotiated
}

func (a *anonymous) init() { a.byName = map[string]*anonSession{} }

// of returns the principal's session, open or not. known tells which fabric
// sessions still exist.
func (a *anonymous) of(principal string, known func(id string) bool) *anonSession {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.byName[principal]
	if s == nil {
		s = &anonSession{held: make(chan struct{}, 1)}
		if len(a.byName) >= 1024 {
			a.prune(known)
		}
		a.byName[principal] = s
	}
	return s
}

// prune forgets the sessions that expired. a.mu is held.
func (a *anonymous) prune(known func(string) bool) {
	for name, s := range a.byName {
		select {
		case s.held <- struct{}{}:
			if s.id == "" || !known(s.id) {
				delete(a.byName, name)
			}
			<-s.held
		default: // in use
		}
	}
}

// bare serves a request of router.EraBare.
func (b *Backend) bare(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	if m.Kind != jsonrpc.Request {
		return nil, router.Errorf(router.ErrRefused, "a notification or response without a session has no one to reach; send it in the session it belongs to")
	}
	for again := false; ; again = true {
		modern, err := b.speaksModern(ctx)
		if err != nil {
			return nil, err
		}
		var reply *router.Reply
		var stale bool // the server is no longer what it was, and executed nothing
		if modern {
			reply, stale, err = b.bareModern(ctx, req, out)
		} else {
			reply, stale, err = b.bareLegacy(ctx, req, out)
		}
		if !stale || again {
			return reply, err
		}
		b.era.Store(eraUnknown)
	}
}

// clientMeta is what a modern request must say of its sender. A bare caller can
// answer nothing, so it has no capabilities.
var clientMeta = []jsonrpc.Member{
	{Key: jsonrpc.MetaVersion, Value: []byte(`"` + router.Version20260728 + `"`)},
	{Key: "io.modelcontextprotocol/clientInfo", Value: []byte(clientInfo)},
	{Key: "io.modelcontextprotocol/clientCapabilities", Value: []byte(`{}`)},
}

func (b *Backend) bareModern(ctx context.Context, req *router.Request, out router.Stream) (reply *router.Reply, stale bool, err error) {
	if req.Message.Method == "ping" { // gone from the protocol; the question is still answered
		if _, _, err := b.discover(ctx); err != nil {
			return nil, false, err
		}
		return &router.Reply{Body: jsonrpc.NewResult(req.Message.ID, []byte("{}"))}, false, nil
	}
	modern := *req
	modern.Era, modern.Version = router.EraModern, router.Version20260728
	c := call{req: &modern, body: req.Message.WithParamsMeta(clientMeta...), id: req.Message.ID, out: out}
	reply, err = b.post(ctx, &c)
	stale = err == nil && c.answer != nil && c.answer.Error != nil && errorCode(c.answer.Error) == router.CodeUnsupportedVersion
	return reply, stale, err
}

func (b *Backend) bareLegacy(ctx context.Context, req *router.Request, out router.Stream) (reply *router.Reply, stale bool, err error) {
	m := req.Message
	switch m.Method {
	case "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		return nil, false, router.Errorf(router.ErrRefused, "%s changes a session, and this request has none; send initialize first, and the session id it returns with every request", m.Method)
	}
	id, version, err := b.openAnonymous(ctx, req.Principal)
	if err != nil {
		return nil, false, err
	}
	legacy := *req
	legacy.Era, legacy.Version, legacy.Session = router.EraLegacy, version, id
	own := strconv.AppendUint(nil, b.seq.Add(1), 10)
	c := call{
		req: &legacy, id: own,
		body: m.Edit(jsonrpc.Edit{ID: own, ProgressToken: own}),
		out:  &bareStream{b: b, req: &legacy, token: m.ProgressToken, own: own, out: out},
	}
	reply, err = b.passIn(ctx, &c)
	if errors.Is(err, router.ErrSessionNotFound) && id != "" {
		return nil, true, err
	}
	if err == nil && c.answer != nil {
		reply.Body = c.answer.Edit(jsonrpc.Edit{ID: m.ID})
	}
	return reply, false, err
}

// openAnonymous returns the principal's anonymous session, opening it if need
// be.
func (b *Backend) openAnonymous(ctx context.Context, principal string) (id, version string, err error) {
	s := b.anon.of(principal, b.knows)
	select {
	case s.held <- struct{}{}:
		defer func() { <-s.held }()
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	if s.open && (s.id == "" || b.knows(s.id)) {
		return s.id, s.version, nil
	}
	info, id, err := b.handshake(ctx)
	if err != nil {
		return "", "", err
	}
	s.open, s.id, s.version = true, id, info.Versions[0]
	return s.id, s.version, nil
}

func (b *Backend) knows(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[id] != nil
}

// bareStream gives a bare caller its own progress token back, and answers what
// the server asks of a client that can't answer.
type bareStream struct {
	b          *Backend
	req        *router.Request
	token, own []byte
	out        router.Stream
}

func (s *bareStream) Send(ctx context.Context, raw []byte) error {
	m, err := jsonrpc.Parse(raw)
	if err != nil {
		return err
	}
	switch {
	case m.Kind == jsonrpc.Request:
		s.answer(ctx, m)
		return nil
	case m.Method == "notifications/progress":
		if s.token == nil || string(m.ProgressToken) != string(s.own) {
			return nil // someone else's
		}
		raw = m.Edit(jsonrpc.Edit{ProgressToken: s.token})
	}
	return s.out.Send(ctx, raw)
}

func (s *bareStream) answer(ctx context.Context, m *jsonrpc.Message) {
	body := jsonrpc.NewResult(m.ID, []byte("{}"))
	if m.Method != "ping" {
		body = jsonrpc.NewError(m.ID, jsonrpc.CodeMethodNotFound, "this caller has no session and can't be asked: "+m.Method, nil)
	}
	response := *s.req
	response.Message = &jsonrpc.Message{Raw: body, Kind: jsonrpc.Response}
	if _, err := s.b.pass(ctx, &response, router.Discard); err != nil {
		s.b.log.Debug("request of the server not answered", "upstream", s.b.where(), "method", m.Method, "err", err)
	}
}
