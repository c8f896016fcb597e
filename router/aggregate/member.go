package aggregate

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// member is what the backend knows of one server, whoever asks.
type member struct {
	b     *Backend
	name  string
	facts shared[facts] // what server/discover said

	mu           sync.Mutex
	onlyModern   bool // it refuses initialize, or gives no session
	instructions string
	failing      bool                  // the last list had to do without it
	anonymous    map[string]*anonymous // by principal
}

// facts are what a modern client's requests depend on.
type facts struct {
	modern bool // it answers modern requests
	ttl    int64
	public bool
}

// member returns the entry of a server that is one.
func (b *Backend) member(name string) *member {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.members[name]
	if m == nil {
		m = &member{b: b, name: name}
		b.members[name] = m
	}
	return m
}

// refresh is what Options.Watch calls: members may be others than before.
func (b *Backend) refresh() {
	now := slices.Clone(b.opts.Servers())
	var all, left []*member
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.epoch.Add(1)
	if !slices.Equal(now, b.servers) {
		b.servers = now
		b.version++
	}
	for name, m := range b.members {
		if slices.Contains(now, name) {
			all = append(all, m)
		} else {
			left = append(left, m)
			delete(b.members, name)
		}
	}
	b.mu.Unlock()
	for _, m := range all {
		m.forget()
	}
	b.announce()
	for _, m := range left {
		b.spawn(func() {
			ctx, cancel := b.ending()
			defer cancel()
			m.end(ctx)
		})
	}
}

// announce wakes whoever waits for a change.
func (b *Backend) announce() {
	b.mu.Lock()
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
}

// change returns a channel that is closed at the next change, and a number that
// tells whether lists are others than when it was last asked for.
func (b *Backend) change() (<-chan struct{}, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed, b.version
}

// arrived makes every listening client ask for its lists again if a member came
// too late for the last ones.
func (b *Backend) arrived(late bool) {
	if !late {
		return
	}
	b.mu.Lock()
	b.version++
	b.mu.Unlock()
	b.announce()
}

func (m *member) forget() {
	m.facts.reset()
	m.mu.Lock()
	m.onlyModern = false
	m.mu.Unlock()
}

// discover returns the member's facts, asking it if they are not known.
func (m *member) discover(ctx context.Context) (*facts, error) {
	return m.facts.get(ctx, opening[facts]{
		spawn: m.b.spawn,
		open:  m.ask,
		then:  func(_ *facts, late bool) { m.b.arrived(late) },
	})
}

func (m *member) ask() (*facts, error) {
	b := m.b
	ctx, cancel := context.WithTimeout(b.ctx, b.opts.OpenTimeout)
	defer cancel()
	question, err := jsonrpc.Parse(internal(b.ownID(), "server/discover", nil).WithParamsMeta(triple(b.info, []byte("{}"), nil)...))
	if err != nil {
		return nil, err
	}
	reply, err := b.handler.Serve(ctx, &router.Request{
		Server: m.name, Era: router.EraModern, Version: router.Version20260728, Message: question,
	}, router.Discard)
	msg, err := answer(m.name, reply, err)
	if err != nil {
		if passing(err) {
			return nil, err
		}
		return &facts{}, nil // whatever it does not like, it is no modern server
	}
	var r struct {
		Versions     []string `json:"supportedVersions"`
		Instructions string   `json:"instructions"`
		TTL          int64    `json:"ttlMs"`
		Scope        string   `json:"cacheScope"`
	}
	_ = json.Unmarshal(msg.Result, &r) // what can't be read names no version
	if !slices.Contains(r.Versions, router.Version20260728) {
		return &facts{}, nil
	}
	m.learn(r.Instructions)
	return &facts{modern: true, ttl: r.TTL, public: r.Scope == "public"}, nil
}

func (m *member) learn(instructions string) {
	m.mu.Lock()
	m.instructions = instructions
	m.mu.Unlock()
}

// note logs a change of whether lists can be had from the member.
func (m *member) note(err error) {
	m.mu.Lock()
	was := m.failing
	m.failing = err != nil
	m.mu.Unlock()
	switch {
	case err != nil && !was:
		m.b.log.Warn("server left out of lists", "server", m.name, "err", err)
	case err == nil && was:
		m.b.log.Info("server is in lists again", "server", m.name)
	}
}

