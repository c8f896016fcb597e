package aggregate

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// session is one legacy client's session with the aggregate. Its sessions with
// members are opened when something is asked of them.
type session struct {
	b         *Backend
	id        string
	version   string // negotiated with the client
	principal string // who may use it
	params    []byte // of initialize, as members get them

	ctx  context.Context // ends with the session; parent of what it started
	stop context.CancelFunc

	mu        sync.Mutex
	ended     bool
	active    int       // requests being served
	used      time.Time // when the last one ended
	seats     map[string]*seat
	level     []byte // raw log level the client set; nil = none
	inFlight  map[string]*flight
	asked     map[int64]question
	lastAsked int64
	listener  *listener // the client's own stream, if it has one open
}

// seat is a member's place in a session.
type seat struct {
	open shared[memberSession]

	subs map[string]struct{} // original URIs subscribed to; guarded by session.mu
	lost bool                // the member lost its session; likewise
}

// Lock order: Backend.mu, then session.mu. shared.mu is taken with neither held.

// initialize opens a session.
func (b *Backend) initialize(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
	if req.Session != "" {
		return nil, invalidRequest("initialize belongs to no session, but this one came with session %q", clip(req.Session))
	}
	e := edit(req.Message.Params)
	asked := e.field(e.root(), "protocolVersion")
	version, ok := e.str(asked)
	if !ok {
		return nil, invalidParams("initialize needs params.protocolVersion, a string")
	}
	if !slices.Contains(router.LegacyVersions, version) {
		version = router.LegacyVersions[0]
		e.replace(asked, []byte(`"`+version+`"`))
	}
	s := &session{
		b: b, id: router.NewSessionID(b.opts.Instance), version: version, principal: req.Principal,
		params: append([]byte(nil), e.done()...), used: time.Now(), seats: map[string]*seat{},
	}
	s.ctx, s.stop = context.WithCancel(b.ctx)
	b.mu.Lock()
	full := len(b.sessions) >= b.opts.MaxSessions
	if !full {
		b.sessions[s.id] = s
	}
	b.mu.Unlock()
	if full {
		s.stop()
		return nil, router.Errorf(router.ErrOverloaded, "there are %d sessions, the most this node holds; end one, or try another node", b.opts.MaxSessions)
	}
	result := `{"protocolVersion":"` + version + `","capabilities":` + capabilities +
		`,"serverInfo":` + string(b.info) + `,"instructions":` + jsonrpc.Quote(b.instructions()) + `}`
	return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(result)), Session: s.id}, nil
}

// serveSession serves a request of a session.
func (b *Backend) serveSession(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	s, err := b.enter(req)
	if err != nil {
		return nil, err
	}
	defer b.wg.Done()
	defer s.leave()
	if req.Op == router.OpEnd {
		b.mu.Lock()
		delete(b.sessions, s.id)
		b.mu.Unlock()
		ctx, cancel := b.ending()
		defer cancel()
		s.end(ctx)
		return &router.Reply{Status: http.StatusNoContent}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if req.Op == router.OpListen {
		return s.listen(ctx, cancel, out)
	}
	switch req.Message.Kind {
	case jsonrpc.Response:
		return s.respond(ctx, req)
	case jsonrpc.Notification:
		return s.notify(ctx, req)
	}
	return s.serve(ctx, cancel, req, out)
}

// enter finds a request's session and keeps it, and the backend, until leave
// and wg.Done.
func (b *Backend) enter(req *router.Request) (*session, error) {
	if req.Session == "" {
		return nil, invalidRequest("the request has no session: send initialize first, then its Mcp-Session-Id with every request")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[req.Session]
	switch {
	case b.closed:
		return nil, errClosed()
	case s == nil, s.principal != req.Principal:
		return nil, router.Errorf(router.ErrSessionNotFound, "session %q ended or never was; send initialize to open another", clip(req.Session))
	}
	s.mu.Lock()
	s.active++
	s.mu.Unlock()
	b.wg.Add(1)
	return s, nil
}

func (s *session) leave() {
	s.mu.Lock()
	s.active--
	s.used = time.Now()
	s.mu.Unlock()
}

func (s *session) idleSince(before time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active == 0 && s.used.Before(before)
}

// end cancels what the session does and ends its sessions with members. The
// caller has taken it out of Backend.sessions.
func (s *session) end(ctx context.Context) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	seats := slices.Collect(maps.Values(s.seats))
	s.mu.Unlock()
	s.stop()
	var open []*memberSession
	for _, at := range seats {
		if ms := at.open.end(); ms != nil {
			open = append(open, ms)
		}
	}
	parallel(open, func(ms *memberSession) { s.b.endMember(ctx, ms, s.principal) })
}

// seat returns a member's place.
func (s *session) seat(server string) (*seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, router.Errorf(router.ErrSessionNotFound, "session %s has ended; send initialize to open another", s.id)
	}
	at := s.seats[server]
	if at == nil {
		at = &seat{}
		s.seats[server] = at
	}
	return at, nil
}

