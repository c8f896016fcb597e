package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
	"ripstop/router/stdio"
)

const (
	server = "s"
	here   = "aaaaaaaaaa"
	there  = "bbbbbbbbbb"
	legacy = router.Version20251125
)

// TestMain fails if goroutines of this package are left when all is closed.
func TestMain(m *testing.M) {
	stdio.RunGuard()
	if os.Getenv("SESSION_TEST_ROLE") == "server" {
		runServer()
		return
	}
	code := m.Run()
	var stacks strings.Builder
	for deadline := time.Now().Add(5 * time.Second); code == 0; runtime.Gosched() {
		stacks.Reset()
		if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
			panic(err)
		}
		if !strings.Contains(stacks.String(), "ripstop/router/session.") {
			break
		}
		if time.Now().After(deadline) {
			fmt.Println("goroutines left:\n", stacks.String())
			code = 1
		}
	}
	os.Exit(code)
}

// stream is a client's end: what it got, and a way to break it.
type stream struct {
	mu   sync.Mutex
	ids  []string
	msgs []string
	got  chan string
	fail error
	hold chan struct{} // if set, Send waits for it
	deaf bool          // Send does not even hear that it is cancelled then
}

func newStream() *stream { return &stream{got: make(chan string, 4096)} }

func (s *stream) Send(ctx context.Context, msg []byte) error { return s.SendEvent(ctx, "", msg) }

func (s *stream) SendEvent(ctx context.Context, id string, msg []byte) error {
	s.mu.Lock()
	hold, deaf := s.hold, s.deaf
	s.mu.Unlock()
	if deaf {
		<-hold
	} else if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.ids = append(s.ids, id)
	s.msgs = append(s.msgs, string(msg))
	s.got <- string(msg)
	return nil
}

// wait returns the next message that is not empty.
func (s *stream) wait(t testing.TB) string {
	t.Helper()
	for {
		select {
		case m := <-s.got:
			if m != "" {
				return m
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no message came")
		}
	}
}

// opened waits until the stream's prime event is there and returns its id.
func (s *stream) opened(t testing.TB) string {
	t.Helper()
	select {
	case <-s.got:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream did not open")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[0]
}

func (s *stream) last() (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ids) == 0 {
		return ""
	}
	return s.ids[len(s.ids)-1]
}

func (s *stream) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.msgs), func(m string) bool { return m == "" })
}

// fixture is a layer with what is around it.
type fixture struct {
	t testing.TB
	k *keeper
	b *backend
	g *eventLog
	l *session.Layer
}

func setup(t testing.TB, change func(*session.Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, k: newKeeper(), b: newBackend(), g: &eventLog{}}
	f.l = f.another(f.b, change)
	return f
}

// another returns a layer of its own over the same records.
func (f *fixture) another(b router.Backend, change func(*session.Options)) *session.Layer {
	f.t.Helper()
	opts := session.Options{Backend: b, Server: server, Instance: here, Keeper: f.k, Events: f.g, Node: func() string { return "n1" }}
	if change != nil {
		change(&opts)
	}
	l, err := session.New(opts)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return l
}

func parse(t testing.TB, raw string) *jsonrpc.Message {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(raw))
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return m
}

func request(t testing.TB, id, raw string) *router.Request {
	t.Helper()
	return &router.Request{Server: server, Session: id, Version: legacy, Message: parse(t, raw)}
}

const (
	initialize  = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"c","version":"1"}}}`
	initialized = `{"jsonrpc":"2.0","method":"notifications/initialized"}`
	call        = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo"}}`
	list        = `{"jsonrpc":"2.0","id":8,"method":"tools/list"}`
	setLevel    = `{"jsonrpc":"2.0","id":9,"method":"logging/setLevel","params":{"level":"info"}}`
	subscribe   = `{"jsonrpc":"2.0","id":10,"method":"resources/subscribe","params":{"uri":"demo://x"}}`
	unsubscribe = `{"jsonrpc":"2.0","id":11,"method":"resources/unsubscribe","params":{"uri":"demo://x"}}`
)

// open opens a session.
func (f *fixture) open() string {
	f.t.Helper()
	r, err := f.l.Serve(f.t.Context(), request(f.t, "", initialize), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if r.Session == "" {
		f.t.Fatalf("initialize opened no session: %s", r.Body)
	}
	return r.Session
}

// say sends a message that must succeed, and returns the body of the reply.
func (f *fixture) say(l *session.Layer, id, raw string) string {
	f.t.Helper()
	r, err := l.Serve(f.t.Context(), request(f.t, id, raw), nil)
	if err != nil {
		f.t.Fatalf("%s: %v", raw, err)
	}
	return string(r.Body)
}

// fails checks that a message fails as want says.
func (f *fixture) fails(l *session.Layer, id, raw string, want *router.Error) error {
	f.t.Helper()
	r, err := l.Serve(f.t.Context(), request(f.t, id, raw), nil)
	if !errors.Is(err, want) {
		f.t.Fatalf("%s: got %+v, %v; want %v", raw, r, err, want)
	}
	return err
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("got %s, want %s in it", text, p)
		}
	}
}

// movedTo reads who has the session, and under which epoch, from an ErrMoved.
func movedTo(t testing.TB, err error) string {
	t.Helper()
	var e *router.Error
	var d struct {
		Instance string
		Epoch    uint64
	}
	if !errors.As(err, &e) || json.Unmarshal(e.Data, &d) != nil {
		t.Fatalf("%v says nothing of the owner", err)
	}
	return fmt.Sprint(d.Instance, " ", d.Epoch)
}
