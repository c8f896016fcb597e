package session_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// backend is a server with sessions that can be told what to do.
type backend struct {
	name string

	mu       sync.Mutex
	n        int
	sessions map[string]*backendSession
	said     []string // what came, in order: "<session> <method>"
	inits    int
	listens  bool // it offers a stream
	refuse   map[string]string
	failInit error
	work     func(ctx context.Context, s *backendSession, m *jsonrpc.Message, out router.Stream) ([]byte, error)
	closed   bool
}

type backendSession struct {
	id     string
	out    chan []byte // its own stream
	gone   chan struct{}
	params string
}

func newBackend() *backend {
	return &backend{name: "b", sessions: map[string]*backendSession{}, listens: true, refuse: map[string]string{}}
}

const capabilities = `{"logging":{},"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true}}`

func (b *backend) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	b.mu.Lock()
	s := b.sessions[req.Session]
	what := req.Method()
	switch req.Op {
	case router.OpEnd:
		what = "_end"
	case router.OpListen:
		what = "_listen"
	}
	if req.Message != nil && req.Message.Kind == jsonrpc.Response {
		what = "_response " + string(req.Message.ID)
	}
	b.said = append(b.said, strings.TrimSpace(req.Session+" "+what))
	b.mu.Unlock()
	switch {
	case req.Session == "" && what == "initialize" && req.Era != router.EraModern:
		return b.open(req)
	case req.Session == "":
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"sessionless":true}`))}, nil
	case s == nil:
		return nil, router.Errorf(router.ErrSessionNotFound, "no session %s", req.Session)
	case req.Op == router.OpEnd:
		b.forget(s.id)
		return &router.Reply{Status: http.StatusNoContent}, nil
	case req.Op == router.OpListen:
		return b.listen(ctx, s, out)
	case req.Message.Kind != jsonrpc.Request:
		return &router.Reply{Status: http.StatusAccepted}, nil
	}
	return b.answer(ctx, s, req.Message, out)
}

func (b *backend) open(req *router.Request) (*router.Reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inits++
	if b.failInit != nil {
		return nil, b.failInit
	}
	b.n++
	s := &backendSession{id: fmt.Sprint(b.name, b.n), out: make(chan []byte, 2000), gone: make(chan struct{}), params: string(req.Message.Params)}
	b.sessions[s.id] = s
	body := jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25","capabilities":`+capabilities+`}`))
	return &router.Reply{Body: body, Session: s.id}, nil
}

func (b *backend) answer(ctx context.Context, s *backendSession, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	b.mu.Lock()
	work, refusal := b.work, b.refuse[m.Method]
	b.mu.Unlock()
	if refusal != "" {
		return &router.Reply{Body: jsonrpc.NewError(m.ID, -1, refusal, nil)}, nil
	}
	result := []byte(`{"by":"` + s.id + `"}`)
	if work != nil && m.Method == "tools/call" {
		var err error
		if result, err = work(ctx, s, m, out); err != nil {
			return nil, err
		}
	}
	return &router.Reply{Body: jsonrpc.NewResult(m.ID, result)}, nil
}

func (b *backend) listen(ctx context.Context, s *backendSession, out router.Stream) (*router.Reply, error) {
	if !b.listens {
		return nil, &router.Error{Code: jsonrpc.CodeInvalidRequest, Status: http.StatusMethodNotAllowed, Text: "no stream"}
	}
	if err := out.Send(ctx, nil); err != nil {
		return nil, err
	}
	for {
		select {
		case msg := <-s.out:
			if err := out.Send(ctx, msg); err != nil {
				return nil, err
			}
		case <-s.gone:
			return &router.Reply{Status: http.StatusOK}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (b *backend) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[id]; s != nil {
		delete(b.sessions, id)
		close(s.gone)
	}
}

// crash forgets all sessions, as a server that is started anew.
func (b *backend) crash() {
	for _, id := range b.live() {
		b.forget(id)
	}
}

func (b *backend) live() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.sessions))
}

func (b *backend) get(id string) *backendSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[id]
}

func (b *backend) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *backend) heard() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.said)
}

func (b *backend) Probe(context.Context) (router.Info, error) { return router.Info{Name: b.name}, nil }

func (b *backend) Close() error {
	b.crash()
	b.set(func() { b.closed = true })
	return nil
}
