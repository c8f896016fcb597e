package eras_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/jsonrpc"
)

// raw sends one message as it stands.
func raw(ctx context.Context, t testing.TB, h router.Handler, req router.Request, out router.Stream, format string, args ...any) (*router.Reply, error) {
	t.Helper()
	m, err := jsonrpc.Parse(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	req.Server, req.Message = "s", m
	return h.Serve(ctx, &req, out)
}

const (
	canAsk  = `{"elicitation":{},"sampling":{},"roots":{}}`
	initial = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":%q,"capabilities":{"elicitation":{},"sampling":{},"roots":{}},"clientInfo":{"name":"raw","version":"1"}}}`
)

var modernReq = router.Request{Era: router.EraModern, Version: router.Version20260728, Principal: "ann"}

func metaOf(caps string) string {
	return `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":` + caps + `}`
}

func modernCall(id int, tool, caps, rest string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{"text":"x"},%s%s}}`, id, tool, metaOf(caps), rest)
}

// response is what the tests read of one.
type response struct {
	ID     json.RawMessage
	Result struct {
		ResultType    string
		RequestState  string
		InputRequests map[string]struct {
			Method string
			Params map[string]any
		}
		TTLMs             *int
		CacheScope        string
		ProtocolVersion   string
		SupportedVersions []string
		Content           []struct{ Text string }
		Meta              map[string]json.RawMessage `json:"_meta"`
	}
	Error *struct {
		Code    int
		Message string
	}
}

func decode(t testing.TB, reply *router.Reply, err error) (r response) {
	t.Helper()
	if err != nil {
		reply = router.ErrorReply(nil, err)
	}
	if err := json.Unmarshal(reply.Body, &r); err != nil {
		t.Fatalf("%q: %v", reply.Body, err)
	}
	return r
}

// TestModernResults looks at what a modern client demands of results.
func TestModernResults(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "http", "legacy", eras.Options{})
	send := func(format string, args ...any) response {
		reply, err := raw(ctx, t, b, modernReq, router.Discard, format, args...)
		if reply != nil && reply.Status != 0 {
			t.Errorf("status %d", reply.Status)
		}
		return decode(t, reply, err)
	}
	for _, method := range []string{"tools/list", "prompts/list", "resources/list", "resources/templates/list", "server/discover"} {
		r := send(`{"jsonrpc":"2.0","id":"a\u0062","method":%q,"params":{%s}}`, method, metaOf("{}"))
		if r.Result.ResultType != "complete" || r.Result.TTLMs == nil || *r.Result.TTLMs != 0 || r.Result.CacheScope != "private" || string(r.ID) != `"a\u0062"` {
			t.Errorf("%s: %+v", method, r)
		}
		if method == "server/discover" && (len(r.Result.SupportedVersions) < 2 || r.Result.SupportedVersions[0] != router.Version20260728) {
			t.Errorf("versions %q", r.Result.SupportedVersions)
		}
	}
	r := send("%s", modernCall(2, "echo", "{}", ""))
	if r.Result.ResultType != "complete" || r.Result.TTLMs != nil || r.Result.Content[0].Text != "x" ||
		!strings.Contains(string(r.Result.Meta["io.modelcontextprotocol/serverInfo"]), "legacy-server") {
		t.Errorf("call: %+v", r)
	}
	for want, text := range map[int][]string{
		-32601: {`{"jsonrpc":"2.0","id":1,"method":"ping","params":{` + metaOf("{}") + `}}`, `{"jsonrpc":"2.0","id":1,"method":"none","params":{` + metaOf("{}") + `}}`},
		-32602: {
			`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"mem://none",` + metaOf("{}") + `}}`,
			`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`,
			`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{` + metaOf("{}") + `}}`,
			modernCall(1, "ask", canAsk, `,"requestState":"mine"`), modernCall(1, "ask", canAsk, `,"requestState":7`),
		},
		-32022: {`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2099-01-01","io.modelcontextprotocol/clientCapabilities":{}}}}`},
	} {
		for _, msg := range text {
			if r := send("%s", msg); r.Error == nil || r.Error.Code != want {
				t.Errorf("%s: %+v, want %d", msg, r, want)
			}
		}
	}
}

