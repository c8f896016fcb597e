package eras

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// What the pool keeps of sessions that nobody uses.
const (
	maxIdle  = 64
	idleTime = 30 * time.Second

	// abortGrace is how long a call that was given up may still be on its way.
	abortGrace = time.Second

	// streamPatience is how long the first call of a session waits for the
	// session's own stream: a server that asks there asks nobody before.
	streamPatience = time.Second
)

// own is a legacy session that this package has opened, for one call at a time of
// callers that are the same to the server: one principal's, with the same
// capabilities, from the same client.
type own struct {
	w         *wrapper
	kind      string
	server    string
	principal string
	caps      []byte
	id        string // "" = the server is stateless
	version   string // negotiated
	offers    offers
	used      time.Time

	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	level  string        // of logging/setLevel; of the call's goroutine
	seq    atomic.Uint64 // ids of requests

	listening chan struct{} // closed when its own stream is open, or can't be
	opened    sync.Once

	mu   sync.Mutex
	call *held      // that it is used for
	asks []*inquiry // of the server, that no call has taken
	over bool       // it is ending: nobody will answer
}

// inquiry is a request of the server to the client.
type inquiry struct {
	id     []byte // raw, the server's
	method string
	params []byte // raw, or nil
}

// pool holds the sessions that no call uses.
type pool struct {
	w *wrapper

	mu      sync.Mutex
	idle    []*own // the one used last stands last
	sweeper *time.Timer
}

// legacyCapabilities returns a modern client's capabilities for initialize.
func legacyCapabilities(caps []byte) []byte { return without(caps, "extensions") }

// get returns a session for a caller, reused if it was used before.
func (p *pool) get(ctx context.Context, server, principal string, who *asking) (s *own, reused bool, err error) {
	kind := kindOf(principal, who)
	p.mu.Lock()
	for i, s := range slices.Backward(p.idle) {
		if s.kind == kind {
			p.idle = slices.Delete(p.idle, i, i+1)
			p.mu.Unlock()
			return s, true, nil
		}
	}
	p.mu.Unlock()
	s, err = p.fresh(ctx, server, principal, who)
	return s, false, err
}

func kindOf(principal string, who *asking) string {
	return strconv.Itoa(len(principal)) + ":" + principal + string(who.caps) + string(who.info)
}

