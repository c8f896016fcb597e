package stdio_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/stdio"
)

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]stdio.Options{
		"no command given":    {},
		"is not in PATH":      {Command: []string{"no-such-program-here"}},
		"no such file":        {Command: []string{"./no/such/file"}},
		"not an executable":   {Command: []string{t.TempDir()}},
		"working directory":   {Command: []string{"sh"}, Dir: "/no/such/dir"},
		"is not KEY=value":    {Command: []string{"sh"}, Env: []string{"KEY"}},
		"may be negative":     {Command: []string{"sh"}, IdleTimeout: -1},
		"(/nowhere): install": {Command: []string{"sh"}, Env: []string{"PATH=/nowhere"}},
	} {
		b, err := stdio.New(o)
		if err == nil {
			b.Close()
			t.Errorf("New(%v) took it, want an error about %q", o.Command, name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("New: %v, want an error about %q", err, name)
		}
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	if got := router.SessionInstance(c.session); got != "testinst22" {
		t.Errorf("session %q names instance %q", c.session, got)
	}
	if body := string(c.reply.Body); !strings.Contains(body, `"id":"init"`) || !strings.Contains(body, `"name":"fake"`) {
		t.Errorf("initialize = %s", body)
	}
	if got := c.mustText("initial", ""); got != initParams {
		t.Errorf("server got initialize %s, want %s", got, initParams)
	}
	if got := c.mustText("history", ""); !strings.HasPrefix(got, "initialize notifications/initialized tools/call") {
		t.Errorf("server saw %s", got)
	}
	for _, id := range []string{`"x\u00e9"`, `7`, `"7"`, `-1`} {
		reply, err := c.serve(t.Context(), toolCall(id, "ids", `{}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := textOf(reply.Body)
		var wire, token int
		if n, _ := fmt.Sscan(got, &wire, &token); err != nil || n != 2 || wire != token {
			t.Errorf("server saw id and token %q, %v; want the same integer", got, err)
		}
		if !strings.Contains(string(reply.Body), `"id":`+id+`,`) {
			t.Errorf("reply %s, want id %s", reply.Body, id)
		}
	}
}

func TestMessageWithLineBreaks(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	raw := strings.ReplaceAll(toolCall("1", "echo", `{"text":"a\nb"}`), ",", ",\r\n\t")
	reply, err := c.serve(t.Context(), raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := textOf(reply.Body); got != "a\nb" {
		t.Errorf("echo = %q, %v", got, err)
	}
	msg := "{\n\"jsonrpc\":\"2.0\",\n\"method\":\"notifications/foo\"\n}"
	if _, err := c.serve(t.Context(), msg, nil); err != nil {
		t.Fatal(err)
	}
	if got := c.mustText("history", ""); !strings.Contains(got, "notifications/foo") {
		t.Errorf("server saw %s", got)
	}
}

func TestSessionsAreSeparate(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	one.mustText("remember", "red")
	two.mustText("remember", "blue")
	if a, b := one.mustText("recall", ""), two.mustText("recall", ""); a != "red" || b != "blue" {
		t.Errorf("recall = %q and %q", a, b)
	}
	if one.mustText("pid", "") == two.mustText("pid", "") {
		t.Error("the sessions have one child")
	}
}

func TestSessionIsRequired(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := &client{b: b}
	_, err := c.serve(t.Context(), toolCall("1", "echo", "{}"), nil)
	var e *router.Error
	if !errors.As(err, &e) || e.Code != jsonrpc.CodeInvalidRequest || e.Status != 400 || !strings.Contains(e.Text, "Mcp-Session-Id is required") {
		t.Errorf("request without a session: %v", err)
	}
	c.session = router.NewSessionID("testinst22")
	_, err = c.serve(t.Context(), toolCall("1", "echo", "{}"), nil)
	wantError(t, err, router.ErrSessionNotFound, c.session, "initialize again")
	for _, op := range []router.Op{router.OpListen, router.OpEnd} {
		_, err = b.Serve(t.Context(), &router.Request{Op: op, Session: c.session}, nil)
		wantError(t, err, router.ErrSessionNotFound)
	}
}

func TestEnd(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Stay: true}))
	c := mustDial(t, b)
	pid := c.mustText("pid", "")
	listen := c.attach(t, t.Context(), newStream())
	inflight := c.background(t.Context(), toolCall("1", "hang", "{}"), nil)
	c.mustText("echo", "")
	began := time.Now()
	c.end(t)
	_, err := inflight.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, `tools/call "hang"`, "ended")
	if reply, err := listen.wait(t); err != nil || reply.Body != nil {
		t.Errorf("listen = %v, %v; want an end without a body", reply, err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the end took %v: it waited for the child", took)
	}
	if gone(pid) {
		t.Fatal("the child is gone: it was not given time to end by itself")
	}
	_, err = c.text("echo", "")
	wantError(t, err, router.ErrSessionNotFound)
	eventually(t, 6*time.Second, "a child that ignores SIGTERM is killed", func() bool { return gone(pid) })
}

func TestProgress(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	const n = 5000 // more than a call's queue
	out := newStream()
	reply, err := c.serve(t.Context(), toolCall("1", "progress", fmt.Sprintf(`{"n":%d}`, n)), out)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := textOf(reply.Body); got != "done" {
		t.Errorf("reply %q, %v", got, err)
	}
	if len(out.msgs) != n {
		t.Fatalf("%d messages before the reply, want %d", len(out.msgs), n)
	}
	for i := range n {
		want := fmt.Sprintf(`{"progressToken":"tok-progress","progress":%d}`, i)
		if got := out.next(t); got.Method != "notifications/progress" || string(got.Params) != want {
			t.Fatalf("message %d = %s, want %s", i, got.Params, want)
		}
	}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	one, two := newStream(), newStream()
	first := c.background(t.Context(), toolCall("1", "ask", `{"text":"one"}`), one)
	q1 := one.next(t)
	second := c.background(t.Context(), toolCall("2", "ask", `{"text":"two"}`), two)
	q2 := two.next(t) // the newest request's stream
	if q1.Method != "elicitation/create" || string(q1.ID) == string(q2.ID) {
		t.Fatalf("questions %+v and %+v", q1, q2)
	}
	for _, a := range []struct{ id, answer string }{{string(q2.ID), `{"answer":2}`}, {string(q1.ID), `{"answer":1}`}, {"999", "{}"}, {`"odd"`, "{}"}} {
		reply, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":`+a.id+`,"result":`+a.answer+`}`, nil)
		if err != nil || reply.Status != 202 {
			t.Errorf("answer %s = %+v, %v; want 202", a.id, reply, err)
		}
	}
	for i, p := range []*pending{first, second} {
		reply, err := p.wait(t)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := textOf(reply.Body); got != fmt.Sprintf(`{"answer":%d}`, i+1) {
			t.Errorf("ask %d = %q, %v", i+1, got, err)
		}
	}
}

func TestAskWithdrawn(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	out := newStream()
	if _, err := c.serve(t.Context(), toolCall("1", "withdraw", `{}`), out); err != nil {
		t.Fatal(err)
	}
	q, w := out.next(t), out.next(t)
	if w.Method != "notifications/cancelled" || string(w.Params) != `{"requestId":`+string(q.ID)+`}` {
		t.Errorf("got %s %s after question %s, want it cancelled", w.Method, w.Params, q.ID)
	}
}

// A question whose request is given up is answered to the child, which would
// else wait for ever.
func TestAskAbandoned(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	out := newStream()
	ctx, cancel := context.WithCancel(t.Context())
	p := c.background(ctx, toolCall("1", "ask", `{}`), out)
	q := out.next(t)
	cancel()
	if _, err := p.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled request: %v", err)
	}
	eventually(t, deadline, "the child's question is answered", func() bool {
		return strings.Contains(c.mustText("answers", ""), "given up")
	})
	late, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":`+string(q.ID)+`,"result":{}}`, nil)
	if err != nil || late.Status != 202 {
		t.Errorf("late answer = %+v, %v; want 202", late, err)
	}
}

func TestRootsAreAskedOnTheSessionsStream(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Roots: true}))
	c := mustDial(t, b)
	out := newStream()
	c.listen(t.Context(), out)
	if q := out.next(t); q.Method != "roots/list" {
		t.Errorf("stream got %+v, want roots/list", q)
	}
}

