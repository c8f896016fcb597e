package eras

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// maxBacklog is how many notifications of a held call wait for its client to come
// back.
const maxBacklog = 64

// held is a call of a modern client to a server that may ask it something in the
// legacy way: with a request, for whose answer it waits. The call goes on, in a
// session of its own, while its client is away to find the answer.
type held struct {
	w      *wrapper
	id     callID
	server string
	who    asking
	method string
	params []byte // raw, as the client sent them
	token  []byte // the progress token in them, or nil

	principal string

	ctx    context.Context // the call's; ends with cancel only
	cancel context.CancelFunc
	wake   chan struct{} // holds a token when there is something to look at

	sending sync.Mutex // held while a message goes to the caller; guards the next four
	caller  context.Context
	out     router.Stream // of the request that waits; nil = none does
	tokenAs []byte        // its progress token, or nil
	backlog []*jsonrpc.Message

	mu       sync.Mutex
	session  *own
	attached bool // a request waits
	gone     bool // it was given up
	asks     []openAsk
	lastKey  int
	over     bool
	reply    *router.Reply
	err      error
	expiry   *time.Timer // runs while no request waits
}

// openAsk is a question of the server that is not answered.
type openAsk struct {
	key string // what the client knows it by
	*inquiry
}

// hold serves a call whose client can be asked.
func (w *wrapper) hold(ctx context.Context, req *router.Request, who asking, out router.Stream) (*router.Reply, error) {
	m := req.Message
	own := asking{slices.Clone(who.caps), slices.Clone(who.info), who.level}
	h := &held{
		w: w, id: newCallID(), server: req.Server, who: own, method: m.Method,
		params: slices.Clone(m.Params), token: slices.Clone(m.ProgressToken), principal: req.Principal,
		wake: make(chan struct{}, 1),
	}
	h.ctx, h.cancel = context.WithCancel(w.ctx)
	w.mu.Lock()
	full := len(w.held) >= w.opts.MaxHeld
	if !full {
		w.held[h.id] = h
	}
	w.mu.Unlock()
	if full {
		h.cancel()
		return nil, router.Errorf(router.ErrOverloaded, "instance %s holds %d calls whose clients may be asked something, its limit; nothing was executed", w.opts.Instance, w.opts.MaxHeld)
	}
	h.attached = true
	h.face(ctx, out, m.ProgressToken)
	if !w.spawn(h.run) {
		h.drop()
		return nil, w.errClosing()
	}
	return h.wait(ctx, m.ID)
}

// resume serves the retry of a call that asked for input.
func (w *wrapper) resume(ctx context.Context, req *router.Request, _ asking, state []byte, out router.Stream) (*router.Reply, error) {
	m := req.Message
	invalid := func(err error) error {
		return refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: requestState can't be used: %v; send the request again without it", err)
	}
	to, err := bind(req.Principal, req.Server, m.Method, m.Params)
	if err != nil {
		return nil, invalid(err)
	}
	id, err := open(w.opts.Keys, text(state), time.Now(), &to)
	if err != nil {
		return nil, invalid(err)
	}
	if at, _ := StateInstance(text(state)); at != w.opts.Instance {
		return nil, router.Errorf(router.ErrUnavailable, "the call waits at instance %s of server %q, not at %s; nothing was executed", at, req.Server, w.opts.Instance)
	}
	responses := field(m.Params, keyResponses)
	if responses != nil && !isObject(responses) {
		return nil, refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: inputResponses must be an object")
	}
	w.mu.Lock()
	h := w.held[id]
	w.mu.Unlock()
	if h == nil {
		return nil, invalid(errors.New("the call it belongs to is over, or was given up"))
	}
	if err := h.attach(); err != nil {
		return nil, err
	}
	h.face(ctx, out, m.ProgressToken)
	if err := h.answer(ctx, responses); err != nil {
		h.park()
		return nil, err
	}
	return h.wait(ctx, m.ID)
}

