package eras_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/jsonrpc"
)

// oldServer is a legacy server that asks on its sessions' own streams, as some
// do, and can lose its sessions.
type oldServer struct {
	mu       sync.Mutex
	opened   int
	sessions map[string]*oldSession
	calls    []string // that were executed, by name
}

type oldSession struct {
	stream  chan router.Stream // holds the open stream
	answers chan string
	ended   chan struct{}
}

func (o *oldServer) Probe(context.Context) (router.Info, error) {
	return router.Info{Name: "old", Version: "1", Versions: []string{router.Version20250618}}, nil
}

func (o *oldServer) Close() error { o.lose(); return nil }

// lose ends all sessions.
func (o *oldServer) lose() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, s := range o.sessions {
		close(s.ended)
		delete(o.sessions, id)
	}
}

func (o *oldServer) executed() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.calls, " ")
}

func (o *oldServer) count() (open, opened int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sessions), o.opened
}

func (o *oldServer) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Method() == "initialize" {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.opened++
		id := fmt.Sprintf("old-%d", o.opened)
		if o.sessions == nil {
			o.sessions = map[string]*oldSession{}
		}
		o.sessions[id] = &oldSession{stream: make(chan router.Stream, 1), answers: make(chan string, 10), ended: make(chan struct{})}
		return &router.Reply{Session: id, Body: jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-06-18","serverInfo":{"name":"old","version":"1"},
			"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true},"tasks":{}}}`))}, nil
	}
	o.mu.Lock()
	s := o.sessions[req.Session]
	o.mu.Unlock()
	switch {
	case s == nil:
		return nil, router.Errorf(router.ErrSessionNotFound, "no session %s", req.Session)
	case req.Op == router.OpEnd:
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.sessions[req.Session] != nil {
			delete(o.sessions, req.Session)
			close(s.ended)
		}
		return &router.Reply{}, nil
	case req.Op == router.OpListen:
		if err := out.Send(ctx, nil); err != nil {
			return nil, err
		}
		s.stream <- out
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
		return &router.Reply{}, nil
	case req.Message.Kind == jsonrpc.Response:
		s.answers <- string(req.Message.Result) + string(req.Message.Error)
		return &router.Reply{}, nil
	case req.Message.Kind == jsonrpc.Notification:
		return &router.Reply{}, nil
	}
	return o.request(ctx, req, s)
}

