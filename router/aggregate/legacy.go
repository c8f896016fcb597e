package aggregate

import (
	"context"
	"slices"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// cancelGrace is how long a member may take to answer a request the client has
// cancelled. Servers should not answer those at all (2025-11-25,
// "Cancellation"), so without it the request would hang.
const cancelGrace = 2 * time.Second

var okResult = []byte("{}")

// legacyCaller is a legacy client's way to the members, for one request.
type legacyCaller struct {
	*session
	req    *router.Request
	flight *flight
}

var _ caller = legacyCaller{}

func (legacyCaller) era() router.Era { return router.EraLegacy }

// serve answers a client's request.
func (s *session) serve(ctx context.Context, cancel context.CancelFunc, req *router.Request, out router.Stream) (*router.Reply, error) {
	f, done, err := s.begin(req.Message.ID, cancel)
	if err != nil {
		return nil, err
	}
	defer done()
	c := legacyCaller{s, req, f}
	switch m := req.Message; m.Method {
	case "ping":
		return &router.Reply{Body: jsonrpc.NewResult(m.ID, okResult)}, nil
	case "logging/setLevel":
		return s.setLevel(ctx, m)
	case "resources/subscribe", "resources/unsubscribe":
		return s.subscribe(ctx, c, m, out)
	default:
		return s.b.route(ctx, c, m, out)
	}
}

// ask implements caller.
func (c legacyCaller) ask(ctx context.Context, server string, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	at, err := c.seat(server)
	if err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		ms, err := c.open(ctx, server, at)
		if err != nil {
			return settle(server, nil, err)
		}
		c.workedOnBy(ms, msg.Method)
		reply, err := c.send(ctx, ms, msg, out)
		if !again && ms.id != "" && gone(reply, err) {
			c.drop(at, ms)
			continue
		}
		if reply, err = settle(server, reply, err); err != nil {
			return nil, err
		}
		return c.markRenewed(ms, msg.Method, reply), nil
	}
}

// workedOnBy notes where a cancellation of the request has to go.
func (c legacyCaller) workedOnBy(ms *memberSession, method string) {
	if listed(method) != nil {
		return // several members at once, whose requests end with the context
	}
	c.mu.Lock()
	c.flight.to = ms
	c.mu.Unlock()
}

func (c legacyCaller) send(ctx context.Context, ms *memberSession, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if ms.modern {
		return c.sendModern(ctx, ms, msg, out)
	}
	to := ms.request(msg, c.req.Principal)
	to.Params = c.req.Params
	return c.b.handler.Serve(ctx, to, c.relay(ms, out))
}

func (s *session) relay(ms *memberSession, out router.Stream) *relay {
	return &relay{
		b: s.b, server: ms.server, out: out,
		ask:      func(m *jsonrpc.Message) []byte { return s.renumber(ms, m) },
		withdraw: func(m *jsonrpc.Message) []byte { return s.withdraw(ms, m) },
	}
}

// sendModern sends a request to a member that speaks the modern era only.
func (c legacyCaller) sendModern(ctx context.Context, ms *memberSession, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	to, err := c.modernRequest(ms.server, msg)
	if err != nil {
		return nil, err
	}
	to.Params = c.req.Params
	reply, err := c.b.handler.Serve(ctx, to, &relay{b: c.b, server: ms.server, out: out})
	if err == nil && reply != nil && hasInputRequired(reply.Body) {
		return nil, router.Errorf(router.ErrBackend,
			"server %s asks for input, though this client's requests declare no capability to give it; use a client of MCP %s", ms.server, router.Version20260728)
	}
	return reply, err
}

// modernRequest returns a legacy client's request as one of the modern era.
func (s *session) modernRequest(server string, legacy *jsonrpc.Message) (*router.Request, error) {
	e := edit(s.params)
	var info []byte
	if v := e.field(e.root(), "clientInfo"); v.some() {
		info = e.text(v)
	}
	var declared []byte
	if v := e.field(e.root(), "capabilities"); v.some() {
		declared = e.text(v)
	}
	s.mu.Lock()
	level := s.level
	s.mu.Unlock()
	msg, err := jsonrpc.Parse(legacy.WithParamsMeta(triple(info, legacyCapabilities(declared), level)...))
	if err != nil {
		return nil, err
	}
	return &router.Request{
		Server: server, Era: router.EraModern, Version: router.Version20260728,
		Message: msg, Principal: s.principal,
	}, nil
}

