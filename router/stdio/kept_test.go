package stdio_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/stdio"
)

func decode(t testing.TB, raw []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("decode %.200s: %v", raw, err)
	}
}

// once sends a request without a session.
func once(ctx context.Context, b *stdio.Backend, era router.Era, raw string, out router.Stream) (*router.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return b.Serve(ctx, &router.Request{Op: router.OpMessage, Era: era, Message: message(raw)}, out)
}

const modernMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"progressToken":"p"}`

func modernCall(id, name, args string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args + `,` + modernMeta + `}}`
}

func onceText(t testing.TB, b *stdio.Backend, era router.Era, raw string) string {
	t.Helper()
	reply, err := once(t.Context(), b, era, raw, nil)
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	text, err := textOf(reply.Body)
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return text
}

const bareHistory = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"history"}}`

func TestBareOnLegacy(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	if got := onceText(t, b, router.EraBare, bareHistory); got != "server/discover initialize notifications/initialized tools/call" {
		t.Errorf("server saw %s", got)
	}
	var p struct {
		Capabilities map[string]any
		ClientInfo   struct{ Name string }
	}
	decode(t, []byte(onceText(t, b, router.EraBare, toolCall("1", "initial", "{}"))), &p)
	if p.ClientInfo.Name != "ripstop" || len(p.Capabilities) != 0 {
		t.Errorf("initialize params %+v, want ripstop without capabilities", p)
	}
	out := newStream()
	if _, err := once(t.Context(), b, router.EraBare, toolCall("1", "progress", `{"n":2}`), out); err != nil || len(out.msgs) != 2 {
		t.Errorf("progress: %v, %d messages, want 2", err, len(out.msgs))
	}
	// The server is told that there is nobody to ask.
	if got := onceText(t, b, router.EraBare, toolCall("1", "ask", "{}")); !strings.Contains(got, "-32601") {
		t.Errorf("a question was answered %s, want error -32601", got)
	}
	reply, err := once(t.Context(), b, router.EraBare, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, nil)
	if err != nil || reply.Status != 202 {
		t.Errorf("bare notification = %+v, %v", reply, err)
	}
}

func TestBareOnModern(t *testing.T) {
	t.Parallel()
	for _, q := range []quirks{{Modern: true}, {ModernOnly: true}} {
		b, _ := start(t, fakeOptions(q))
		if got := onceText(t, b, router.EraBare, bareHistory); got != "server/discover tools/call" {
			t.Errorf("server saw %s", got)
		}
		var p struct {
			Meta      map[string]json.RawMessage `json:"_meta"`
			Arguments json.RawMessage
		}
		decode(t, []byte(onceText(t, b, router.EraBare, toolCall("1", "params", `{"a":"<&>",  "b":12345678901234567890}`))), &p)
		if string(p.Meta["io.modelcontextprotocol/protocolVersion"]) != `"2026-07-28"` || p.Meta["io.modelcontextprotocol/clientCapabilities"] == nil || p.Meta["progressToken"] == nil {
			t.Errorf("server got _meta %s", p.Meta)
		}
		if string(p.Arguments) != `{"a":"<&>","b":12345678901234567890}` {
			t.Errorf("server got arguments %s", p.Arguments)
		}
	}
}

func TestModernOnLegacy(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	for range 2 { // found out, and remembered
		_, err := once(t.Context(), b, router.EraModern, modernCall("1", "echo", "{}"), nil)
		var e *router.Error
		if !errors.As(err, &e) || e.Code != router.CodeUnsupportedVersion || e.Status != 400 {
			t.Fatalf("error %v, want unsupported version", err)
		}
		if got := string(e.Data); got != `{"requested":"2026-07-28","supported":["2025-11-25"]}` {
			t.Errorf("data %s", got)
		}
	}
}

func TestModern(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Modern: true}))
	pid := onceText(t, b, router.EraModern, modernCall("1", "pid", "{}"))
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { // all with the same id and token
			out := newStream()
			reply, err := once(t.Context(), b, router.EraModern, modernCall(`"same"`, "progress", `{"n":3}`), out)
			if err != nil || !strings.Contains(string(reply.Body), `"id":"same"`) || len(out.msgs) != 3 {
				t.Errorf("reply %s, %v, after %d messages", reply.Body, err, len(out.msgs))
				return
			}
			if m := out.next(t); !strings.Contains(string(m.Params), `"progressToken":"p"`) {
				t.Errorf("progress %s, want the client's token", m.Params)
			}
		})
	}
	all.Wait()
	if got := onceText(t, b, router.EraModern, modernCall("1", "pid", "{}")); got != pid {
		t.Errorf("child %s after %s, want one for all", got, pid)
	}
	reply, err := once(t.Context(), b, router.EraModern, `{"jsonrpc":"2.0","id":1,"method":"no/such","params":{`+modernMeta+`}}`, nil)
	if err != nil || reply.Status != 404 {
		t.Errorf("unknown method = %+v, %v; want status 404", reply, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = once(ctx, b, router.EraModern, modernCall("1", "wait", "{}"), nil)
	wantError(t, err, router.ErrOutcomeUnknown)
	eventually(t, deadline, "the server is told", func() bool {
		return onceText(t, b, router.EraModern, modernCall("1", "cancelled", "{}")) != ""
	})
}

func TestSubscriptionsListen(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Modern: true}))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	streams := []*stream{newStream(), newStream()}
	for _, out := range streams {
		all.Go(func() {
			_, err := once(ctx, b, router.EraModern, `{"jsonrpc":"2.0","id":"sub","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},`+modernMeta+`}}`, out)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("listen: %v", err)
			}
		})
	}
	for _, out := range streams {
		if m := out.next(t); m.Method != "notifications/subscriptions/acknowledged" || !strings.Contains(string(m.Params), `"io.modelcontextprotocol/subscriptionId":"sub"`) {
			t.Errorf("got %s %s, want an acknowledgement with the client's id", m.Method, m.Params)
		}
	}
	onceText(t, b, router.EraModern, modernCall("1", "changed", `{"uri":"file:///<a>"}`))
	for _, out := range streams {
		if m := out.next(t); m.Method != "notifications/resources/updated" || string(m.Params) != `{"_meta":{"io.modelcontextprotocol/subscriptionId":"sub"},"uri":"file:///<a>"}` {
			t.Errorf("got %s %s", m.Method, m.Params)
		}
		out.empty(t)
	}
	cancel()
	all.Wait()
	eventually(t, deadline, "the server is told of both ends", func() bool {
		return len(strings.Fields(onceText(t, b, router.EraModern, modernCall("1", "cancelled", "{}")))) == 2
	})
}

