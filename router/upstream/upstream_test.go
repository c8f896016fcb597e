package upstream_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/upstream"
)

func TestPassesBytes(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		var body string
		var header http.Header
		odd := `{"result":{"x":1.0e5,"y":"\u00e9<&>"},  "id":"\u0061", "jsonrpc":"2.0"}`
		b := over(t, transport, &server{on: map[string]http.HandlerFunc{
			"tools/call": func(w http.ResponseWriter, r *http.Request) {
				body, header = string(bodyOf(r)), r.Header
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				fmt.Fprint(w, odd, "\n")
			},
		}}, upstream.Options{URL: "/mcp?key=1", Header: http.Header{"X-Token": {"s3cret"}, "accept": {"text/html"}, "Mcp-Name": {"no"}}})
		raw := `{ "method":"tools/call","id":"a","jsonrpc":"2.0","params":{"name":"t","arguments":{"n":1.50}} }`
		reply, err := b.Serve(t.Context(), in(t, "", raw), router.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if body != raw {
			t.Errorf("upstream got %s\nwant %s", body, raw)
		}
		if string(reply.Body) != odd || reply.Status != 200 {
			t.Errorf("reply %d %s\nwant %s", reply.Status, reply.Body, odd)
		}
		for k, want := range map[string]string{
			"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
			"Mcp-Protocol-Version": legacy, "X-Token": "s3cret", "Mcp-Method": "", "Mcp-Name": "", "Mcp-Session-Id": "",
			"Accept-Encoding": "",
		} {
			if got := header.Get(k); got != want {
				t.Errorf("%s: %q, want %q", k, got, want)
			}
		}
	})
}

func TestModernHeaders(t *testing.T) {
	var header http.Header
	b := over(t, "plain", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	}), upstream.Options{})
	for _, tt := range []struct{ method, params, name string }{
		{"tools/call", `{"name":"echo"}`, "echo"},
		{"tools/call", `{"name":"a b"}`, "a b"},
		{"tools/call", `{"name":" a"}`, "=?base64?IGE=?="},
		{"tools/call", `{"name":"a\tb"}`, "=?base64?YQli?="},
		{"tools/call", `{"name":"a\r\nX-Evil: 1"}`, "=?base64?YQ0KWC1FdmlsOiAx?="},
		{"tools/call", `{"name":"é"}`, "=?base64?w6k=?="},
		{"tools/call", `{"name":"=?base64?x?="}`, "=?base64?PT9iYXNlNjQ/eD89?="},
		{"tools/call", `{"name":"=?base64?x"}`, "=?base64?x"},
		{"prompts/get", `{"name":"p"}`, "p"},
		{"resources/read", `{"uri":"file:///a"}`, "file:///a"},
		{"tasks/get", `{"taskId":"7"}`, "7"},
		{"resources/subscribe", `{"uri":"file:///a"}`, ""},
		{"tools/list", `{"name":"x"}`, ""},
	} {
		req := &router.Request{Era: router.EraModern, Version: modern, Session: "ignored",
			Message: parse(t, `{"jsonrpc":"2.0","id":1,"method":"`+tt.method+`","params":`+tt.params+`}`),
			Params:  map[string]string{"Mcp-Param-Region": "eu"}}
		if _, err := b.Serve(t.Context(), req, router.Discard); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[string]string{
			"Mcp-Protocol-Version": modern, "Mcp-Method": tt.method, "Mcp-Name": tt.name, "Mcp-Param-Region": "eu", "Mcp-Session-Id": "", "X-Evil": "",
		} {
			if got := header.Get(k); got != want {
				t.Errorf("%s %s: %s is %q, want %q", tt.method, tt.params, k, got, want)
			}
		}
	}
}

func TestModernVersionFromBody(t *testing.T) {
	var got string
	b := over(t, "plain", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Mcp-Protocol-Version")
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	}), upstream.Options{})
	m := parse(t, `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`)
	if _, err := b.Serve(t.Context(), &router.Request{Era: router.EraModern, Message: m}, router.Discard); err != nil || got != modern {
		t.Errorf("version %q, %v", got, err)
	}
}

