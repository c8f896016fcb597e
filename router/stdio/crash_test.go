package stdio_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/stdio"
)

func TestCrash(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	c.mustText("remember", "red")
	for _, params := range []string{`"method":"logging/setLevel","params":{"level":"debug"}`,
		`"method":"resources/subscribe","params":{"uri":"file:///a"}`,
		`"method":"resources/subscribe","params":{"uri":"file:///b"}`,
		`"method":"resources/unsubscribe","params":{"uri":"file:///b"}`} {
		if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":1,`+params+`}`, nil); err != nil {
			t.Fatal(err)
		}
	}
	out := newStream()
	inflight := c.background(t.Context(), toolCall("1", "wait", `{}`), out)
	out.next(t)
	began := time.Now()
	_, err := c.text("crash", "")
	wantError(t, err, router.ErrOutcomeUnknown, `tools/call "crash"`, "exit status 3", "boom")
	_, err = inflight.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, `tools/call "wait"`, "exit status 3")
	if took := time.Since(began); took > time.Second {
		t.Errorf("the requests in flight failed after %v, want at once", took)
	}
	first, err := c.serve(t.Context(), toolCall("1", "recall", `{}`), nil)
	if err != nil {
		t.Fatalf("the request after the crash: %v", err)
	}
	if body := string(first.Body); !strings.Contains(body, `"_meta":{"ripstop/reinitialized":{"cause":`) || !strings.Contains(body, `"text":""`) {
		t.Errorf("first result %s, want it marked and the memory gone", body)
	}
	second, err := c.serve(t.Context(), toolCall("1", "history", `{}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(second.Body), "reinitialized") {
		t.Errorf("second result is marked too: %s", second.Body)
	}
	want := "initialize notifications/initialized logging/setLevel resources/subscribe tools/call tools/call"
	if got, _ := textOf(second.Body); got != want {
		t.Errorf("the new child saw %s\nwant %s", got, want)
	}
	if got := c.mustText("initial", ""); got != initParams {
		t.Errorf("the new child got initialize %s, want the client's", got)
	}
}

// An answer to a child that has died must not reach the one that took over,
// though both count their questions from 1.
func TestAnswerToDeadChild(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	out := newStream()
	p := c.background(t.Context(), toolCall("1", "ask", `{}`), out)
	old := out.next(t)
	c.text("crash", "")
	p.wait(t)
	p = c.background(t.Context(), toolCall("1", "ask", `{}`), out)
	q := out.next(t)
	for _, a := range []string{string(old.ID), string(q.ID)} {
		if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":`+a+`,"result":{"to":`+a+`}}`, nil); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := p.wait(t)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := textOf(reply.Body); got != `{"to":`+string(q.ID)+`}` {
		t.Errorf("the child got answer %s", got)
	}
}

func TestCrashLoop(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "die")
	b, log := start(t, fakeOptions(quirks{DieIfExists: flag}))
	c := mustDial(t, b)
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.text("crash", "")
	wantError(t, err, router.ErrOutcomeUnknown)
	var starts int
	for {
		_, err := c.text("echo", "")
		if errors.Is(err, router.ErrUnavailable) {
			wantError(t, err, router.ErrUnavailable, "times in a row", "started again with the first request after", time.Now().Format("2006-01-02"))
			break
		}
		wantError(t, err, router.ErrBackend, "exit status 4", "told not to start", "nothing was executed")
		if starts++; starts > 10 {
			t.Fatal("no backoff")
		}
	}
	if starts < 3 {
		t.Errorf("%d restarts before the backoff exceeded what a request waits, want some", starts)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	eventually(t, deadline, "the session recovers after the backoff", func() bool {
		_, err := c.text("echo", "")
		return err == nil
	})
	if !strings.Contains(log.String(), "told not to start") {
		t.Error("the log lacks the child's stderr")
	}
}

func TestInitializeFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		q     quirks
		texts []string
	}{
		"exit":  {quirks{InitDie: true}, []string{"exit status 6", "no licence", "initialize"}},
		"hang":  {quirks{InitHang: true}, []string{"did not answer initialize within 500ms"}},
		"error": {quirks{InitError: true}, nil},
	} {
		o := fakeOptions(tt.q)
		if tt.q.InitHang {
			o.StartTimeout = 500 * time.Millisecond
		}
		b, _ := start(t, o)
		c := &client{b: b}
		reply, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":4,"method":"initialize","params":`+initParams+`}`, nil)
		if tt.texts != nil {
			wantError(t, err, router.ErrBackend, tt.texts...)
		} else if err != nil || reply.Session != "" || !strings.Contains(string(reply.Body), `"id":4,"error":{"code":-32602,"message":"not like this"}`) {
			t.Errorf("%s: initialize = %+v, %v; want the server's error", name, reply, err)
		}
	}
}

func TestCommandFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(path, []byte("not a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, stdio.Options{Command: []string{path}})
	_, err := dial(b)
	wantError(t, err, router.ErrBackend, path, "nothing was executed")
	_, err = b.Probe(t.Context())
	wantError(t, err, router.ErrBackend, path)
}

func TestJunk(t *testing.T) {
	t.Parallel()
	b, log := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	if got := c.mustText("junk", ""); got != "after junk" {
		t.Errorf("got %q", got)
	}
	if n := strings.Count(log.String(), "Listening on port 3000"); n == 0 || n > 10 {
		t.Errorf("%d of 100 lines of junk are in the log, want a few", n)
	}
	reply, err := c.serve(t.Context(), toolCall("1", "invalid", "{}"), nil)
	if err == nil {
		t.Errorf("invalid UTF-8 passed: %q", reply.Body)
	}
	wantError(t, err, router.ErrBackend, "not valid", "invalid UTF-8")
	c.mustText("noisy", "")
	eventually(t, deadline, "stderr is logged", func() bool { return strings.Contains(log.String(), "short line") })
	if !strings.Contains(log.String(), "middle line") {
		t.Error("the log lacks the line after an overlong one")
	}
	for line := range strings.Lines(log.String()) {
		if len(line) > 5000 {
			t.Fatalf("a line of %d bytes is in the log", len(line))
		}
	}
}

func TestLargeMessages(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	const n = 15 << 20
	if got := c.mustText("size", strings.Repeat("y", n)); got != fmt.Sprint(n) {
		t.Errorf("server got %s bytes, want %d", got, n)
	}
	big := func(n int) (string, error) {
		reply, err := c.serve(t.Context(), toolCall("1", "big", fmt.Sprintf(`{"n":%d}`, n)), nil)
		if err != nil {
			return "", err
		}
		return textOf(reply.Body)
	}
	if got, err := big(n); err != nil || got != strings.Repeat("x", n) {
		t.Errorf("client got %d bytes, %v; want %d", len(got), err, n)
	}
	_, err := big(17 << 20)
	wantError(t, err, router.ErrOutcomeUnknown, "a line of more than 16 MiB")
	if got, err := c.text("echo", "alive"); got != "alive" {
		t.Errorf("after it: %q, %v", got, err)
	}
}

// A child that no longer reads must not hold up anyone.
func TestDeafChild(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	deaf, other := mustDial(t, b), mustDial(t, b)
	deaf.mustText("deaf", "")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	big := toolCall("1", "echo", `{"text":"`+strings.Repeat("z", 2<<20)+`"}`)
	half := deaf.background(ctx, big, nil)
	var blocked []*pending
	for range 5 {
		blocked = append(blocked, deaf.background(ctx, toolCall("1", "echo", `{}`), nil))
	}
	if got := other.mustText("echo", "fine"); got != "fine" {
		t.Errorf("another session got %q", got)
	}
	began := time.Now()
	_, err := half.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown)
	for _, p := range blocked {
		if _, err := p.wait(t); !errors.Is(err, router.ErrOutcomeUnknown) && !errors.Is(err, router.ErrUnavailable) {
			t.Errorf("blocked request: %v", err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("requests came back after %v, want with their context", took)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = deaf.serve(ctx, toolCall("1", "echo", `{}`), nil)
	wantError(t, err, router.ErrUnavailable, "was not executed", "does not read its input")
}

// A child that closes one of its pipes is of no use, though it runs on.
func TestClosedPipes(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Stay: true}))
	for _, tool := range []string{"closestdin", "closestdout"} {
		c := mustDial(t, b)
		pid := c.mustText("pid", "")
		_, err := c.text(tool, "")
		if tool == "closestdout" {
			wantError(t, err, router.ErrOutcomeUnknown, "closed its standard output")
		}
		if got, err := c.text("pid", ""); err != nil || got == pid {
			t.Errorf("after %s: %q, %v; want a new child", tool, got, err)
		}
		eventually(t, deadline, "the old child is gone", func() bool { return gone(pid) })
	}
}

func TestCloseWhileStarting(t *testing.T) {
	t.Parallel()
	b, log := start(t, fakeOptions(quirks{InitHang: true}))
	errs := make(chan error, 3)
	go func() { _, err := b.Probe(context.Background()); errs <- err }()
	go func() {
		_, err := once(context.Background(), b, router.EraBare, toolCall("1", "echo", "{}"), nil)
		errs <- err
	}()
	go func() { _, err := dial(b); errs <- err }()
	eventually(t, deadline, "both children run", func() bool { return strings.Count(log.String(), "server process started") == 2 })
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, router.ErrUnavailable) && !errors.Is(err, router.ErrBackend) {
			t.Errorf("error %v, want unavailable", err)
		}
	}
}

// The child dies, but what it started lives on and holds its pipes.
func TestOrphanHoldsThePipe(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	out := newStream()
	began := time.Now()
	_, err := c.serve(t.Context(), toolCall("1", "orphan", `{}`), out)
	wantError(t, err, router.ErrOutcomeUnknown, "exit status 7")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the request failed after %v, want at once", took)
	}
	var p struct{ Data int }
	decode(t, out.next(t).Params, &p)
	eventually(t, 5*time.Second, "the orphan is killed", func() bool { return gone(fmt.Sprint(p.Data)) })
}

// Where someone else makes sessions anew, one ends with its process.
func TestEndWithProcess(t *testing.T) {
	t.Parallel()
	o := fakeOptions(quirks{})
	o.EndWithProcess = true
	b, _ := start(t, o)
	c := mustDial(t, b)
	c.mustText("remember", "red")
	_, err := c.text("crash", "")
	wantError(t, err, router.ErrOutcomeUnknown, `tools/call "crash"`)
	_, err = c.text("recall", "")
	wantError(t, err, router.ErrSessionNotFound, "session")
	mustDial(t, b)
}