// TestFallback has clients of both eras keep a session of their own, and modern
// requests answered all the same.
func TestFallback(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "stdio", "legacy", eras.Options{Fallback: true})
	for range 2 {
		cs, _, err := client(t, ctx, b, router.Version20260728)
		if err != nil {
			t.Fatal(err)
		}
		defer cs.Close()
		if got := cs.InitializeResult().ProtocolVersion; got != router.Version20251125 || cs.ID() == "" {
			t.Errorf("negotiated %s, session %q", got, cs.ID())
		}
		if err := callTool(ctx, cs, "grow", "mine", "grown"); err != nil {
			t.Error(err)
		}
		if tools, err := cs.ListTools(ctx, nil); err != nil || len(tools.Tools) != 11 {
			t.Errorf("%d tools, %v", len(tools.Tools), err)
		}
	}
	reply, err := raw(ctx, t, b, modernReq, router.Discard, "%s", modernCall(1, "ask", canAsk, ""))
	if r := decode(t, reply, err); r.Result.ResultType != "input_required" {
		t.Errorf("got %+v", r)
	}
}

// TestHeldCall takes a held call through its questions by hand, with everything
// that can be wrong in between.
func TestHeldCall(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "http", "legacy", eras.Options{MaxHeld: 1})
	send := func(req router.Request, msg string) response {
		reply, err := raw(ctx, t, b, req, router.Discard, "%s", msg)
		return decode(t, reply, err)
	}
	r := send(modernReq, modernCall(1, "ask", canAsk, ""))
	state := r.Result.RequestState
	if r.Result.ResultType != "input_required" || len(r.Result.InputRequests) != 1 || state == "" {
		t.Fatalf("got %+v", r)
	}
	var key string
	for k, q := range r.Result.InputRequests {
		if key = k; q.Method != "elicitation/create" || q.Params["message"] != "Sure?" {
			t.Errorf("asked %+v", q)
		}
	}
	retry := func(id int, tool, state, responses string) string {
		return modernCall(id, tool, canAsk, fmt.Sprintf(`,"requestState":%q,"inputResponses":%s`, state, responses))
	}
	yes := fmt.Sprintf(`{%q:{"action":"accept","content":{"name":"Bob"}}}`, key)
	bob := modernReq
	bob.Principal = "bob"
	for name, r := range map[string]response{
		"another principal": send(bob, retry(2, "ask", state, yes)),
		"another tool":      send(modernReq, retry(3, "askboth", state, yes)),
		"tampered":          send(modernReq, retry(4, "ask", state[:len(state)-1]+"_", yes)),
		"no object":         send(modernReq, retry(5, "ask", state, fmt.Sprintf(`{%q:7}`, key))),
		"no responses":      send(modernReq, retry(6, "ask", state, `7`)),
	} {
		if r.Error == nil || r.Error.Code != -32602 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := send(modernReq, modernCall(7, "ask", canAsk, "")); r.Error == nil || r.Error.Code != router.CodeOverloaded {
		t.Errorf("over the limit: %+v", r)
	}
	r = send(modernReq, retry(8, "ask", state, `{"other":{}}`)) // asks again
	if r.Result.ResultType != "input_required" || len(r.Result.InputRequests) != 1 {
		t.Fatalf("without an answer: %+v", r)
	}
	state2 := r.Result.RequestState
	if r = send(modernReq, retry(9, "ask", state2, yes)); len(r.Result.Content) == 0 || r.Result.Content[0].Text != "accept Bob" || string(r.ID) != "9" {
		t.Errorf("answered: %+v", r)
	}
	if r = send(modernReq, retry(10, "ask", state2, yes)); r.Error == nil || r.Error.Code != -32602 {
		t.Errorf("answered twice: %+v", r)
	}
	if r = send(modernReq, modernCall(11, "echo", canAsk, "")); len(r.Result.Content) == 0 {
		t.Errorf("there is no room for another call: %+v", r)
	}
}