// expire ends the anonymous sessions not used since before.
func (m *member) expire(ctx context.Context, before time.Time) {
	var idle []*anonymous
	m.mu.Lock()
	for principal, a := range m.anonymous {
		if a.active == 0 && a.used.Before(before) {
			idle = append(idle, a)
			delete(m.anonymous, principal)
		}
	}
	m.mu.Unlock()
	parallel(idle, func(a *anonymous) { a.end(ctx) })
}

// end ends them all.
func (m *member) end(ctx context.Context) {
	m.mu.Lock()
	var all []*anonymous
	for _, a := range m.anonymous {
		all = append(all, a)
	}
	m.anonymous = nil
	m.mu.Unlock()
	parallel(all, func(a *anonymous) { a.end(ctx) })
}

// ownID returns a fresh id for a request of the backend's own. It is a string
// no client is likely to use, since ids of clients pass unchanged.
func (b *Backend) ownID() []byte {
	return append(strconv.AppendInt([]byte(`"ripstop-`), b.nextID.Add(1), 10), '"')
}

// memberSession is one client's session with one member, or the finding that it
// needs none.
type memberSession struct {
	server  string
	id      string // "" = the member keeps no session
	version string // negotiated with the member
	info    []byte // its serverInfo

	modern bool  // it speaks the modern era only
	epoch  int64 // of that finding

	renewed bool // it stands in for one that was lost; guarded by session.mu
}

// request returns msg as a request of the session. Without one it is bare, as it
// would be on the wire (router/wire decides eras by the session).
func (ms *memberSession) request(msg *jsonrpc.Message, principal string) *router.Request {
	era := router.EraLegacy
	if ms.id == "" && msg != nil && msg.Method != "initialize" {
		era = router.EraBare
	}
	return &router.Request{
		Server: ms.server, Session: ms.id, Era: era, Version: ms.version,
		Message: msg, Principal: principal,
	}
}

// listen returns the request for the session's stream.
func (ms *memberSession) listen(principal string) *router.Request {
	req := ms.request(nil, principal)
	req.Op = router.OpListen
	return req
}

// forgotten asks a member whether it still knows a session for which it has no
// stream: some servers answer 404 because they offer none.
func (b *Backend) forgotten(ctx context.Context, ms *memberSession, principal string) bool {
	ctx, cancel := context.WithTimeout(ctx, b.opts.ListTimeout)
	defer cancel()
	return gone(b.handler.Serve(ctx, ms.request(internal(b.ownID(), "ping", nil), principal), router.Discard))
}

// openLegacy opens a session with a member. params are those of initialize.
func (b *Backend) openLegacy(ctx context.Context, server, principal string, params []byte) (*memberSession, error) {
	ms := &memberSession{server: server}
	reply, err := b.handler.Serve(ctx, ms.request(internal(b.ownID(), "initialize", params), principal), router.Discard)
	msg, err := answer(server, reply, err)
	if err != nil {
		return nil, err
	}
	var r struct {
		Version      string          `json:"protocolVersion"`
		Info         json.RawMessage `json:"serverInfo"`
		Instructions string          `json:"instructions"`
	}
	ms.id = reply.Session
	if err := json.Unmarshal(msg.Result, &r); err != nil || r.Version == "" {
		b.discard(ms, principal)
		return nil, router.Errorf(router.ErrBackend, "server %s answered initialize without a protocol version", server)
	}
	ms.version, ms.info = r.Version, r.Info
	b.member(server).learn(r.Instructions)
	if ms.id == "" {
		return ms, nil
	}
	_, err = b.handler.Serve(ctx, ms.request(internal(nil, "notifications/initialized", nil), principal), router.Discard)
	if err != nil {
		b.discard(ms, principal)
		return nil, err
	}
	return ms, nil
}

// endMember ends a session with a member. ms may be nil.
func (b *Backend) endMember(ctx context.Context, ms *memberSession, principal string) {
	if ms == nil || ms.id == "" {
		return
	}
	req := ms.request(nil, principal)
	req.Op = router.OpEnd
	if _, err := b.handler.Serve(ctx, req, router.Discard); err != nil {
		b.log.Debug("session with server not ended", "server", ms.server, "err", err)
	}
}

// discard ends a session with a member that nobody will use.
func (b *Backend) discard(ms *memberSession, principal string) {
	ctx, cancel := b.ending()
	defer cancel()
	b.endMember(ctx, ms, principal)
}

// ending bounds what is still done for something that is over, whatever ended
// it.
func (b *Backend) ending() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), b.opts.ListTimeout)
}
