package stdio_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/stdio"
)

// deadline bounds every wait of the tests.
const deadline = 20 * time.Second

func fakeOptions(q quirks) stdio.Options {
	b, _ := json.Marshal(q)
	return stdio.Options{
		Instance: "testinst22", Command: []string{os.Args[0]},
		Env: []string{"STDIO_TEST_ROLE=fake", "STDIO_TEST_QUIRKS=" + string(b), "GORACE=atexit_sleep_ms=0"},
	}
}

// journal is a log that tests read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// start returns a backend that is closed with the test, and its log.
func start(t testing.TB, o stdio.Options) (*stdio.Backend, *journal) {
	t.Helper()
	j := &journal{}
	o.Logger = slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b, err := stdio.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%.8000s", j)
		}
	})
	return b, j
}

// stream records what it is sent.
type stream struct {
	msgs chan string
	gate chan struct{} // nil, or what Send waits for
}

func newStream() *stream { return &stream{msgs: make(chan string, 10000)} }

func (s *stream) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 { // it is open
		return ctx.Err()
	}
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.msgs <- string(msg)
	return nil
}

// next returns the next message, or fails the test.
func (s *stream) next(t testing.TB) rpc {
	t.Helper()
	select {
	case msg := <-s.msgs:
		var m rpc
		if err := json.Unmarshal([]byte(msg), &m); err != nil {
			t.Fatalf("stream got %q: %v", msg, err)
		}
		return m
	case <-time.After(deadline):
		t.Fatal("nothing came on the stream")
		panic("unreachable")
	}
}

func (s *stream) empty(t testing.TB) {
	t.Helper()
	select {
	case msg := <-s.msgs:
		t.Errorf("stream got %s, want nothing", msg)
	default:
	}
}

// client is one legacy client.
type client struct {
	b       *stdio.Backend
	session string
	reply   *router.Reply // of initialize
}

var initParams = `{"protocolVersion":"2025-06-18","capabilities":{"elicitation":{}},"clientInfo":{"name":"tester","version":"1"}}`

func message(raw string) *jsonrpc.Message {
	m, err := jsonrpc.Parse([]byte(raw))
	if err != nil {
		panic(fmt.Sprintf("%v in %.200s", err, raw))
	}
	return m
}

func dial(b *stdio.Backend) (*client, error) {
	c := &client{b: b}
	reply, err := c.serve(context.Background(), `{"jsonrpc":"2.0","id":"init","method":"initialize","params":`+initParams+`}`, nil)
	if err != nil {
		return nil, err
	}
	c.session, c.reply = reply.Session, reply
	if c.session == "" {
		return nil, fmt.Errorf("no session: %s", reply.Body)
	}
	_, err = c.serve(context.Background(), `{"jsonrpc":"2.0","method":"notifications/initialized"}`, nil)
	return c, err
}

func mustDial(t testing.TB, b *stdio.Backend) *client {
	t.Helper()
	c, err := dial(b)
	if err != nil {
		t.Fatalf("initialize: %v", err)
	}
	return c
}

func (c *client) serve(ctx context.Context, raw string, out router.Stream) (*router.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return c.b.Serve(ctx, &router.Request{Op: router.OpMessage, Server: "fake", Session: c.session, Message: message(raw)}, out)
}

func toolCall(id, name, args string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args + `,"_meta":{"progressToken":"tok-` + name + `"}}}`
}

// text calls a tool with the argument text and returns the text of its result.
func (c *client) text(name, arg string) (string, error) {
	reply, err := c.serve(context.Background(), toolCall(`"c1"`, name, `{"text":`+quote(arg)+`}`), nil)
	if err != nil {
		return "", err
	}
	return textOf(reply.Body)
}

func (c *client) mustText(name, arg string) string {
	s, err := c.text(name, arg)
	if err != nil {
		panic(fmt.Sprintf("tool %s: %v", name, err))
	}
	return s
}

func textOf(body []byte) (string, error) {
	var r struct {
		Result struct {
			Content []struct{ Text string }
		}
		Error json.RawMessage
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return "", fmt.Errorf("%v in %.200q", err, body)
	}
	if r.Error != nil || len(r.Result.Content) == 0 {
		return "", fmt.Errorf("reply %.300s", body)
	}
	return r.Result.Content[0].Text, nil
}

// pending is a request that runs in the background.
type pending struct {
	reply *router.Reply
	err   error
	done  chan struct{}
}

func (c *client) background(ctx context.Context, raw string, out router.Stream) *pending {
	p := &pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.reply, p.err = c.serve(ctx, raw, out)
	}()
	return p
}

func (c *client) listen(ctx context.Context, out router.Stream) *pending {
	p := &pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.reply, p.err = c.b.Serve(ctx, &router.Request{Op: router.OpListen, Session: c.session}, out)
	}()
	return p
}

// attach listens, and returns when the listener is attached. No request of the
// client may be in flight.
func (c *client) attach(t testing.TB, ctx context.Context, out *stream) *pending {
	t.Helper()
	p := c.listen(ctx, out)
	if _, err := c.serve(ctx, `{"jsonrpc":"2.0","method":"notifications/later","params":{}}`, nil); err != nil {
		t.Fatal(err)
	}
	if m := out.next(t); m.Method != "notifications/message" {
		t.Fatalf("the session's stream got %+v", m)
	}
	return p
}

func (c *client) end(t testing.TB) {
	t.Helper()
	reply, err := c.b.Serve(context.Background(), &router.Request{Op: router.OpEnd, Session: c.session}, nil)
	if err != nil || reply.Status != 204 || reply.Body != nil {
		t.Errorf("end = %+v, %v; want 204", reply, err)
	}
}

func (p *pending) wait(t testing.TB) (*router.Reply, error) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(deadline):
		t.Fatal("the request does not end")
	}
	return p.reply, p.err
}

// wantError checks an error for the client: its kind, and what its text says.
func wantError(t testing.TB, err error, kind *router.Error, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want %q", err, kind.Text)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

// eventually polls for what comes from the kernel and can't be waited on.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// gone reports whether no process has the pid; a zombie that its new parent
// has not reaped yet counts as gone.
func gone(pid string) bool {
	n := 0
	if _, err := fmt.Sscan(pid, &n); err != nil || n < 2 {
		panic("not a pid: " + pid)
	}
	if syscall.Kill(n, 0) == syscall.ESRCH {
		return true
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return errors.Is(err, os.ErrNotExist) && dirExists("/proc/self")
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

func dirExists(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