// open returns the session with a member, and opens it if need be.
func (s *session) open(ctx context.Context, server string, at *seat) (*memberSession, error) {
	for {
		ms, err := at.open.peek(), error(nil)
		if ms == nil {
			ms, err = at.open.get(ctx, opening[memberSession]{
				spawn:   s.b.spawn,
				open:    func() (*memberSession, error) { return s.openMember(server, at) },
				then:    s.opened,
				discard: func(ms *memberSession) { s.b.discard(ms, s.principal) },
			})
		}
		if err == nil && ms.modern && ms.epoch != s.b.epoch.Load() {
			s.drop(at, ms) // the member may be another one by now
			continue
		}
		return ms, err
	}
}

// openMember opens a session with a member, or finds that it is modern.
func (s *session) openMember(server string, at *seat) (*memberSession, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.b.opts.OpenTimeout)
	defer cancel()
	m, epoch := s.b.member(server), s.b.epoch.Load()
	ms, err := s.openEither(ctx, m)
	if err != nil {
		return nil, err
	}
	ms.epoch = epoch
	s.restore(ctx, at, ms)
	return ms, nil
}

// openEither prefers a session. A member that gives none is better asked in the
// modern era, if it speaks it: without a session it can't tell of changes.
func (s *session) openEither(ctx context.Context, m *member) (*memberSession, error) {
	m.mu.Lock()
	modern := m.onlyModern
	m.mu.Unlock()
	if modern {
		return &memberSession{server: m.name, modern: true}, nil
	}
	ms, err := s.b.openLegacy(ctx, m.name, s.principal, s.params)
	if err == nil && ms.id != "" || err != nil && passing(err) {
		return ms, err
	}
	f, ferr := m.discover(ctx)
	switch {
	case ferr == nil && f.modern:
		m.mu.Lock()
		m.onlyModern = true
		m.mu.Unlock()
		return &memberSession{server: m.name, modern: true}, nil
	case ferr == nil && err != nil:
		m.facts.drop(f) // neither era: perhaps it was not itself when asked
	}
	return ms, err
}

// restore tells a member what the client had told the aggregate before, or the
// member's session that was lost.
func (s *session) restore(ctx context.Context, at *seat, ms *memberSession) {
	s.mu.Lock()
	ms.renewed, at.lost = at.lost && !ms.modern, false
	level := s.level
	uris := make([]string, 0, len(at.subs))
	for uri := range at.subs {
		uris = append(uris, uri)
	}
	s.mu.Unlock()
	if !ms.modern {
		if level != nil {
			s.tell(ctx, ms, internal(s.b.ownID(), "logging/setLevel", append(append([]byte(`{"level":`), level...), '}')))
		}
		for _, uri := range uris {
			s.tell(ctx, ms, internal(s.b.ownID(), "resources/subscribe", uriData(uri)))
		}
	}
}

// opened makes the client's stream take in a member's. The lists the client has
// may lack a member that came late, or be those of a session that was lost.
func (s *session) opened(ms *memberSession, late bool) {
	s.mu.Lock()
	l, changed := s.listener, late || ms.renewed
	s.mu.Unlock()
	if l != nil {
		l.poke(changed)
	}
}

// tell sends something whose answer changes nothing.
func (s *session) tell(ctx context.Context, ms *memberSession, msg *jsonrpc.Message) {
	reply, err := s.b.handler.Serve(ctx, ms.request(msg, s.principal), router.Discard)
	if msg.Kind == jsonrpc.Request {
		_, err = answer(ms.server, reply, err)
	}
	if err != nil {
		s.b.log.Debug("not told", "server", ms.server, "method", msg.Method, "err", err)
	}
}

// tellAll sends a message to every member that is open.
func (s *session) tellAll(ctx context.Context, msg func() *jsonrpc.Message) {
	ctx, cancel := context.WithTimeout(ctx, s.b.opts.ListTimeout)
	defer cancel()
	parallel(s.openMembers(), func(ms *memberSession) {
		if !ms.modern && ms.id != "" {
			s.tell(ctx, ms, msg())
		}
	})
}

func (s *session) openMembers() []*memberSession {
	s.mu.Lock()
	seats := slices.Collect(maps.Values(s.seats))
	s.mu.Unlock()
	var open []*memberSession
	for _, at := range seats {
		if ms := at.open.peek(); ms != nil {
			open = append(open, ms)
		}
	}
	return open
}

// drop forgets a member's session that is no more.
func (s *session) drop(at *seat, ms *memberSession) {
	if !at.open.drop(ms) {
		return // somebody was faster
	}
	s.mu.Lock()
	at.lost = true
	l := s.listener
	s.mu.Unlock()
	if l != nil {
		l.unfollow(ms)
	}
}
