package eras

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// How long a call goes on asking. The rounds are go-sdk's.
const (
	maxRounds    = 10
	maxSheds     = 3                      // rounds without a question: the server wants to be left alone for a while
	shedDelay    = 200 * time.Millisecond // before the first such round, doubled for each further one
	maxQuestions = 64                     // in one result
	askPatience  = 30 * time.Minute       // people answer
)

// question is one of a result's inputRequests.
type question struct {
	key, method string
	params      []byte // raw, or nil
}

// call passes a request of the client to the server, for as many rounds as the
// server wants to ask something (MCP 2026-07-28, "Multi Round-Trip Requests").
func (s *session) call(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	to := s.request(nil)
	to.Params, to.Principal = req.Params, req.Principal
	var err error
	if to.Message, err = jsonrpc.Parse(m.WithParamsMeta(s.meta()...)); err != nil {
		return nil, err
	}
	first := to.Message.Params
	sheds := 0
	for round := 1; ; round++ {
		reply, err := s.send(ctx, to, out)
		if err != nil {
			return nil, legacyError(err)
		}
		answer, questions, state, err := inputRequired(reply)
		if err != nil {
			return nil, err
		}
		if answer == nil {
			return legacyReply(reply, to.Message, m.ID), nil
		}
		if round == maxRounds {
			return nil, router.Errorf(router.ErrBackend, "server %q asked for input %d times for one %s", s.server, round, m.Method)
		}
		var responses []byte
		if len(questions) > 0 {
			responses, err = s.ask(ctx, questions, out)
		} else if sheds++; sheds > maxSheds {
			err = router.Errorf(router.ErrOverloaded, "server %q is busy; try again later", s.server)
		} else {
			err = pause(ctx, shedDelay<<(sheds-1))
		}
		if err != nil {
			return nil, err
		}
		if to, err = s.again(to, m, first, responses, state, round); err != nil {
			return nil, err
		}
	}
}

// send sends a request, with the arguments in headers that its tool wants there.
func (s *session) send(ctx context.Context, to *router.Request, out router.Stream) (*router.Reply, error) {
	m := to.Message
	if m.Method == "tools/call" && to.Params == nil {
		if known := s.w.tools.get(m.Name); known != nil {
			to.Params = headersFor(known, m.Params)
		}
	}
	reply, err := s.w.inner.Serve(ctx, to, out)
	if err != nil || !missesHeader(m, reply) {
		return reply, err
	}
	wanted, err := s.lookUp(ctx, m.Name)
	if err != nil || len(wanted) == 0 {
		return reply, nil // the server has said why it does not take the call
	}
	to.Params = headersFor(wanted, m.Params)
	return s.w.inner.Serve(ctx, to, out)
}

// again returns the request of the next round: the first one's params with the
// answers, under an id of its own.
func (s *session) again(to *router.Request, m *jsonrpc.Message, params, responses, state []byte, round int) (*router.Request, error) {
	var set []jsonrpc.Member
	if responses != nil {
		set = append(set, member(keyResponses, responses))
	}
	if state != nil {
		set = append(set, member(keyState, state))
	}
	id := jsonrpc.Quote("ripstop-" + strconv.Itoa(round) + "-" + string(m.ID))
	next := *to
	var err error
	next.Message, err = jsonrpc.Parse(jsonrpc.NewRequest([]byte(id), m.Method, with(without(params, keyResponses, keyState), set...)))
	return &next, err
}

// inputRequired reads a result that asks for input; it returns nil if the reply
// is none. Most results do not even have the word in them.
func inputRequired(reply *router.Reply) (m *jsonrpc.Message, questions []question, state []byte, err error) {
	if reply == nil || !bytes.Contains(reply.Body, []byte("input_required")) {
		return nil, nil, nil, nil
	}
	m, err = jsonrpc.Parse(reply.Body)
	if err != nil || text(field(m.Result, "resultType")) != "input_required" {
		return nil, nil, nil, nil // the edge will say what is wrong with it
	}
	jsonrpc.EachMember(field(m.Result, keyRequests), func(key string, v []byte) {
		q := question{key: key, method: text(field(v, "method")), params: field(v, "params")}
		if q.params != nil && !isObject(q.params) {
			q.params = nil
		}
		questions = append(questions, q)
	})
	if len(questions) > maxQuestions {
		return nil, nil, nil, router.Errorf(router.ErrBackend, "the server asks %d things at once; %d is the most", len(questions), maxQuestions)
	}
	if state = field(m.Result, keyState); text(state) == "" {
		state = nil
	}
	return m, questions, state, nil
}

