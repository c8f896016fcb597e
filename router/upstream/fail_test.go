package upstream_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/upstream"
)

// page answers with text.
func page(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// abort breaks the response off after writing text.
func abort(contentType, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		fmt.Fprint(w, text)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

var invalidRequest = &router.Error{Code: jsonrpc.CodeInvalidRequest}

// TestMisbehaving has a server do to a call what servers do.
func TestMisbehaving(t *testing.T) {
	big := strings.Repeat("x", 18<<20)
	for _, tt := range []struct {
		name   string
		h      http.HandlerFunc
		kind   *router.Error
		status int
		text   string
	}{
		{"junk", page(200, "application/json", "{{{"), router.ErrOutcomeUnknown, 502, "JSON-RPC"},
		{"empty", page(200, "application/json", ""), router.ErrOutcomeUnknown, 502, "JSON-RPC"},
		{"another's response", page(200, "application/json", `{"jsonrpc":"2.0","id":2,"result":{}}`), router.ErrOutcomeUnknown, 502, "not the response"},
		{"a request", page(200, "application/json", `{"jsonrpc":"2.0","id":1,"method":"ping"}`), router.ErrOutcomeUnknown, 502, "not the response"},
		{"html", page(200, "text/html; charset=utf-8", "<html>"), router.ErrOutcomeUnknown, 502, `"text/html"`},
		{"no content", page(204, "", ""), router.ErrOutcomeUnknown, 502, "204"},
		{"accepted", page(202, "", ""), router.ErrOutcomeUnknown, 502, "202"},
		{"400", page(400, "text/plain", "bad\n\n  thing"), invalidRequest, 400, ": bad thing"},
		{"401", page(401, "text/plain", "who?"), router.ErrBackend, 502, "credentials"},
		{"403", page(403, "text/plain", "no"), invalidRequest, 403, "403"},
		{"404", page(404, "text/plain", "404 page not found"), router.ErrBackend, 404, "endpoint"},
		{"405", page(405, "text/plain", ""), router.ErrBackend, 405, "no explanation"},
		{"413", page(413, "text/plain", "large"), router.ErrTooLarge, 413, "large"},
		{"429", page(429, "text/plain", "slow down"), router.ErrOverloaded, 429, "slow down"},
		{"500", page(500, "text/html", "<h1>oops</h1>"), router.ErrOutcomeUnknown, 500, "may have been executed"},
		{"502", page(502, "text/html", "bad gateway"), router.ErrOutcomeUnknown, 502, "may have been executed"},
		{"503", page(503, "text/plain", "later"), router.ErrOutcomeUnknown, 503, "may have been executed"},
		{"long page", page(400, "text/plain", big), invalidRequest, 400, "…"},
		{"not UTF-8", page(400, "text/plain", "a\xff\x00b"), invalidRequest, 400, "a?"},
		{"moved", page(302, "text/plain", ""), router.ErrBackend, 502, "302"},
		{"large body", page(200, "application/json", `{"jsonrpc":"2.0","id":1,"result":"`+big+`"}`), router.ErrTooLarge, 413, "executed"},
		{"large event", events("data: {\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":\"" + big + "\"}\n\n"), router.ErrTooLarge, 413, "executed"},
		{"large error", page(400, "application/json", `{"jsonrpc":"2.0","id":1,"error":"`+big+`"}`), router.ErrTooLarge, 413, ""},
		{"junk event", events("data: hello\n\n"), router.ErrOutcomeUnknown, 502, "JSON-RPC"},
		{"no response", events(": x\n\n"), router.ErrOutcomeUnknown, 200, "ended"},
		{"half an event", events("data: {\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":{}}\n"), router.ErrOutcomeUnknown, 200, "ended"},
		{"breaks off in JSON", abort("application/json", `{"jsonrpc"`), router.ErrOutcomeUnknown, 200, "broke off"},
		{"breaks off in a stream", abort("text/event-stream", "data: {"), router.ErrOutcomeUnknown, 200, "broke"},
		{"breaks off at once", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, router.ErrOutcomeUnknown, 200, "may have been executed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, transport string) {
				b := over(t, transport, &server{on: map[string]http.HandlerFunc{"tools/call": tt.h}}, upstream.Options{})
				reply, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
				if err == nil {
					t.Fatalf("got reply %.200s", reply.Body)
				}
				wantError(t, err, tt.kind, tt.status, tt.text)
				if n := len(err.Error()); n > 3000 {
					t.Errorf("error text of %d bytes", n)
				}
			})
		})
	}
}