func TestCancelNotification(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	for _, tool := range []string{"wait", "stubborn"} {
		out := newStream()
		p := c.background(t.Context(), toolCall(`"mine"`, tool, `{}`), out)
		out.next(t)
		reply, err := c.serve(t.Context(), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"mine"}}`, nil)
		if err != nil || reply.Status != 202 {
			t.Errorf("cancel = %+v, %v", reply, err)
		}
		reply, err = p.wait(t)
		if err != nil || (reply.Body == nil) != (tool == "wait") {
			t.Errorf("cancelled %s = %s, %v", tool, reply.Body, err)
		}
	}
	if got := strings.Fields(c.mustText("cancelled", "")); len(got) != 2 || strings.Contains(got[0], "mine") {
		t.Errorf("server was told to cancel %q, want two ids of its own", got)
	}
	if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"other"}}`, nil); err != nil {
		t.Error(err)
	}
	if got := strings.Fields(c.mustText("cancelled", "")); len(got) != 2 {
		t.Errorf("an id that is not in flight was cancelled: %q", got)
	}
}

func TestContextCancels(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	out := newStream()
	ctx, cancel := context.WithCancel(t.Context())
	p := c.background(ctx, toolCall("1", "stubborn", `{}`), out)
	out.next(t)
	cancel()
	if _, err := p.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.serve(ctx, toolCall("1", "hang", `{}`), nil)
	wantError(t, err, router.ErrOutcomeUnknown, `tools/call "hang"`, "no answer in time")
	eventually(t, deadline, "the server is told of both", func() bool {
		return len(strings.Fields(c.mustText("cancelled", ""))) == 2
	})
	out.empty(t)
}

// A client that is gone ends its request.
func TestSendFails(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	_, err := c.serve(t.Context(), toolCall("1", "wait", `{}`), broken{})
	if !errors.Is(err, errBroken) {
		t.Errorf("error %v, want that of the stream", err)
	}
	eventually(t, deadline, "the server is told", func() bool { return c.mustText("cancelled", "") != "" })
}

var errBroken = errors.New("client is gone")

type broken struct{}

func (broken) Send(context.Context, []byte) error { return errBroken }