// TestHeldCallExpires has the call cancelled at the server when nobody comes back.
func TestHeldCallExpires(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "http", "legacy", eras.Options{StateTTL: 50 * time.Millisecond, MaxHeld: 1})
	reply, err := raw(ctx, t, b, modernReq, router.Discard, "%s", modernCall(1, "ask", canAsk, ""))
	if r := decode(t, reply, err); r.Result.ResultType != "input_required" {
		t.Fatalf("got %+v", r)
	}
	for {
		reply, err := raw(ctx, t, b, modernReq, router.Discard, "%s", modernCall(2, "echo", canAsk, ""))
		r := decode(t, reply, err)
		if r.Error == nil {
			return // its place is free
		}
		if r.Error.Code != router.CodeOverloaded {
			t.Fatalf("got %+v", r)
		}
		select {
		case <-ctx.Done():
			t.Fatal("the call is held for ever")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestHeldCallElsewhere has a retry come to another instance of the cluster.
func TestHeldCallElsewhere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	keys := keyring{"k1"}
	one := wrapped(t, "go", "legacy", eras.Options{Keys: keys})
	two := wrapped(t, "go", "legacy", eras.Options{Keys: keys})
	reply, err := raw(ctx, t, one, modernReq, router.Discard, "%s", modernCall(1, "ask", canAsk, ""))
	r := decode(t, reply, err)
	retry := modernCall(2, "ask", canAsk, fmt.Sprintf(`,"requestState":%q,"inputResponses":{"1":{"action":"decline"}}`, r.Result.RequestState))
	if _, err := raw(ctx, t, two, modernReq, router.Discard, "%s", retry); !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("got %v; it should be sent to the other instance", err)
	}
	reply, err = raw(ctx, t, one, modernReq, router.Discard, "%s", retry)
	if r := decode(t, reply, err); len(r.Result.Content) == 0 || r.Result.Content[0].Text != "decline <nil>" {
		t.Errorf("got %+v", r)
	}
}

// legacySession opens a session by hand.
func legacySession(ctx context.Context, t *testing.T, b router.Backend, version string) (router.Request, response) {
	t.Helper()
	reply, err := raw(ctx, t, b, router.Request{Principal: "ann"}, router.Discard, initial, version)
	r := decode(t, reply, err)
	if err != nil || reply.Session == "" {
		t.Fatalf("no session: %+v", r)
	}
	return router.Request{Session: reply.Session, Version: r.Result.ProtocolVersion, Principal: "ann"}, r
}

// TestLegacySession looks at what a legacy client gets from a modern server.
func TestLegacySession(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "http", "modern", eras.Options{Instance: "aaaaaaaaaa"})
	for asked, want := range map[string]string{"2025-03-26": "2025-03-26", "2025-11-25": "2025-11-25", "1999-01-01": "2025-11-25"} {
		req, r := legacySession(ctx, t, b, asked)
		if r.Result.ProtocolVersion != want || router.SessionInstance(req.Session) != "aaaaaaaaaa" {
			t.Errorf("asked for %s: %s, session %s", asked, r.Result.ProtocolVersion, req.Session)
		}
	}
	req, _ := legacySession(ctx, t, b, router.Version20251125)
	for msg, want := range map[string]int{
		`{"jsonrpc":"2.0","id":1,"method":"ping"}`:                                                                                                         0,
		`{"jsonrpc":"2.0","id":1,"method":"none"}`:                                                                                                         -32601,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"none"}}`:                                                                          -32602,
		`{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"loud"}}`:                                                                   -32602,
		`{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"mem://note"}}`:                                                            0,
		`{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"mem://secret"}}`:                                                          -1,
		`{"jsonrpc":"2.0","id":1,"method":"resources/unsubscribe","params":{"uri":"mem://note"}}`:                                                          0,
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}`:                                                         -32600,
		`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"nonsense"}}`:                                                                    -1,
		`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"hello"},"argument":{"name":"a","value":""}}}`: -1,
	} {
		reply, err := raw(ctx, t, b, req, router.Discard, "%s", msg)
		if reply != nil && reply.Status != 0 {
			t.Errorf("%s: status %d; 404 would end the client's session", msg, reply.Status)
		}
		r := decode(t, reply, err)
		if want == 0 && r.Error != nil || want != 0 && r.Error == nil || want < -1 && r.Error.Code != want {
			t.Errorf("%s: %+v %+v", msg, r.Error, r.Result)
		}
	}
	end := req
	end.Op = router.OpEnd
	if _, err := b.Serve(ctx, &end, router.Discard); err != nil {
		t.Errorf("end: %v", err)
	}
	if _, err := raw(ctx, t, b, req, router.Discard, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); !errors.Is(err, router.ErrSessionNotFound) {
		t.Errorf("after the end: %v", err)
	}
}