func TestRefusesHeaderInjection(t *testing.T) {
	s := &server{}
	b := over(t, "plain", s, upstream.Options{})
	for name, req := range map[string]*router.Request{
		"version":     {Version: "2025-11-25\r\nX-Evil: 1"},
		"param":       {Era: router.EraModern, Params: map[string]string{"Mcp-Param-A": "x\ny"}},
		"param name":  {Era: router.EraModern, Params: map[string]string{"Mcp-Param-A: b\r\nX": "x"}},
		"other name":  {Era: router.EraModern, Params: map[string]string{"Authorization": "x"}},
		"method name": {Era: router.EraModern, Message: parse(t, `{"jsonrpc":"2.0","id":1,"method":"a\r\nb"}`)},
	} {
		if req.Message == nil {
			req.Message = parse(t, toolCall)
		}
		_, err := b.Serve(t.Context(), req, router.Discard)
		t.Log(name, err)
		wantError(t, err, router.ErrRefused, 400, "header")
	}
	if len(s.log) != 0 {
		t.Errorf("the upstream saw %q", s.log)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, opts := range []upstream.Options{
		{}, {URL: "example.com"}, {URL: "ftp://example.com"}, {URL: "http://"}, {URL: "http://a b/"},
		{URL: "http://x", Header: http.Header{"A b": {"1"}}}, {URL: "http://x", Header: http.Header{"A": {"1\n2"}}},
	} {
		if _, err := upstream.New(opts); err == nil {
			t.Errorf("New took %+v", opts)
		}
	}
}

func TestCredentialsInURL(t *testing.T) {
	var user, pass, host string
	s := &server{on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ = r.BasicAuth()
		host = r.Host
		answer(w, r, `{}`)
	}}}
	b, err := upstream.New(upstream.Options{URL: "http://me:pw@x/", Header: http.Header{"Host": {"mcp.example"}}, Transport: upstream.InProcess(s)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil {
		t.Fatal(err)
	}
	if user != "me" || pass != "pw" || host != "mcp.example" {
		t.Errorf("got %s:%s at %s", user, pass, host)
	}
	_, err = b.Serve(t.Context(), in(t, "nope", toolCall), router.Discard)
	if strings.Contains(err.Error(), "pw") {
		t.Errorf("the password stands in %v", err)
	}
}

func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		var got string
		s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
			got = r.Header.Get("Mcp-Session-Id")
			answer(w, r, `{}`)
		}}}
		b := over(t, transport, s, upstream.Options{})
		one, two := initialize(t, b), initialize(t, b)
		if router.SessionInstance(one) != "abcdefghij" || one == two {
			t.Fatalf("sessions %q and %q", one, two)
		}
		for session, want := range map[string]string{one: "U1", two: "U2", "": ""} {
			if _, err := b.Serve(t.Context(), in(t, session, toolCall), router.Discard); err != nil || got != want {
				t.Errorf("session %q reached %q, want %q: %v", session, got, want, err)
			}
		}
		for _, unknown := range []string{"U1", router.NewSessionID("abcdefghij"), strings.Repeat("x", 1000)} {
			_, err := b.Serve(t.Context(), in(t, unknown, toolCall), router.Discard)
			wantError(t, err, router.ErrSessionNotFound, 404, "initialize")
		}

		reply, err := b.Serve(t.Context(), in(t, one, `{"jsonrpc":"2.0","method":"notifications/initialized"}`), router.Discard)
		if err != nil || reply.Status != 202 || reply.Body != nil {
			t.Errorf("notification: %+v, %v", reply, err)
		}
		reply, err = b.Serve(t.Context(), in(t, one, `{"jsonrpc":"2.0","id":1,"result":{}}`), router.Discard)
		if err != nil || reply.Status != 202 || reply.Body != nil {
			t.Errorf("response: %+v, %v", reply, err)
		}

		reply, err = b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: one}, router.Discard)
		if err != nil || reply.Status != 200 || s.live() != 1 {
			t.Errorf("end: %+v, %v, %d sessions upstream", reply, err, s.live())
		}
		for _, op := range []router.Op{router.OpEnd, router.OpListen} {
			_, err = b.Serve(t.Context(), &router.Request{Op: op, Session: one}, router.Discard)
			wantError(t, err, router.ErrSessionNotFound, 404, "initialize")
		}

		s.forget("U2") // the upstream restarted
		_, err = b.Serve(t.Context(), in(t, two, toolCall), router.Discard)
		wantError(t, err, router.ErrSessionNotFound, 404, "initialize")
		if b.Sessions() != 0 {
			t.Errorf("%d sessions left", b.Sessions())
		}
	})
}

func TestEndRefusedUpstream(t *testing.T) {
	s := &server{sessions: true, on: map[string]http.HandlerFunc{"DELETE": func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "not here", http.StatusMethodNotAllowed)
	}}}
	b := over(t, "plain", s, upstream.Options{})
	reply, err := b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: initialize(t, b)}, router.Discard)
	if err != nil || reply.Status != 405 || b.Sessions() != 0 {
		t.Errorf("got %+v, %v, %d sessions left", reply, err, b.Sessions())
	}
}

func TestStateless(t *testing.T) {
	b := over(t, "plain", &server{}, upstream.Options{})
	if id := initialize(t, b); id != "" {
		t.Errorf("session %q of a stateless server", id)
	}
	if _, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil {
		t.Error(err)
	}
}

