package eras

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// question returns the result that asks the client for input, and parks the call.
func (h *held) question(id []byte, asks []openAsk) (*router.Reply, error) {
	to, err := bind(h.principal, h.server, h.method, h.params)
	var state string
	if err == nil {
		state, err = seal(h.w.opts.Keys, h.w.opts.Instance, h.id, time.Now().Add(h.w.opts.StateTTL), &to)
	}
	if err != nil {
		h.unface()
		h.drop()
		return nil, router.Errorf(router.ErrOutcomeUnknown, "the server asks for input, which can't be passed on: %v; what it did before is done", err)
	}
	requests := make([]jsonrpc.Member, 0, len(asks))
	for _, a := range asks {
		params := a.params
		if params == nil {
			params = emptyObject
		}
		requests = append(requests, member(a.key, build(quoted("method", a.method), member("params", params))))
	}
	all := []jsonrpc.Member{
		quoted("resultType", "input_required"),
		member(keyRequests, build(requests...)),
		quoted(keyState, state),
	}
	if info := h.w.greets.info(); info != nil {
		all = append(all, member("_meta", build(member(metaServerInfo, info))))
	}
	h.park()
	return result(id, build(all...)), nil
}

// answer passes the client's answers to the server. Those to questions that are
// not open any more are let go: a retry may come twice.
func (h *held) answer(ctx context.Context, responses []byte) error {
	var bad string
	given := map[string][]byte{}
	jsonrpc.EachMember(responses, func(key string, v []byte) {
		if !isObject(v) {
			bad = key
		}
		given[key] = v
	})
	if bad != "" {
		return refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: inputResponses[%.64q] must be an object", bad)
	}
	h.mu.Lock()
	s := h.session
	var now []openAsk
	h.asks = slices.DeleteFunc(h.asks, func(a openAsk) bool {
		if given[a.key] == nil {
			return false
		}
		now = append(now, a)
		return true
	})
	h.mu.Unlock()
	for _, a := range now {
		if err := s.tell(ctx, jsonrpc.NewResult(a.id, given[a.key])); err != nil {
			h.w.log.Debug("client's answer not delivered", "server", h.server, "err", err) // the call will say what became of it
		}
	}
	return nil
}

// asked takes a question of the server, and reports false if the call is over.
func (h *held) asked(q *inquiry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || h.gone {
		return false
	}
	h.lastKey++
	h.asks = append(h.asks, openAsk{strconv.Itoa(h.lastKey), q})
	nudge(h.wake)
	return true
}

// withdrawn forgets a question that the server no longer asks.
func (h *held) withdrawn(id []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asks = slices.DeleteFunc(h.asks, func(a openAsk) bool { return bytes.Equal(a.inquiry.id, id) })
}

// unanswered takes the questions that nobody will answer.
func (h *held) unanswered() (all []*inquiry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.asks {
		all = append(all, a.inquiry)
	}
	h.asks = nil
	return all
}

// forward passes a notification of the server to the client.
func (h *held) forward(_ context.Context, m *jsonrpc.Message) error {
	if !ofRequest(m.Method) && (m.Method != "notifications/message" || h.who.level == "") {
		return nil
	}
	h.sending.Lock()
	defer h.sending.Unlock()
	if h.out != nil {
		h.send(m)
		return nil
	}
	if len(h.backlog) == maxBacklog {
		h.backlog = h.backlog[1:]
	}
	own, err := jsonrpc.Parse(slices.Clone(m.Raw))
	if err == nil {
		h.backlog = append(h.backlog, own)
	}
	return nil
}

// send sends m to the request that waits; h.sending is held. One that is gone ends
// the call by its context, not here.
func (h *held) send(m *jsonrpc.Message) {
	raw := m.Raw
	if m.Method == "notifications/progress" {
		if h.tokenAs == nil || !bytes.Equal(m.ProgressToken, h.token) {
			return
		}
		raw = m.Edit(jsonrpc.Edit{ProgressToken: h.tokenAs})
	}
	_ = h.out.Send(h.caller, raw)
}