// attach makes a request the one that waits for the call.
func (h *held) attach() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.gone:
		return refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: the call that requestState belongs to was given up; send the request again without it")
	case h.attached:
		return refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: another request waits for the call that requestState belongs to")
	}
	h.attached = true
	if h.expiry != nil {
		h.expiry.Stop()
	}
	return nil
}

// face turns the call's messages to the request that waits.
func (h *held) face(ctx context.Context, out router.Stream, token []byte) {
	h.sending.Lock()
	defer h.sending.Unlock()
	h.caller, h.out, h.tokenAs = ctx, out, token
	for _, m := range h.backlog {
		h.send(m)
	}
	h.backlog = nil
}

// park leaves the call to itself until its client comes back.
func (h *held) park() {
	h.unface()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attached = false
	h.expiry = time.AfterFunc(h.w.opts.StateTTL, h.expire)
}

func (h *held) unface() {
	h.sending.Lock()
	defer h.sending.Unlock()
	h.caller, h.out, h.tokenAs = nil, nil, nil
}

// expire gives a call up whose client did not come back.
func (h *held) expire() {
	h.mu.Lock()
	attached := h.attached
	h.gone = h.gone || !attached
	h.mu.Unlock()
	if !attached {
		h.drop()
	}
}

// drop ends the call.
func (h *held) drop() {
	h.mu.Lock()
	h.gone = true
	if h.expiry != nil {
		h.expiry.Stop()
	}
	h.mu.Unlock()
	h.cancel()
	h.w.mu.Lock()
	delete(h.w.held, h.id)
	h.w.mu.Unlock()
}

// wait returns what comes first: the call's end, or a question for the client.
func (h *held) wait(ctx context.Context, id []byte) (*router.Reply, error) {
	for {
		h.mu.Lock()
		over, reply, err, asks := h.over, h.reply, h.err, slices.Clone(h.asks)
		h.mu.Unlock()
		switch {
		case over:
			h.unface()
			h.drop()
			if err != nil {
				return nil, err
			}
			return h.w.modernReply(reply, h.method, id), nil
		case len(asks) > 0:
			return h.question(id, asks)
		}
		select {
		case <-h.wake:
		case <-ctx.Done(): // closing the stream is how a modern client cancels
			h.unface()
			h.drop()
			return nil, ctx.Err()
		}
	}
}

// run works on the call to its end.
func (h *held) run() {
	reply, err := h.execute()
	h.mu.Lock()
	h.over, h.reply, h.err = true, reply, err
	h.mu.Unlock()
	nudge(h.wake)
}

func (h *held) execute() (*router.Reply, error) {
	for {
		s, reused, err := h.w.pool.get(h.ctx, h.server, h.principal, &h.who)
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		h.session = s
		h.mu.Unlock()
		s.use(h)
		id := s.nextID()
		reply, err := h.callIn(s, id)
		if err == nil && h.ctx.Err() == nil {
			h.w.pool.put(s)
			return reply, nil
		}
		if !errors.Is(err, router.ErrSessionNotFound) {
			s.abort(id)
			return nil, err
		}
		s.leave(true)
		s.cancel()
		if !reused {
			return nil, err
		} // else the session was lost before the call, which nobody has seen
	}
}

func (h *held) callIn(s *own, id []byte) (*router.Reply, error) {
	if h.who.level != "" && s.offers.logging && s.level != h.who.level {
		if err := s.ask(h.ctx, "logging/setLevel", build(quoted("level", h.who.level))); errors.Is(err, router.ErrSessionNotFound) {
			return nil, err
		} else if err != nil {
			h.w.log.Debug("log level not set", "server", h.server, "err", err)
		}
		s.level = h.who.level
	}
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(id, h.method, legacyParams(h.params)))
	if err != nil {
		return nil, err
	}
	return h.w.inner.Serve(h.ctx, s.request(m), heldStream{h, s})
}

// heldStream takes what the server sends on the call's stream.
type heldStream struct {
	h *held
	s *own
}

// Send implements [router.Stream].
func (o heldStream) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	return o.s.take(ctx, o.h, msg)
}