// fresh opens a session.
func (p *pool) fresh(ctx context.Context, server, principal string, who *asking) (*own, error) {
	w := p.w
	s := &own{
		w: w, kind: kindOf(principal, who), server: server, principal: principal,
		caps: slices.Clone(who.caps), listening: make(chan struct{}),
	}
	info := who.info
	if info == nil {
		info = []byte(ownInfo)
	}
	params := build(quoted("protocolVersion", router.LegacyVersions[0]),
		member("capabilities", legacyCapabilities(s.caps)), member("clientInfo", info))
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(s.nextID(), "initialize", params))
	if err != nil {
		return nil, err
	}
	reply, err := w.inner.Serve(ctx, &router.Request{Server: server, Message: m, Principal: principal}, router.Discard)
	answer, err := answered(reply, err)
	if err != nil {
		var e *router.Error
		if errors.As(err, &e) && (e.Code > router.CodeServerNotFound || e.Code < router.CodeHeaderMismatch+1) { // the server's own
			w.forget()
			return nil, router.Errorf(router.ErrBackend, "the server refuses to initialize: %s; nothing was executed", e.Text)
		}
		return nil, err
	}
	s.id, s.version = reply.Session, text(field(answer.Result, "protocolVersion"))
	s.offers = offersOf(field(answer.Result, "capabilities"))
	w.greets.set(answer.Result)
	s.ctx, s.cancel = context.WithCancel(w.ctx)
	if err := s.tell(ctx, jsonrpc.NewRequest(nil, "notifications/initialized", nil)); err != nil {
		s.end()
		return nil, fmt.Errorf("initialize: %w", err)
	}
	if s.id != "" && who.canBeAsked() && w.spawn(s.listen) {
		timer := time.NewTimer(streamPatience)
		defer timer.Stop()
		select {
		case <-s.listening:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return s, nil
}

// put gives a session back that is fit for another call.
func (p *pool) put(s *own) {
	for _, q := range s.leave(false) {
		s.respond(errRest(q))
	}
	s.used = time.Now()
	var out *own
	p.mu.Lock()
	p.idle = append(p.idle, s)
	if len(p.idle) > maxIdle {
		out, p.idle = p.idle[0], slices.Delete(p.idle, 0, 1)
	}
	if p.sweeper == nil {
		p.sweeper = time.AfterFunc(idleTime, p.sweep)
	} else if len(p.idle) == 1 {
		p.sweeper.Reset(idleTime)
	}
	p.mu.Unlock()
	if out != nil {
		p.w.spawn(out.end)
	}
}

func (p *pool) sweep() {
	var old []*own
	p.mu.Lock()
	limit := time.Now().Add(-idleTime)
	p.idle = slices.DeleteFunc(p.idle, func(s *own) bool {
		if s.used.After(limit) {
			return false
		}
		old = append(old, s)
		return true
	})
	if len(p.idle) > 0 {
		p.sweeper.Reset(idleTime / 4)
	}
	p.mu.Unlock()
	for _, s := range old {
		p.w.spawn(s.end)
	}
}

// request returns a request in the session.
func (s *own) request(m *jsonrpc.Message) *router.Request {
	return &router.Request{Server: s.server, Session: s.id, Version: s.version, Message: m, Principal: s.principal}
}

func (s *own) nextID() []byte { return strconv.AppendUint(nil, s.seq.Add(1), 10) }

// tell sends a notification or a response.
func (s *own) tell(ctx context.Context, raw []byte) error {
	m, err := jsonrpc.Parse(raw)
	if err != nil {
		return err
	}
	_, err = s.w.inner.Serve(ctx, s.request(m), router.Discard)
	return err
}

// ask sends a request and returns the result.
func (s *own) ask(ctx context.Context, method string, params []byte) error {
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(s.nextID(), method, params))
	if err != nil {
		return err
	}
	_, err = answered(s.w.inner.Serve(ctx, s.request(m), router.Discard))
	return err
}

// listen takes what the server sends on the session's own stream: some servers
// ask there rather than on the stream of the call.
func (s *own) listen() {
	defer s.streamKnown()
	delay := retryMin
	for {
		req := s.request(nil)
		req.Op = router.OpListen
		reply, err := s.w.inner.Serve(s.ctx, req, ownStream{s})
		var e *router.Error
		if errors.As(err, &e) && (e.Status == 405 || e.Code == router.CodeSessionNotFound) || reply != nil && reply.Status >= 400 {
			return // it has no such stream, or is gone
		}
		if pause(s.ctx, delay) != nil {
			return
		}
		delay = min(2*delay, retryMax)
	}
}

func (s *own) streamKnown() { s.opened.Do(func() { close(s.listening) }) }

// ownStream takes what the server sends on the session's own stream.
type ownStream struct{ s *own }

// Send implements [router.Stream].
func (o ownStream) Send(ctx context.Context, msg []byte) error {
	o.s.streamKnown()
	if len(msg) == 0 {
		return nil
	}
	o.s.mu.Lock()
	call := o.s.call
	o.s.mu.Unlock()
	return o.s.take(ctx, call, msg)
}

// take takes a message of the server; call is the one it is for, or nil.
func (s *own) take(ctx context.Context, call *held, msg []byte) error {
	m, err := jsonrpc.Parse(msg)
	switch {
	case err != nil:
		s.w.log.Warn("message dropped: it can't be read", "server", s.server, "err", err)
	case m.Kind == jsonrpc.Request:
		s.inquired(m)
	case m.Method == "notifications/cancelled":
		s.withdrawn(m.CancelID)
	case m.Kind == jsonrpc.Notification && call != nil:
		return call.forward(ctx, m)
	}
	return nil
}