// stream passes on what it is sent.
type stream chan string

func (s stream) Send(ctx context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	select {
	case s <- string(msg):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestLegacyClientDeclines has questions answered with an error, and withdrawn.
func TestLegacyClientDeclines(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "http", "modern", eras.Options{})
	req, _ := legacySession(ctx, t, b, router.Version20251125)
	type outcome struct {
		reply *router.Reply
		err   error
	}
	start := func(id int) (stream, chan outcome) {
		out, done := make(stream, 10), make(chan outcome, 1)
		m, err := jsonrpc.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"askboth","arguments":{"text":"x"}}}`, id))
		if err != nil {
			t.Fatal(err)
		}
		own := req
		own.Server, own.Message = "s", m
		go func() {
			reply, err := b.Serve(ctx, &own, out)
			done <- outcome{reply, err}
		}()
		return out, done
	}
	idOf := func(msg string) string {
		m, err := jsonrpc.Parse([]byte(msg))
		if err != nil || m.Kind != jsonrpc.Request {
			t.Fatalf("%s: %v", msg, err)
		}
		return string(m.ID)
	}
	out, done := start(1)
	first, second := <-out, <-out
	if _, err := raw(ctx, t, b, req, router.Discard, `{"jsonrpc":"2.0","id":%s,"error":{"code":-1,"message":"not now"}}`, idOf(first)); err != nil {
		t.Fatal(err)
	}
	if o := <-done; o.err == nil || !strings.Contains(o.err.Error(), "not now") {
		// the other question may have been looked at first
		t.Errorf("got %v, %v", o.reply, o.err)
	}
	if got := <-out; !strings.Contains(got, "notifications/cancelled") || !strings.Contains(got, `"requestId":`+idOf(second)) {
		t.Errorf("the other question was not withdrawn: %s", got)
	}

	out, done = start(2)
	<-out
	if _, err := raw(ctx, t, b, req, router.Discard, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`); err != nil {
		t.Fatal(err)
	}
	if o := <-done; o.err != nil || len(o.reply.Body) != 0 {
		t.Errorf("cancelled: %+v, %v", o.reply, o.err)
	}
}