func (o *oldServer) request(ctx context.Context, req *router.Request, s *oldSession) (*router.Reply, error) {
	m := req.Message
	if m.Method != "tools/call" {
		return &router.Reply{Body: jsonrpc.NewResult(m.ID, []byte("{}"))}, nil
	}
	o.mu.Lock()
	o.calls = append(o.calls, m.Name)
	o.mu.Unlock()
	say := func(text string) (*router.Reply, error) {
		return &router.Reply{Body: jsonrpc.NewResult(m.ID, fmt.Appendf(nil, `{"content":[{"type":"text","text":%q}]}`, text))}, nil
	}
	if m.Name != "ask" {
		return say(m.Name)
	}
	stream := <-s.stream
	s.stream <- stream
	for _, msg := range []string{
		`{"jsonrpc":"2.0","id":"p","method":"ping"}`,
		`{"jsonrpc":"2.0","id":"n","method":"nonsense/ask"}`,
		`{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"message":"Old way?","requestedSchema":{"type":"object"}}}`,
	} {
		if err := stream.Send(ctx, []byte(msg)); err != nil {
			return nil, err
		}
	}
	var got []string
	for len(got) < 3 {
		select {
		case answer := <-s.answers:
			got = append(got, answer)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	slices.Sort(got)
	return say(strings.Join(got, "")) // they may come in any order
}

// TestAskedOnTheSessionsStream has a server ask where no call's stream is.
func TestAskedOnTheSessionsStream(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := &oldServer{}
	b := eras.Wrap(o, eras.Options{})
	defer b.Close()
	reply, err := raw(ctx, t, b, modernReq, router.Discard, "%s", modernCall(1, "ask", canAsk, ""))
	r := decode(t, reply, err)
	if len(r.Result.InputRequests) != 1 || r.Result.InputRequests["1"].Params["message"] != "Old way?" {
		t.Fatalf("got %+v", r)
	}
	reply, err = raw(ctx, t, b, modernReq, router.Discard, "%s",
		modernCall(2, "ask", canAsk, fmt.Sprintf(`,"requestState":%q,"inputResponses":{"1":{"action":"cancel"}}`, r.Result.RequestState)))
	if r := decode(t, reply, err); len(r.Result.Content) == 0 || r.Result.Content[0].Text != `{"action":"cancel"}{"code":-32601,"message":"this client declared no capability for nonsense/ask"}{}` {
		t.Errorf("got %+v", r)
	}
}

// TestSessionsAreReusedAndLost counts sessions: calls of one caller share one,
// other callers do not, and a lost one is replaced without a call run twice.
func TestSessionsAreReusedAndLost(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := &oldServer{}
	b := eras.Wrap(o, eras.Options{})
	defer b.Close()
	bob := modernReq
	bob.Principal = "bob"
	for i, c := range []struct {
		req    router.Request
		caps   string
		opened int
	}{
		{modernReq, canAsk, 1}, {modernReq, canAsk, 1}, {modernReq, `{"elicitation":{}}`, 2}, {bob, canAsk, 3}, {modernReq, canAsk, 3},
	} {
		reply, err := raw(ctx, t, b, c.req, router.Discard, "%s", modernCall(i+1, fmt.Sprint("t", i), c.caps, ""))
		if r := decode(t, reply, err); len(r.Result.Content) == 0 {
			t.Errorf("call %d: %+v", i, r)
		}
		if _, opened := o.count(); opened != c.opened {
			t.Errorf("call %d: %d sessions opened, want %d", i, opened, c.opened)
		}
	}
	o.lose()
	reply, err := raw(ctx, t, b, modernReq, router.Discard, "%s", modernCall(9, "again", canAsk, ""))
	if r := decode(t, reply, err); len(r.Result.Content) == 0 {
		t.Errorf("after the loss: %+v", r)
	}
	if got := o.executed(); got != "t0 t1 t2 t3 t4 again" {
		t.Errorf("executed %s", got)
	}
}

// TestSubscriptionOutlivesItsSession has the client told of everything after the
// session behind its subscription was lost.
func TestSubscriptionOutlivesItsSession(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := &oldServer{}
	b := eras.Wrap(o, eras.Options{})
	defer b.Close()
	listen, stop := context.WithCancel(ctx)
	defer stop()
	out, done := make(stream, 100), make(chan error, 1)
	m, err := jsonrpc.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":"L","method":"subscriptions/listen","params":{"notifications":{
		"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["mem://a"]},%s}}`, metaOf("{}")))
	if err != nil {
		t.Fatal(err)
	}
	req := modernReq
	req.Server, req.Message = "s", m
	go func() {
		_, err := b.Serve(listen, &req, out)
		done <- err
	}()
	want := func(texts ...string) {
		t.Helper()
		select {
		case got := <-out:
			for _, text := range append(texts, `"io.modelcontextprotocol/subscriptionId":"L"`) {
				if !strings.Contains(got, text) {
					t.Errorf("got %s, want %s in it", got, text)
				}
			}
		case <-ctx.Done():
			t.Fatalf("nothing came; want %q", texts)
		}
	}
	want("acknowledged", `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["mem://a"]}`) // the server has no prompts
	o.lose()
	want("resources/updated", "mem://a")
	want("tools/list_changed")
	stop()
	if err := <-done; err == nil {
		t.Error("a cancelled subscription ended without an error")
	}
	for {
		if open, _ := o.count(); open <= 1 { // the one that greeted the client waits for the next call
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the subscription's session is left")
		}
	}
}