// inquired takes a request of the server. What no call's client can answer is
// refused at once.
func (s *own) inquired(m *jsonrpc.Message) {
	if !can(s.caps, m.Method) {
		body := jsonrpc.NewError(m.ID, jsonrpc.CodeMethodNotFound, "this client declared no capability for "+m.Method, nil)
		if m.Method == "ping" {
			body = jsonrpc.NewResult(m.ID, emptyObject)
		}
		s.respond(body)
		return
	}
	q := &inquiry{id: slices.Clone(m.ID), method: m.Method, params: slices.Clone(m.Params)}
	s.mu.Lock()
	full := s.over || len(s.asks) >= maxQuestions
	call := s.call
	if !full && (call == nil || !call.asked(q)) {
		s.asks = append(s.asks, q) // for the call that will come
	}
	s.mu.Unlock()
	if full {
		s.respond(jsonrpc.NewError(q.id, jsonrpc.CodeInternal, "nobody can answer this now", nil))
	}
}

// respond sends a response from a goroutine of its own, since the server's may not
// read on until it is taken.
func (s *own) respond(body []byte) {
	s.w.spawn(func() {
		ctx, cancel := s.w.ending()
		defer cancel()
		if err := s.tell(ctx, body); err != nil {
			s.w.log.Debug("server's request not answered", "server", s.server, "err", err)
		}
	})
}

func (s *own) withdrawn(id []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks = slices.DeleteFunc(s.asks, func(q *inquiry) bool { return string(q.id) == string(id) })
	if s.call != nil {
		s.call.withdrawn(id)
	}
}

// use makes the session a call's.
func (s *own) use(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.call = h
	for _, q := range s.asks {
		h.asked(q)
	}
	s.asks = nil
}

// errRest is the answer to what the server asked and nobody will answer.
func errRest(q *inquiry) []byte {
	return jsonrpc.NewError(q.id, jsonrpc.CodeInternal, "the request that this one came with is over", nil)
}

// leave takes the session from its call, and returns what is unanswered.
func (s *own) leave(over bool) (rest []*inquiry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = over
	rest, s.asks = s.asks, nil
	if s.call != nil {
		rest = append(rest, s.call.unanswered()...)
		s.call = nil
	}
	return rest
}

// abort ends the session of a call that was given up. The server must hear of
// that first, since one that waits for an answer within the call would wait for
// ever in a session that nobody can reach any more. It hears it twice: the call
// itself may still have been on its way.
func (s *own) abort(call []byte) {
	for _, q := range s.leave(true) {
		s.respond(errRest(q))
	}
	s.giveUp(call)
	s.w.spawn(func() {
		timer := time.NewTimer(abortGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.w.ctx.Done():
		}
		s.giveUp(call)
		s.end()
	})
}

func (s *own) giveUp(call []byte) {
	ctx, cancel := s.w.ending()
	defer cancel()
	notice := build(member("requestId", call), quoted("reason", "the client has given up"))
	if err := s.tell(ctx, jsonrpc.NewRequest(nil, "notifications/cancelled", notice)); err != nil {
		s.w.log.Debug("cancellation not delivered", "server", s.server, "err", err)
	}
}

// end ends the session.
func (s *own) end() {
	s.cancel()
	if s.id == "" || s.w.ctx.Err() != nil { // closing the backend ends all
		return
	}
	ctx, cancel := s.w.ending()
	defer cancel()
	req := s.request(nil)
	req.Op = router.OpEnd
	if _, err := s.w.inner.Serve(ctx, req, router.Discard); err != nil && !errors.Is(err, router.ErrSessionNotFound) {
		s.w.log.Debug("session not ended", "server", s.server, "err", err)
	}
}