func TestSubscriptionEnds(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Modern: true}))
	out := newStream()
	replies := make(chan *router.Reply, 1)
	go func() {
		reply, err := once(t.Context(), b, router.EraModern, `{"jsonrpc":"2.0","id":"sub","method":"subscriptions/listen","params":{"notifications":{},`+modernMeta+`}}`, out)
		if err != nil {
			t.Errorf("listen: %v", err)
		}
		replies <- reply
	}()
	out.next(t)
	onceText(t, b, router.EraModern, modernCall("1", "endlistens", "{}"))
	want := `{"jsonrpc":"2.0","id":"sub","result":{"_meta":{"io.modelcontextprotocol/subscriptionId":"sub"},"resultType":"complete"}}`
	if reply := <-replies; reply != nil && string(reply.Body) != want {
		t.Errorf("the end of the subscription is %s\nwant %s", reply.Body, want)
	}
}

func TestKeptChildCrashes(t *testing.T) {
	t.Parallel()
	for _, q := range []quirks{{}, {Modern: true}} {
		b, _ := start(t, fakeOptions(q))
		_, err := once(t.Context(), b, router.EraBare, toolCall("1", "crash", "{}"), nil)
		wantError(t, err, router.ErrOutcomeUnknown, "exit status 3", "boom")
		if got := onceText(t, b, router.EraBare, toolCall("1", "echo", `{"text":"again"}`)); got != "again" {
			t.Errorf("after the crash: %q", got)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		q        quirks
		versions []string
	}{
		"legacy":           {quirks{}, []string{"2025-11-25"}},
		"modern":           {quirks{Modern: true}, []string{"2026-07-28", "2025-11-25"}},
		"modern only":      {quirks{ModernOnly: true}, []string{"2026-07-28", "2025-11-25"}},
		"ignores discover": {quirks{IgnoreDiscover: true}, []string{"2025-11-25"}},
		"dies on discover": {quirks{DieOnDiscover: true}, []string{"2025-11-25"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _ := start(t, fakeOptions(tt.q))
			info, err := b.Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if info.Name != "fake" || info.Version != "9" || string(info.Capabilities) != `{"tools":{}}` || !slices.Equal(info.Versions, tt.versions) {
				t.Errorf("Probe = %+v, want versions %v", info, tt.versions)
			}
			pid := onceText(t, b, router.EraBare, toolCall("1", "pid", "{}"))
			if _, err := b.Probe(t.Context()); err != nil {
				t.Error(err)
			}
			if got := onceText(t, b, router.EraBare, toolCall("1", "pid", "{}")); got != pid {
				t.Errorf("child %s after %s: Probe did not keep it", got, pid)
			}
		})
	}
}

func TestProbeFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		o    stdio.Options
		text string
	}{
		"not a server": {stdio.Options{Command: []string{"sh", "-c", "echo no such option >&2; exit 2"}}, "no such option"},
		"silent":       {stdio.Options{Command: []string{"sh", "-c", "exec sleep 60"}, StartTimeout: 300 * time.Millisecond}, "within 300ms"},
		"refuses":      {fakeOptions(quirks{InitError: true}), "not like this"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _ := start(t, tt.o)
			_, err := b.Probe(t.Context())
			wantError(t, err, router.ErrBackend, tt.text)
		})
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	o := fakeOptions(quirks{})
	o.IdleTimeout = 300 * time.Millisecond
	o.MaxSessions = 2
	b, _ := start(t, o)
	c, listening := mustDial(t, b), mustDial(t, b)
	_, err := dial(b)
	wantError(t, err, router.ErrOverloaded, "holds 2 sessions")
	listening.listen(t.Context(), newStream())
	pid := c.mustText("pid", "")
	kept := onceText(t, b, router.EraBare, toolCall("1", "pid", "{}"))
	busy := c.background(t.Context(), toolCall("1", "wait", "{}"), nil)
	within := time.After(3 * o.IdleTimeout)
	for waiting := true; waiting; {
		select {
		case <-busy.done:
			t.Fatalf("the session in use ended: %v", busy.err)
		case <-within:
			waiting = false
		}
	}
	if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, nil); err != nil {
		t.Fatal(err)
	}
	busy.wait(t)
	eventually(t, deadline, "the idle session's child ends", func() bool { return gone(pid) })
	eventually(t, deadline, "the idle kept child ends", func() bool { return gone(kept) })
	_, err = c.text("echo", "")
	wantError(t, err, router.ErrSessionNotFound)
	if got, err := listening.text("echo", "x"); got != "x" {
		t.Errorf("the session with a stream: %q, %v", got, err)
	}
	mustDial(t, b) // there is room again
	if got := onceText(t, b, router.EraBare, toolCall("1", "pid", "{}")); got == kept {
		t.Error("the kept child was not started anew")
	}
}
