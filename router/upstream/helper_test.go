package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/upstream"
)

const (
	legacy = "2025-11-25"
	modern = "2026-07-28"
)

// TestMain fails if goroutines are left when all is closed.
func TestMain(m *testing.M) {
	code := m.Run()
	var stacks strings.Builder
	for deadline := time.Now().Add(5 * time.Second); code == 0; runtime.Gosched() {
		stacks.Reset()
		if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
			panic(err)
		}
		if n := strings.Count(stacks.String(), "ripstop/router/upstream."); n == 0 {
			break
		}
		if time.Now().After(deadline) {
			fmt.Println("goroutines left:\n", stacks.String())
			code = 1
		}
	}
	os.Exit(code)
}

// transports are the ways to reach a handler; the same must be true of all.
var transports = []string{"plain", "tls", "inprocess"}

// over returns a backend that reaches h over one of the transports.
func over(t testing.TB, transport string, h http.Handler, opts upstream.Options) *upstream.Backend {
	t.Helper()
	opts.Instance = "abcdefghij"
	switch transport {
	case "plain":
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		opts.URL = s.URL + opts.URL
	case "tls":
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		opts.URL = s.URL + opts.URL
		opts.Transport = upstream.NewStandard(s.Client().Transport.(*http.Transport).TLSClientConfig)
	case "inprocess":
		opts.URL = "http://in-process" + opts.URL
		opts.Transport = upstream.InProcess(h)
	}
	b, err := upstream.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// each runs test over every transport.
func each(t *testing.T, test func(t *testing.T, transport string)) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) { test(t, transport) })
	}
}

func parse(t testing.TB, raw string) *jsonrpc.Message {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(raw))
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return m
}

// in makes a legacy request in a session.
func in(t testing.TB, session, raw string) *router.Request {
	t.Helper()
	return &router.Request{Session: session, Version: legacy, Message: parse(t, raw)}
}

func bare(t testing.TB, raw string) *router.Request {
	t.Helper()
	return &router.Request{Era: router.EraBare, Message: parse(t, raw)}
}

// stream collects what a call sends before its reply.
type stream struct {
	mu   sync.Mutex
	msgs []string
	fail error
	got  chan string // if set, receives every message too
}

func (s *stream) Send(_ context.Context, msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil && len(msg) > 0 {
		return s.fail
	}
	s.msgs = append(s.msgs, string(msg))
	if s.got != nil {
		s.got <- string(msg)
	}
	return nil
}

// initialize opens a session and returns its fabric id.
func initialize(t testing.TB, b *upstream.Backend) string {
	t.Helper()
	reply, err := b.Serve(t.Context(), in(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`), router.Discard)
	if err != nil {
		t.Fatalf("initialize: %v", err)
	}
	return reply.Session
}

// wantError checks err's code and status, and that its text says text.
func wantError(t testing.TB, err error, kind *router.Error, status int, text string) {
	t.Helper()
	var e *router.Error
	if !errors.As(err, &e) {
		t.Errorf("got error %v, want code %d", err, kind.Code)
		return
	}
	if e.Code != kind.Code || e.Status != status || !strings.Contains(e.Text, text) {
		t.Errorf("got code %d status %d %q, want code %d status %d %q", e.Code, e.Status, e.Text, kind.Code, status, text)
	}
}

// server is a scripted MCP server with sessions. on answers the methods it has
// entries for; others get an empty result as JSON.
type server struct {
	on       map[string]http.HandlerFunc
	sessions bool // give out session ids, and know them

	mu    sync.Mutex
	log   []string // "METHOD method-or-session"
	known map[string]bool
	count int
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal(body, &m) // a GET has none
	id := r.Header.Get("Mcp-Session-Id")
	what := m.Method
	if what == "" && r.Method == http.MethodPost {
		what = "response"
	}
	s.mu.Lock()
	s.log = append(s.log, strings.TrimSpace(r.Method+" "+what))
	gone := s.sessions && id != "" && !s.known[id]
	s.mu.Unlock()
	r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, body))
	name := m.Method
	if name == "" {
		name = r.Method
	}
	h := s.on[name]
	switch {
	case gone:
		http.Error(w, "session not found", http.StatusNotFound)
	case h != nil:
		h(w, r)
	case r.Method == http.MethodDelete:
		s.forget(id)
	case m.Method == "initialize":
		if s.sessions {
			w.Header().Set("Mcp-Session-Id", s.open())
		}
		answer(w, r, `{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"stub","version":"7"}}`)
	case m.Method == "server/discover":
		http.Error(w, "no session", http.StatusBadRequest)
	case m.ID == nil || m.Method == "":
		w.WriteHeader(http.StatusAccepted)
	default:
		answer(w, r, `{}`)
	}
}

type bodyKey struct{}

// bodyOf returns the request's body, which the server has read.
func bodyOf(r *http.Request) []byte { return r.Context().Value(bodyKey{}).([]byte) }

func (s *server) open() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	id := fmt.Sprintf("U%d", s.count)
	if s.known == nil {
		s.known = map[string]bool{}
	}
	s.known[id] = true
	return id
}

func (s *server) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// live returns the number of sessions.
func (s *server) live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}

func (s *server) seen(what string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.log {
		if l == what {
			n++
		}
	}
	return n
}

// requestID returns the id of the request in r's body.
func requestID(r *http.Request) string {
	var m struct{ ID json.RawMessage }
	_ = json.Unmarshal(bodyOf(r), &m)
	return string(m.ID)
}

// answer writes a result as one JSON body.
func answer(w http.ResponseWriter, r *http.Request, result string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, requestID(r), result)
}

// events writes event stream text as it is, with ID for the request's id, and
// flushes after each part.
func events(parts ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, p := range parts {
			fmt.Fprint(w, strings.ReplaceAll(p, "ID", requestID(r)))
			w.(http.Flusher).Flush()
		}
	}
}

const result = "data: {\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":{}}\n\n"

const toolCall = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}`