// markRenewed says in the first result after a member lost its session that it
// did, because what the member kept in it is gone.
func (c legacyCaller) markRenewed(ms *memberSession, method string, reply *router.Reply) *router.Reply {
	if listed(method) != nil {
		return reply
	}
	c.mu.Lock()
	renewed := ms.renewed
	ms.renewed = false
	c.mu.Unlock()
	if !renewed {
		return reply
	}
	if m, err := jsonrpc.Parse(reply.Body); err == nil {
		reply.Body = m.WithResultMeta("ripstop/reinitialized", []byte(`{"cause":"the session with `+ms.server+` had ended","epoch":1}`))
	}
	return reply
}

// notify takes a client's notification.
func (s *session) notify(ctx context.Context, req *router.Request) (*router.Reply, error) {
	switch m := req.Message; m.Method {
	case "notifications/cancelled":
		s.cancel(ctx, m)
	case "notifications/progress":
		if q, ok := s.answered(m.ProgressToken, false); ok && q.token != nil {
			if msg, err := jsonrpc.Parse(m.Edit(jsonrpc.Edit{ProgressToken: q.token})); err == nil {
				s.tell(ctx, q.ms, msg)
			}
		}
	case "notifications/roots/list_changed":
		s.tellAll(ctx, func() *jsonrpc.Message { return m })
	case "notifications/initialized": // each member has had its own
	default:
		s.b.log.Debug("notification dropped: it is not for all servers", "method", m.Method)
	}
	return &router.Reply{}, nil
}

// cancel stops a request the client no longer waits for.
func (s *session) cancel(ctx context.Context, m *jsonrpc.Message) {
	s.mu.Lock()
	f := s.inFlight[string(m.CancelID)]
	var to *memberSession
	if f != nil {
		to = f.to
	}
	s.mu.Unlock()
	switch {
	case f == nil:
	case to == nil || to.modern || to.id == "":
		f.cancel()
	default:
		s.tell(ctx, to, m)
		time.AfterFunc(cancelGrace, f.cancel)
	}
}

// respond takes the client's response to a member's request.
func (s *session) respond(ctx context.Context, req *router.Request) (*router.Reply, error) {
	q, ok := s.answered(req.Message.ID, true)
	if !ok {
		s.b.log.Debug("response dropped: nobody asked", "session", s.id, "id", clip(string(req.Message.ID)))
		return &router.Reply{}, nil
	}
	msg, err := jsonrpc.Parse(req.Message.Edit(jsonrpc.Edit{ID: q.id}))
	if err != nil {
		return nil, err
	}
	reply, err := s.b.handler.Serve(ctx, q.ms.request(msg, req.Principal), router.Discard)
	if gone(reply, err) {
		return &router.Reply{}, nil // so is the request it was for
	}
	if _, err = settle(q.ms.server, reply, err); err != nil {
		return nil, err
	}
	return &router.Reply{}, nil
}

// setLevel remembers the log level for all members, open or not.
func (s *session) setLevel(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	e := edit(m.Raw)
	at := e.field(e.root(), "params", "level")
	level, _ := e.str(at)
	if !slices.Contains(levels, level) {
		return nil, invalidParams("unknown log level %q; use one of %v", clip(level), levels)
	}
	s.mu.Lock()
	s.level = []byte(jsonrpc.Quote(level))
	s.mu.Unlock()
	s.tellAll(ctx, func() *jsonrpc.Message {
		return internal(s.b.ownID(), m.Method, []byte(`{"level":`+jsonrpc.Quote(level)+`}`))
	})
	return &router.Reply{Body: jsonrpc.NewResult(m.ID, okResult)}, nil
}

// subscribe serves resources/subscribe and unsubscribe, and remembers what is
// subscribed to: for members that lose their session, and for those of the
// modern era, which know no such request.
func (s *session) subscribe(ctx context.Context, c legacyCaller, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	server, uri, err := s.b.splitURI(m.Name, codeNoResource)
	if err != nil {
		return nil, err
	}
	at, err := s.seat(server)
	if err != nil {
		return nil, err
	}
	ms, err := s.open(ctx, server, at)
	if err != nil {
		return settle(server, nil, err)
	}
	reply := &router.Reply{Body: jsonrpc.NewResult(m.ID, okResult)}
	if !ms.modern {
		if reply, err = s.b.route(ctx, c, m, out); err != nil {
			return nil, err
		}
		if _, err := answer(server, reply, nil); err != nil {
			return reply, nil // the member's own no
		}
	}
	s.mu.Lock()
	if m.Method == "resources/unsubscribe" {
		delete(at.subs, uri)
	} else {
		if at.subs == nil {
			at.subs = map[string]struct{}{}
		}
		at.subs[uri] = struct{}{}
	}
	l := s.listener
	s.mu.Unlock()
	if l != nil && ms.modern {
		l.restart(ms)
	}
	return reply, nil
}