// TestLegacySessionsEnd has idle ones expire and too many refused.
func TestLegacySessionsEnd(t *testing.T) {
	noLeak(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b := wrapped(t, "go", "modern", eras.Options{IdleTimeout: 100 * time.Millisecond, MaxSessions: 1})
	req, _ := legacySession(ctx, t, b, router.Version20251125)
	if _, err := raw(ctx, t, b, router.Request{}, router.Discard, initial, router.Version20251125); !errors.Is(err, router.ErrOverloaded) {
		t.Errorf("a second session: %v", err)
	}
	for {
		if _, err := raw(ctx, t, b, router.Request{}, router.Discard, initial, router.Version20251125); err == nil {
			break // there is room
		}
		select {
		case <-ctx.Done():
			t.Fatal("the session does not expire")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if _, err := raw(ctx, t, b, req, router.Discard, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); !errors.Is(err, router.ErrSessionNotFound) {
		t.Errorf("expired: %v", err)
	}
}

// native is a backend that says what it speaks and records what reaches it.
type native struct {
	versions []string
	got      atomic.Pointer[router.Request]
	out      atomic.Value
	reply    router.Reply
	probes   atomic.Int32
	probeErr error
}

func (n *native) Serve(_ context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	n.got.Store(req)
	n.out.Store(out)
	return &n.reply, nil
}

func (n *native) Probe(context.Context) (router.Info, error) {
	n.probes.Add(1)
	return router.Info{Versions: n.versions}, n.probeErr
}

func (n *native) Close() error { return nil }

// TestUntouched has what a server speaks reach it as it is.
func TestUntouched(t *testing.T) {
	legacy, modern := router.LegacyVersions[:1], []string{router.Version20260728}
	both := append(modern[:1:1], legacy...)
	for name, c := range map[string]struct {
		versions []string
		err      error
		req      router.Request
		msg      string
	}{
		"modern to modern":             {modern, nil, modernReq, modernCall(1, "t", canAsk, `,"requestState":"its own"`)},
		"modern to both":               {both, nil, modernReq, modernCall(1, "t", canAsk, "")},
		"modern to who does not say":   {nil, nil, modernReq, modernCall(1, "t", canAsk, "")},
		"modern to who can't be asked": {nil, errors.New("down"), modernReq, modernCall(1, "t", canAsk, "")},
		"initialize to legacy":         {legacy, nil, router.Request{}, fmt.Sprintf(initial, "2025-11-25")},
		"initialize to both":           {both, nil, router.Request{}, fmt.Sprintf(initial, "2025-11-25")},
		"a session to legacy":          {legacy, nil, router.Request{Session: "aaaaaaaaaa-x"}, `{"jsonrpc":"2.0","id":1,"method":"ping"}`},
		"bare to legacy":               {legacy, nil, router.Request{Era: router.EraBare}, `{"jsonrpc":"2.0","id":1,"method":"ping"}`},
		"bare to modern":               {modern, nil, router.Request{Era: router.EraBare}, `{"jsonrpc":"2.0","id":1,"method":"ping"}`},
	} {
		t.Run(name, func(t *testing.T) {
			n := &native{versions: c.versions, probeErr: c.err, reply: router.Reply{Body: []byte("as it is"), Status: 400}}
			b := eras.Wrap(n, eras.Options{})
			defer b.Close()
			m, err := jsonrpc.Parse([]byte(c.msg))
			if err != nil {
				t.Fatal(err)
			}
			req, out := c.req, make(stream)
			req.Message = m
			reply, err := b.Serve(t.Context(), &req, out)
			if err != nil || reply != &n.reply || n.got.Load() != &req || n.out.Load() != router.Stream(out) {
				t.Errorf("not untouched: %+v, %v", reply, err)
			}
		})
	}
}

// TestServerChangesEra has a modern server replaced by a legacy one.
func TestServerChangesEra(t *testing.T) {
	n := &native{versions: []string{router.Version20260728}, reply: router.Reply{Status: 400, Body: []byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"no"}}`)}}
	b := eras.Wrap(n, eras.Options{})
	defer b.Close()
	for range 3 {
		if _, err := raw(t.Context(), t, b, modernReq, router.Discard, "%s", modernCall(1, "t", canAsk, "")); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.probes.Load(); got != 1 { // it was asked a moment ago
		t.Errorf("asked %d times", got)
	}
}

func BenchmarkUntouched(b *testing.B) {
	n := &native{versions: []string{router.Version20260728}}
	h := eras.Wrap(n, eras.Options{})
	defer h.Close()
	m, err := jsonrpc.Parse([]byte(modernCall(1, "t", canAsk, "")))
	if err != nil {
		b.Fatal(err)
	}
	req := modernReq
	req.Message = m
	for _, c := range []struct {
		name string
		h    router.Handler
	}{{"direct", n}, {"wrapped", h}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = c.h.Serve(b.Context(), &req, router.Discard)
			}
		})
	}
}
