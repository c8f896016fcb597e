package upstream_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/upstream"
)

// discoverable answers server/discover with the versions.
func discoverable(versions string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, `{"supportedVersions":`+versions+`,"capabilities":{"tools":{}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"new","version":"8"}}}`)
	}
}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name     string
		server   *server
		want     string
		versions []string
		log      []string
	}{
		{"modern", &server{on: map[string]http.HandlerFunc{"server/discover": discoverable(`["2026-07-28"]`)}},
			"new 8", []string{modern}, []string{"POST server/discover"}},
		{"both", &server{sessions: true, on: map[string]http.HandlerFunc{"server/discover": discoverable(`["2026-07-28","2025-11-25"]`)}},
			"new 8", []string{modern, legacy}, []string{"POST server/discover"}},
		{"legacy that discovers", &server{sessions: true, on: map[string]http.HandlerFunc{"server/discover": discoverable(`["2025-11-25"]`)}},
			"new 8", []string{legacy}, []string{"POST server/discover"}},
		{"legacy", &server{sessions: true}, "stub 7", []string{"2025-06-18"},
			[]string{"POST server/discover", "POST initialize", "POST notifications/initialized", "DELETE"}},
		{"stateless", &server{}, "stub 7", []string{"2025-06-18"},
			[]string{"POST server/discover", "POST initialize", "POST notifications/initialized"}},
		{"odd answer", &server{on: map[string]http.HandlerFunc{"server/discover": func(w http.ResponseWriter, r *http.Request) { answer(w, r, `[]`) }}},
			"stub 7", []string{"2025-06-18"}, []string{"POST server/discover", "POST initialize", "POST notifications/initialized"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, transport string) {
				tt.server.log = nil
				b := over(t, transport, tt.server, upstream.Options{})
				info, err := b.Probe(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if got := info.Name + " " + info.Version; got != tt.want || !slices.Equal(info.Versions, tt.versions) || string(info.Capabilities) != `{"tools":{}}` {
					t.Errorf("got %+v", info)
				}
				if !slices.Equal(tt.server.log, tt.log) {
					t.Errorf("the server saw %q, want %q", tt.server.log, tt.log)
				}
				if tt.server.live() != 0 || b.Sessions() != 0 {
					t.Errorf("%d sessions upstream, %d here", tt.server.live(), b.Sessions())
				}
			})
		})
	}
}

func TestProbeFails(t *testing.T) {
	for name, h := range map[string]http.Handler{
		"not MCP":  http.NotFoundHandler(),
		"html":     page(200, "text/html", "<html>"),
		"refuses":  page(401, "text/plain", "no"),
		"an error": page(200, "application/json", `{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"no"}}`),
		"no version": &server{on: map[string]http.HandlerFunc{"initialize": func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, `{}`)
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := over(t, "plain", h, upstream.Options{})
			info, err := b.Probe(t.Context())
			if err == nil {
				t.Fatalf("got %+v", info)
			}
			wantError(t, err, router.ErrBackend, err.(*router.Error).Status, "http://127.0.0.1")
		})
	}
}

func TestBareModern(t *testing.T) {
	var got string
	var header http.Header
	s := &server{sessions: true, on: map[string]http.HandlerFunc{
		"server/discover": discoverable(`["2026-07-28","2025-11-25"]`),
		"tools/call": func(w http.ResponseWriter, r *http.Request) {
			got, header = string(bodyOf(r)), r.Header
			events("data: {\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n\n", result)(w, r)
		},
	}}
	b := over(t, "plain", s, upstream.Options{})
	for range 2 {
		var out stream
		reply, err := b.Serve(t.Context(), bare(t, toolCall), &out)
		if err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":1,"result":{}}` || len(out.msgs) != 1 {
			t.Fatalf("got %+v, %v, %q", reply, err, out.msgs)
		}
	}
	want := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",` +
		`"io.modelcontextprotocol/clientInfo":{"name":"ripstop","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}},"name":"t"}}`
	if got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
	if header.Get("Mcp-Method") != "tools/call" || header.Get("Mcp-Name") != "t" || header.Get("Mcp-Protocol-Version") != modern || header.Get("Mcp-Session-Id") != "" {
		t.Errorf("headers %v", header)
	}
	reply, err := b.Serve(t.Context(), bare(t, `{"jsonrpc":"2.0","id":5,"method":"ping"}`), router.Discard)
	if err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":5,"result":{}}` {
		t.Errorf("ping: %+v, %v", reply, err)
	}
	if n := s.seen("POST server/discover"); n != 2 { // the first call's, and the ping's
		t.Errorf("asked what it is %d times, want 2", n)
	}
	if s.seen("POST initialize") != 0 {
		t.Error("opened a session")
	}
}

