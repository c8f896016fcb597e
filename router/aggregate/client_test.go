package aggregate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

// sink is a client's stream.
type sink struct {
	mu   sync.Mutex
	got  []string
	open bool // an empty message came
}

func (s *sink) Send(ctx context.Context, msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(msg) == 0 {
		s.open = true
	} else {
		s.got = append(s.got, string(msg))
	}
	return ctx.Err()
}

// take returns what came since the last take.
func (s *sink) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got = nil
	return got
}

func parse(t testing.TB, raw string) *jsonrpc.Message {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(raw))
	if err != nil {
		t.Fatalf("Parse(%s): %v", raw, err)
	}
	return m
}

// legacyClient is a client with a session.
type legacyClient struct {
	t       testing.TB
	b       *aggregate.Backend
	session string
}

const initialize = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",` +
	`"capabilities":{"elicitation":{},"sampling":{},"roots":{"listChanged":true},"experimental":{"x":{}}},"clientInfo":{"name":"tester","version":"7"}}}`

func connect(t testing.TB, b *aggregate.Backend) *legacyClient {
	t.Helper()
	c := &legacyClient{t: t, b: b}
	reply, err := b.Serve(t.Context(), &router.Request{Message: parse(t, initialize)}, router.Discard)
	if err != nil {
		t.Fatalf("initialize: %v", err)
	}
	if c.session = reply.Session; router.SessionInstance(c.session) != "abcdefghij" {
		t.Fatalf("session %q does not name its instance", c.session)
	}
	return c
}

func (c *legacyClient) request(raw string) *router.Request {
	return &router.Request{Session: c.session, Version: "2025-11-25", Message: parse(c.t, raw)}
}

// do sends a message and returns the reply's body, or the error's text.
func (c *legacyClient) do(raw string, out ...router.Stream) string {
	c.t.Helper()
	return show(c.b.Serve(c.t.Context(), c.request(raw), append(out, router.Discard)[0]))
}

// listen opens the session's stream; stop ends it.
func (c *legacyClient) listen(out router.Stream) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.b.Serve(ctx, &router.Request{Op: router.OpListen, Session: c.session}, out)
	}()
	return func() { cancel(); <-done }
}

// triple is the metadata of a modern request.
const triple = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{}},"io.modelcontextprotocol/clientInfo":{"name":"tester","version":"7"}}`

func modern(t testing.TB, method, id, params string) *router.Request {
	if params != "" {
		params = "," + params
	}
	raw := `{"jsonrpc":"2.0","id":` + id + `,"method":"` + method + `","params":{` + triple + params + `}}`
	return &router.Request{Era: router.EraModern, Version: "2026-07-28", Message: parse(t, raw)}
}

func show(reply *router.Reply, err error) string {
	if err != nil {
		r := router.ErrorReply(nil, err)
		return fmt.Sprintf("%d %s", r.Status, r.Body)
	}
	if reply.Status != 0 {
		return strings.TrimSpace(fmt.Sprintf("%d %s", reply.Status, reply.Body))
	}
	return string(reply.Body)
}

func has(t testing.TB, what, got string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("%s = %s\nwant it to hold %s", what, got, want)
		}
	}
}

func hasNot(t testing.TB, what, got string, unwanted ...string) {
	t.Helper()
	for _, no := range unwanted {
		if strings.Contains(got, no) {
			t.Errorf("%s = %s\nwant it without %s", what, got, no)
		}
	}
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	g, w := fmt.Sprint(got), fmt.Sprint(want)
	if g != w {
		t.Errorf("%s\ngot  %s\nwant %s", what, g, w)
	}
}

// names returns the values of key in the elements of a list result.
func names(t testing.TB, body, items, key string) []string {
	t.Helper()
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(field([]byte(body), "result", items), &list); err != nil {
		t.Fatalf("%s: no list of %s: %v", body, items, err)
	}
	out := []string{}
	for _, item := range list {
		var s string
		if err := json.Unmarshal(item[key], &s); err != nil {
			t.Errorf("%s: %v", item, err)
		}
		out = append(out, s)
	}
	return out
}

// logged collects log lines.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) lines(with string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), with)
}

func withLog(l *logged) func(*aggregate.Options) {
	return func(o *aggregate.Options) { o.Logger = slog.New(slog.NewTextHandler(l, nil)) }
}
