package stdio_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"ripstop/router"
)

func TestListen(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	own := newStream()
	ctx, cancel := context.WithCancel(t.Context())
	listen := c.attach(t, ctx, own)
	changed := newStream()
	if _, err := c.serve(t.Context(), toolCall("1", "changed", `{}`), changed); err != nil {
		t.Fatal(err)
	}
	changed.empty(t)
	if m := own.next(t); m.Method != "notifications/tools/list_changed" {
		t.Errorf("own stream got %+v", m)
	}
	out := newStream()
	if _, err := c.serve(t.Context(), toolCall("1", "log", `{"text":"x"}`), out); err != nil {
		t.Fatal(err)
	}
	if m := out.next(t); m.Method != "notifications/message" {
		t.Errorf("request's stream got %+v, want its log message", m)
	}
	own.empty(t)
	cancel()
	if _, err := listen.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("listen: %v, want context.Canceled", err)
	}
}

func TestListenTakesOver(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	stuck := newStream()
	stuck.gate = make(chan struct{})
	first := c.listen(t.Context(), stuck)
	eventually(t, deadline, "the listener has a message", func() bool {
		out := newStream()
		if _, err := c.serve(t.Context(), toolCall("1", "changed", `{}`), out); err != nil {
			t.Fatal(err)
		}
		return len(out.msgs) == 0
	})
	second := newStream()
	c.listen(t.Context(), second)
	if reply, err := first.wait(t); err != nil || reply == nil || reply.Body != nil || reply.Session != "" {
		t.Errorf("first listener = %+v, %v; want an empty reply", reply, err)
	}
	// What the first could not send is not lost.
	if m := second.next(t); m.Method != "notifications/tools/list_changed" {
		t.Errorf("second listener got %+v", m)
	}
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	b, log := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	const n = 400
	for i := range n {
		if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","method":"notifications/later","params":{"n":`+fmt.Sprint(i)+`}}`, nil); err != nil {
			t.Fatal(err)
		}
	}
	out := newStream()
	if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","method":"notifications/flush"}`, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, deadline, "all messages are in the queue", func() bool { return strings.Contains(log.String(), "flushed") })
	c.listen(t.Context(), out)
	for i := n - 256; i < n; i++ {
		if m := out.next(t); string(m.Params) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Fatalf("message %s, want the newest 256 in order, now %d", m.Params, i)
		}
	}
	if !strings.Contains(log.String(), "message to client dropped") {
		t.Error("the log does not say that messages were dropped")
	}
	out.empty(t)
}

// A client that does not read must not hold up its session.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	stuck := newStream()
	stuck.gate = make(chan struct{})
	p := c.background(t.Context(), toolCall("1", "progress", `{"n":5000}`), stuck)
	eventually(t, deadline, "the request is given up, and others go on", func() bool { return c.mustText("cancelled", "") != "" })
	close(stuck.gate)
	_, err := p.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, "does not read")
}