// TestInitializeRefused opens sessions that come to nothing: none may be left,
// at either end.
func TestInitializeRefused(t *testing.T) {
	for name, h := range map[string]func(s *server) http.HandlerFunc{
		"error": func(s *server) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Mcp-Session-Id", s.open())
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"no"}}`, requestID(r))
			}
		},
		"junk": func(s *server) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Mcp-Session-Id", s.open())
				fmt.Fprint(w, "hello")
			}
		},
		"long id": func(s *server) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				id := s.open()
				s.forget(id)
				w.Header().Set("Mcp-Session-Id", strings.Repeat("x", 2000))
				answer(w, r, `{}`)
			}
		},
		"no response": func(s *server) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Mcp-Session-Id", s.open())
				events(": x\n\n")(w, r)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{sessions: true}
			s.on = map[string]http.HandlerFunc{"initialize": h(s)}
			b := over(t, "plain", s, upstream.Options{MaxSessions: 1})
			for range 2 { // twice: a failure holds no place
				reply, err := b.Serve(t.Context(), in(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`), router.Discard)
				if err == nil && (name != "error" || reply.Session != "") {
					t.Errorf("got %+v", reply)
				}
			}
			b.Close()
			if s.live() != 0 || b.Sessions() != 0 {
				t.Errorf("%d sessions upstream, %d here", s.live(), b.Sessions())
			}
		})
	}
}

func TestMaxSessions(t *testing.T) {
	s := &server{sessions: true}
	b := over(t, "plain", s, upstream.Options{MaxSessions: 2})
	first := initialize(t, b)
	initialize(t, b)
	_, err := b.Serve(t.Context(), in(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`), router.Discard)
	wantError(t, err, router.ErrOverloaded, 429, "2 sessions")
	if n := s.seen("POST initialize"); n != 2 {
		t.Errorf("the upstream saw %d initializes, want 2", n)
	}
	if _, err := b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: first}, router.Discard); err != nil {
		t.Fatal(err)
	}
	initialize(t, b)
}

// TestIdleSessions runs on a clock of its own.
func TestIdleSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{sessions: true, on: map[string]http.HandlerFunc{
			"GET": events(": x\n\n"),
			"slow": func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * time.Hour)
				answer(w, r, `{}`)
			},
		}}
		b := over(t, "inprocess", s, upstream.Options{})
		defer b.Close()
		idle, used := initialize(t, b), initialize(t, b)
		busy := make(chan error)
		go func() {
			_, err := b.Serve(t.Context(), in(t, used, `{"jsonrpc":"2.0","id":1,"method":"slow"}`), router.Discard)
			busy <- err
		}()
		time.Sleep(29 * time.Minute)
		if b.Sessions() != 2 {
			t.Errorf("%d sessions after 29 minutes, want 2", b.Sessions())
		}
		time.Sleep(3 * time.Minute)
		if b.Sessions() != 1 || s.live() != 1 {
			t.Errorf("%d sessions here, %d upstream after 32 minutes, want 1", b.Sessions(), s.live())
		}
		_, err := b.Serve(t.Context(), in(t, idle, toolCall), router.Discard)
		wantError(t, err, router.ErrSessionNotFound, 404, "initialize")
		if err := <-busy; err != nil {
			t.Errorf("the call of three hours: %v", err)
		}
		time.Sleep(time.Hour)
		if b.Sessions() != 0 || s.live() != 0 {
			t.Errorf("%d sessions here, %d upstream at the end", b.Sessions(), s.live())
		}
	})
}

func TestStream(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		note := `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}`
		ask := `{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{}}`
		other := `{"jsonrpc":"2.0","id":99,"result":{}}`
		s := &server{on: map[string]http.HandlerFunc{"tools/call": events(
			": hello\n\nevent: message\ndata: "+note+"\n\n", "event: ping\ndata: x\n\n", "data: "+ask+"\r\n\r\n", "data: "+other+"\n\n",
			"data: {\"jsonrpc\":\"2.0\",\ndata: \"id\":ID,\"result\":{\"a\":[]}}\n\n", "data: "+note+"\n\n",
		)}}
		b := over(t, transport, s, upstream.Options{})
		var out stream
		for range 3 { // the connection is used again, after what nobody read
			out.msgs = nil
			reply, err := b.Serve(t.Context(), in(t, "", toolCall), &out)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(reply.Body), "{\"jsonrpc\":\"2.0\",\n\"id\":1,\"result\":{\"a\":[]}}"; got != want || reply.Status != 200 {
				t.Errorf("reply %d %s, want %s", reply.Status, got, want)
			}
			if want := []string{note, ask}; !slices.Equal(out.msgs, want) {
				t.Errorf("sent %q, want %q", out.msgs, want)
			}
		}
	})
}

// TestConnectionsReused counts the connections of many calls in a row.
func TestConnectionsReused(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"json": func(w http.ResponseWriter, r *http.Request) { answer(w, r, `{}`) }, "sse": events(result),
	} {
		t.Run(name, func(t *testing.T) {
			b := over(t, "plain", &server{on: map[string]http.HandlerFunc{"tools/call": h}}, upstream.Options{})
			for range 200 {
				if _, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil {
					t.Fatal(err)
				}
			}
			if idle, open := b.Idle(); idle != open || open > 5 {
				t.Errorf("%d connections open, %d idle after 200 calls in a row", open, idle)
			}
		})
	}
}