// TestErrorReplies are answers outside 2xx that speak JSON-RPC.
func TestErrorReplies(t *testing.T) {
	for _, tt := range []struct {
		name, body, want string
		status           int
	}{
		{"error", `{"jsonrpc":"2.0", "id":1,"error":{"code":-32022,"message":"no","data":{"x":1}}}`, `{"jsonrpc":"2.0", "id":1,"error":{"code":-32022,"message":"no","data":{"x":1}}}`, 400},
		{"null id", `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}`, `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}`, 400},
		{"no id", `{"jsonrpc":"2.0","error":{"code":-32020,"message":"no"}}`, `{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"no"}}`, 400},
		{"unknown method", `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`, `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`, 404},
		{"the Go SDK's unknown method", `JSON RPC not handled: "tools/call" unsupported`, `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"method not found: \"tools/call\""}}`, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, transport string) {
				for _, contentType := range []string{"application/json", "text/plain"} {
					s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": page(tt.status, contentType, tt.body)}}
					b := over(t, transport, s, upstream.Options{})
					reply, err := b.Serve(t.Context(), in(t, initialize(t, b), toolCall), router.Discard)
					if err != nil || string(reply.Body) != tt.want || reply.Status != tt.status {
						t.Errorf("got %+v, %v", reply, err)
					}
				}
			})
		})
	}
}

// TestLargeMessages are as large as the fabric carries.
func TestLargeMessages(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		size := 16 << 20
		if transport != "plain" {
			size = 2 << 20 // the race detector takes its time
		}
		big := strings.Repeat("x", size)
		raw := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + big + `"}}`
		s := &server{on: map[string]http.HandlerFunc{
			"tools/call": func(w http.ResponseWriter, r *http.Request) {
				if len(bodyOf(r)) != len(raw) {
					t.Errorf("the server got %d bytes, want %d", len(bodyOf(r)), len(raw))
				}
				events("data: {\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":\""+big+"\"}\n\n")(w, r)
			},
			"json": func(w http.ResponseWriter, r *http.Request) { answer(w, r, `"`+big+`"`) },
		}}
		b := over(t, transport, s, upstream.Options{})
		reply, err := b.Serve(t.Context(), in(t, "", raw), router.Discard)
		if err != nil || len(reply.Body) < len(big) {
			t.Errorf("sse: %v", err)
		}
		reply, err = b.Serve(t.Context(), in(t, "", `{"jsonrpc":"2.0","id":1,"method":"json"}`), router.Discard)
		if err != nil || len(reply.Body) < len(big) {
			t.Errorf("json: %v", err)
		}
		huge := &jsonrpc.Message{Kind: jsonrpc.Request, Method: "tools/call", Raw: make([]byte, 18<<20)}
		_, err = b.Serve(t.Context(), &router.Request{Message: huge}, router.Discard)
		wantError(t, err, router.ErrTooLarge, 413, "nothing was executed")
	})
}

// TestRefusesLargeRequestEarly has the server answer before it has read the
// request, and close.
func TestRefusesLargeRequestEarly(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	}))
	defer s.Close()
	b, err := upstream.New(upstream.Options{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	raw := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + strings.Repeat("x", 10<<20) + `"}}`
	_, err = b.Serve(t.Context(), in(t, "", raw), router.Discard)
	var e *router.Error
	if !errors.As(err, &e) || e.Code != router.CodeTooLarge && e.Code != router.CodeOutcomeUnknown { // a reset may overtake the answer
		t.Errorf("got %v", err)
	}
}

func TestSlowDrip(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		text := "id: 1\r\ndata: " + `{"jsonrpc":"2.0","id":1,"result":{}}` + "\r\n\r\n"
		s := &server{on: map[string]http.HandlerFunc{"tools/call": events(strings.Split(text, "")...)}}
		b := over(t, transport, s, upstream.Options{})
		if reply, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil || reply.Status != 200 {
			t.Errorf("got %v, %v", reply, err)
		}
	})
}

func TestRedirect(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		var posts atomic.Int64
		mux := http.NewServeMux()
		mux.HandleFunc("/mcp", func(w http.ResponseWriter, r *http.Request) {
			posts.Add(1)
			http.Redirect(w, r, "/mcp/", http.StatusTemporaryRedirect)
		})
		mux.Handle("/mcp/", &server{})
		b := over(t, transport, mux, upstream.Options{URL: "/mcp"})
		for range 2 {
			if _, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil {
				t.Fatal(err)
			}
		}
		if n := posts.Load(); n != 1 {
			t.Errorf("asked at the old path %d times, want 1", n)
		}
	})
}

func TestRedirectRefused(t *testing.T) {
	for name, to := range map[string]string{"another origin": "http://127.0.0.2:1/", "round and round": "/", "unreadable": "http://[::1"} {
		t.Run(name, func(t *testing.T) {
			b := over(t, "plain", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", to)
				w.WriteHeader(http.StatusPermanentRedirect)
			}), upstream.Options{URL: "/", Header: http.Header{"Authorization": {"Bearer x"}}})
			_, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
			wantError(t, err, router.ErrBackend, 502, "nothing was executed")
		})
	}
}