// asked is a question on its way.
type asked struct {
	question
	id     string
	answer chan *jsonrpc.Message
}

// ask puts questions to the client on out, and returns its answers as the value
// of inputResponses.
func (s *session) ask(ctx context.Context, questions []question, out router.Stream) ([]byte, error) {
	for _, q := range questions {
		if !can(s.caps, q.method) {
			return nil, router.Errorf(router.ErrBackend, "server %q asks for %.64q, which this client has not declared it can answer", s.server, q.method)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	all := make([]asked, 0, len(questions))
	defer func() { s.withdraw(ctx, all, out) }()
	for _, q := range questions {
		a := asked{question: q}
		a.id, a.answer = s.newAsk()
		all = append(all, a)
		if err := out.Send(ctx, jsonrpc.NewRequest([]byte(a.id), q.method, q.params)); err != nil {
			return nil, fmt.Errorf("ask the client: %w", err)
		}
	}
	responses := make([]jsonrpc.Member, 0, len(all))
	for _, a := range all {
		select {
		case m := <-a.answer:
			if m.Error != nil {
				return nil, declined(a.method, m)
			}
			responses = append(responses, member(a.key, m.Result))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, router.Errorf(router.ErrOutcomeUnknown, "the client did not answer %s; what the server did before it asked is done", a.method)
			}
			return nil, ctx.Err()
		}
	}
	return build(responses...), nil
}

// declined is the error of a call whose client answers a question with one:
// 2026-07-28 has no way to tell the server.
func declined(method string, m *jsonrpc.Message) error {
	code := errorCode(m)
	if code == 0 {
		code = jsonrpc.CodeInternal
	}
	return refuse(code, http.StatusOK, "the client answered %s with an error: %.500s", method, text(field(m.Error, "message")))
}

// withdraw tells the client which questions nobody waits for any more.
func (s *session) withdraw(ctx context.Context, all []asked, out router.Stream) {
	for _, a := range all {
		if !s.dropAsk(a.id) {
			continue
		}
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		params := []byte(`{"requestId":` + a.id + `,"reason":"the request it was for is over"}`)
		_ = out.Send(limited, jsonrpc.NewRequest(nil, "notifications/cancelled", params)) // a client that is gone needs no word
		cancel()
	}
}

// newAsk returns the id of a request to the client, and where its answer comes.
func (s *session) newAsk() (id string, answer chan *jsonrpc.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asks == nil {
		s.asks = map[string]chan *jsonrpc.Message{}
	}
	s.lastAsk++
	id = strconv.FormatInt(s.lastAsk, 10)
	answer = make(chan *jsonrpc.Message, 1)
	s.asks[id] = answer
	return id, answer
}

// dropAsk forgets a request, and reports whether it was unanswered.
func (s *session) dropAsk(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.asks[id]
	delete(s.asks, id)
	return ok
}

// answer takes the client's response. One that nobody waits for is let go.
func (s *session) answer(m *jsonrpc.Message) {
	s.mu.Lock()
	answer := s.asks[string(m.ID)]
	delete(s.asks, string(m.ID))
	s.mu.Unlock()
	if answer != nil {
		answer <- cloned(m)
	}
}

// cloned returns a message that outlives the request it came with.
func cloned(m *jsonrpc.Message) *jsonrpc.Message {
	own := *m
	own.Raw, own.Result, own.Error = slices.Clone(m.Raw), slices.Clone(m.Result), slices.Clone(m.Error)
	return &own
}

// legacyReply returns a modern server's reply for a legacy client. Members of
// results that the client does not know are left in: every legacy schema lets
// results have more. The HTTP status is not: to a legacy client 404 says that its
// session is gone.
func legacyReply(reply *router.Reply, sent *jsonrpc.Message, id []byte) *router.Reply {
	if reply == nil { // ended without an answer
		return &router.Reply{}
	}
	own := *reply
	own.Status, own.Session = 0, ""
	if bytes.Equal(sent.ID, id) {
		return &own
	}
	if m, err := jsonrpc.Parse(reply.Body); err == nil {
		own.Body = m.Edit(jsonrpc.Edit{ID: id})
	}
	return &own
}

// legacyError likewise for an error.
func legacyError(err error) error {
	var e *router.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		own := *e
		own.Status = http.StatusBadGateway
		return &own
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