// TestBareLegacy has several callers use the same ids at once.
func TestBareLegacy(t *testing.T) {
	var mu sync.Mutex
	ids := map[string]int{}
	var both sync.WaitGroup
	both.Add(2)
	s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
		id := requestID(r)
		mu.Lock()
		ids[id]++
		mu.Unlock()
		both.Done()
		both.Wait() // both are in flight
		events(`data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":ID,"progress":1}}`+"\n\n",
			`data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"other","progress":1}}`+"\n\n",
			`data: {"jsonrpc":"2.0","id":"s1","method":"ping"}`+"\n\n",
			`data: {"jsonrpc":"2.0","id":"s2","method":"elicitation/create","params":{}}`+"\n\n",
			result)(w, r)
	}}}
	b := over(t, "plain", s, upstream.Options{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var out stream
			reply, err := b.Serve(t.Context(), bare(t, `{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"t","_meta":{"progressToken":"tok"}}}`), &out)
			if err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":"mine","result":{}}` {
				t.Errorf("got %+v, %v", reply, err)
			}
			if want := []string{`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":1}}`}; !slices.Equal(out.msgs, want) {
				t.Errorf("sent %q, want %q", out.msgs, want)
			}
		})
	}
	wg.Wait()
	if len(ids) != 2 {
		t.Errorf("the server saw ids %v, want two", ids)
	}
	if s.seen("POST initialize") != 1 || s.seen("POST notifications/initialized") != 1 || s.live() != 1 {
		t.Errorf("the server saw %q", s.log)
	}
	if n := s.seen("POST response"); n != 4 { // ping and elicitation of both
		t.Errorf("%d answers to the server's requests, want 4", n)
	}
}

func TestBareReopensOnce(t *testing.T) {
	s := &server{sessions: true}
	b := over(t, "plain", s, upstream.Options{})
	call := func() error {
		_, err := b.Serve(t.Context(), bare(t, toolCall), router.Discard)
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	s.forget("U1") // the upstream restarted
	if err := call(); err != nil || s.seen("POST initialize") != 2 {
		t.Errorf("after a restart: %v, %q", err, s.log)
	}
	s.on = map[string]http.HandlerFunc{"tools/call": page(404, "text/plain", "gone")}
	err := call()
	wantError(t, err, router.ErrSessionNotFound, 404, "")
	if n := s.seen("POST tools/call"); n != 5 {
		t.Errorf("the server saw %d calls, want 5", n)
	}
}

// TestBareAfterDowngrade has the server lose its modern era.
func TestBareAfterDowngrade(t *testing.T) {
	s := &server{sessions: true, on: map[string]http.HandlerFunc{"server/discover": discoverable(`["2026-07-28"]`)}}
	b := over(t, "plain", s, upstream.Options{})
	if _, err := b.Serve(t.Context(), bare(t, toolCall), router.Discard); err != nil {
		t.Fatal(err)
	}
	delete(s.on, "server/discover")
	s.on["tools/call"] = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Mcp-Protocol-Version") != modern {
			answer(w, r, `{"old":true}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32022,"message":"no"}}`, requestID(r))
	}
	reply, err := b.Serve(t.Context(), bare(t, toolCall), router.Discard)
	if err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":1,"result":{"old":true}}` {
		t.Errorf("got %+v, %v", reply, err)
	}
}

func TestBareKeepsPrincipalsApart(t *testing.T) {
	var got []string
	s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Mcp-Session-Id"))
		answer(w, r, `{}`)
	}}}
	b := over(t, "plain", s, upstream.Options{})
	for _, who := range []string{"a", "b", "a", ""} {
		req := bare(t, toolCall)
		req.Principal = who
		if _, err := b.Serve(t.Context(), req, router.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"U1", "U2", "U1", "U3"}; !slices.Equal(got, want) {
		t.Errorf("sessions %q, want %q", got, want)
	}
}

func TestBareStateless(t *testing.T) {
	s := &server{}
	b := over(t, "plain", s, upstream.Options{})
	for range 3 {
		if _, err := b.Serve(t.Context(), bare(t, toolCall), router.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.seen("POST initialize"); n != 1 {
		t.Errorf("%d initializes, want 1", n)
	}
}

func TestBareRefused(t *testing.T) {
	b := over(t, "plain", &server{sessions: true}, upstream.Options{})
	for _, raw := range []string{
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
		`{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"x"}}`,
		`{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}`,
	} {
		_, err := b.Serve(t.Context(), bare(t, raw), router.Discard)
		wantError(t, err, router.ErrRefused, 400, "session")
	}
}

func TestBareInitializeOpensASession(t *testing.T) {
	s := &server{sessions: true}
	b := over(t, "plain", s, upstream.Options{})
	reply, err := b.Serve(t.Context(), bare(t, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`), router.Discard)
	if err != nil || !strings.HasPrefix(reply.Session, "abcdefghij-") {
		t.Errorf("got %+v, %v", reply, err)
	}
}
