package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
		{"junk", page(200, "application/json", "{{{"), router.ErrBackend, 502, "JSON-RPC"},
		{"empty", page(200, "application/json", ""), router.ErrBackend, 502, "JSON-RPC"},
		{"another's response", page(200, "application/json", `{"jsonrpc":"2.0","id":2,"result":{}}`), router.ErrBackend, 502, "not the response"},
		{"a request", page(200, "application/json", `{"jsonrpc":"2.0","id":1,"method":"ping"}`), router.ErrBackend, 502, "not the response"},
		{"html", page(200, "text/html; charset=utf-8", "<html>"), router.ErrBackend, 502, `"text/html"`},
		{"no content", page(204, "", ""), router.ErrBackend, 502, "204"},
		{"accepted", page(202, "", ""), router.ErrBackend, 502, "202"},
		{"400", page(400, "text/plain", "bad\n\n  thing"), invalidRequest, 400, ": bad thing"},
		{"401", page(401, "text/plain", "who?"), router.ErrBackend, 502, "credentials"},
		{"403", page(403, "text/plain", "no"), invalidRequest, 403, "403"},
		{"404", page(404, "text/plain", "404 page not found"), router.ErrBackend, 404, "endpoint"},
		{"405", page(405, "text/plain", ""), router.ErrBackend, 405, "no explanation"},
		{"413", page(413, "text/plain", "large"), router.ErrTooLarge, 413, "large"},
		{"429", page(429, "text/plain", "slow down"), router.ErrOverloaded, 429, "slow down"},
		{"500", page(500, "text/html", "<h1>oops</h1>"), router.ErrOutcomeUnknown, 500, "may have been executed"},
		{"502", page(502, "text/html", "bad gateway"), router.ErrOutcomeUnknown, 502, "may have been executed"},
		{"503", page(503, "text/plain", "later"), router.ErrUnavailable, 503, "later"},
		{"long page", page(400, "text/plain", big), invalidRequest, 400, "…"},
		{"not UTF-8", page(400, "text/plain", "a\xff\x00b"), invalidRequest, 400, "a?"},
		{"moved", page(302, "text/plain", ""), router.ErrBackend, 502, "302"},
		{"large body", page(200, "application/json", `{"jsonrpc":"2.0","id":1,"result":"`+big+`"}`), router.ErrTooLarge, 413, "executed"},
		{"large event", events("data: {\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":\"" + big + "\"}\n\n"), router.ErrTooLarge, 413, "executed"},
		{"large error", page(400, "application/json", `{"jsonrpc":"2.0","id":1,"error":"`+big+`"}`), router.ErrTooLarge, 413, ""},
		{"junk event", events("data: hello\n\n"), router.ErrBackend, 502, "JSON-RPC"},
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

// TestCancelled cancels a call to a server that hangs: before it answers, and
// within its stream.
func TestCancelled(t *testing.T) {
	for name, before := range map[string]string{"before": "", "streaming": "data: {\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n\n"} {
		for _, era := range []router.Era{router.EraLegacy, router.EraModern} {
			t.Run(name+"/"+era.String(), func(t *testing.T) {
				each(t, func(t *testing.T, transport string) {
					hangs, closed, notice := make(chan struct{}), make(chan struct{}), make(chan string, 1)
					s := &server{sessions: true, on: map[string]http.HandlerFunc{
						"tools/call": func(w http.ResponseWriter, r *http.Request) {
							if before != "" {
								events(before)(w, r)
							}
							close(hangs)
							<-r.Context().Done()
							close(closed)
						},
						"notifications/cancelled": func(w http.ResponseWriter, r *http.Request) {
							notice <- r.Header.Get("Mcp-Session-Id") + " " + string(bodyOf(r))
							w.WriteHeader(http.StatusAccepted)
						},
					}}
					b := over(t, transport, s, upstream.Options{})
					req := in(t, initialize(t, b), `{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"t"}}`)
					req.Era = era
					ctx, cancel := context.WithCancel(t.Context())
					go func() {
						<-hangs
						cancel()
					}()
					_, err := b.Serve(ctx, req, router.Discard)
					if !errors.Is(err, context.Canceled) {
						t.Errorf("got %v", err)
					}
					wait(t, closed)
					if era == router.EraModern {
						b.Close()
						if n := s.seen("POST notifications/cancelled"); n != 0 {
							t.Errorf("%d notices to a modern server", n)
						}
						return
					}
					if got := wait(t, notice); !strings.HasPrefix(got, "U1 ") || !strings.Contains(got, `"requestId":"x"`) {
						t.Errorf("notice %s", got)
					}
				})
			})
		}
	}
}

// wait receives from c, but not for ever.
func wait[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happened")
	}
	return v
}

func TestDeadline(t *testing.T) {
	s := &server{on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}}
	b := over(t, "plain", s, upstream.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := b.Serve(ctx, in(t, "", toolCall), router.Discard)
	wantError(t, err, router.ErrOutcomeUnknown, 200, "deadline")
}

// TestClientGone has the client go away while messages are passed on.
func TestClientGone(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		closed := make(chan struct{})
		s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
			events("data: {\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n\n")(w, r)
			<-r.Context().Done()
			close(closed)
		}}}
		b := over(t, transport, s, upstream.Options{})
		gone := errors.New("gone")
		_, err := b.Serve(t.Context(), in(t, initialize(t, b), toolCall), &stream{fail: gone})
		if err == nil {
			t.Error("got a reply")
		}
		wait(t, closed)
		b.Close()
		if n := s.seen("POST notifications/cancelled"); n != 1 {
			t.Errorf("%d notices, want 1", n)
		}
	})
}

// rawServer takes connections and hands each to serve, with its number.
func rawServer(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return "http://" + ln.Addr().String()
}

// clients are the transports that reach a raw server.
var clients = map[string]func() http.RoundTripper{
	"plain":    func() http.RoundTripper { return nil },
	"standard": func() http.RoundTripper { return upstream.NewStandard(nil) },
	"net/http": func() http.RoundTripper { return &http.Transport{} },
}

func eachClient(t *testing.T, url string, test func(t *testing.T, b *upstream.Backend)) {
	for name, transport := range clients {
		t.Run(name, func(t *testing.T) {
			b, err := upstream.New(upstream.Options{URL: url, Transport: transport(), Header: http.Header{"Idempotency-Key": {"k"}}})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			test(t, b)
		})
	}
}

const okReply = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n" + `{"jsonrpc":"2.0","id":1,"result":{}}`

// TestAtMostOnce resets a connection that was used before, after it took a
// call: the call must not be sent again.
func TestAtMostOnce(t *testing.T) {
	var calls atomic.Int64
	url := rawServer(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for i := 0; ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			calls.Add(1)
			if i == 1 {
				c.(*net.TCPConn).SetLinger(0) // a reset
				return
			}
			io.WriteString(c, okReply)
		}
	})
	eachClient(t, url, func(t *testing.T, b *upstream.Backend) {
		calls.Store(0)
		if _, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard); err != nil {
			t.Fatal(err)
		}
		_, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
		wantError(t, err, router.ErrOutcomeUnknown, 200, "may have been executed")
		if n := calls.Load(); n != 2 {
			t.Errorf("the server saw %d calls, want 2", n)
		}
	})
}

// TestStaleConnection has the server close a connection between two calls: the
// second must reach it once, on another.
func TestStaleConnection(t *testing.T) {
	for name, linger := range map[string]int{"closed": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			closed := make(chan struct{}, 1)
			url := rawServer(t, func(n int, c net.Conn, r *bufio.Reader) {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				io.Copy(io.Discard, req.Body)
				calls.Add(1)
				io.WriteString(c, okReply)
				c.(*net.TCPConn).SetLinger(linger)
				c.Close()
				closed <- struct{}{}
			})
			b, err := upstream.New(upstream.Options{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for i := range 20 {
				_, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
				if err != nil && !(linger == 0 && errors.Is(err, router.ErrOutcomeUnknown)) { // a reset may overtake the response
					t.Fatalf("call %d: %v", i, err)
				}
				<-closed
			}
			if n := calls.Load(); n != 20 {
				t.Errorf("the server saw %d calls, want 20", n)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close() // nobody listens there now
	eachClient(t, s.URL, func(t *testing.T, b *upstream.Backend) {
		_, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
		wantError(t, err, router.ErrUnavailable, 503, "nothing was executed")
		_, err = b.Serve(t.Context(), &router.Request{Op: router.OpListen}, router.Discard)
		wantError(t, err, router.ErrUnavailable, 503, "nothing was executed")
		_, err = b.Probe(t.Context())
		wantError(t, err, router.ErrUnavailable, 503, "nothing was executed")
		_, err = b.Serve(t.Context(), bare(t, toolCall), router.Discard)
		wantError(t, err, router.ErrUnavailable, 503, "nothing was executed")
	})
}

// TestOddHTTP is HTTP that httptest servers don't speak.
func TestOddHTTP(t *testing.T) {
	for _, tt := range []struct {
		name, response string
		ok             bool
	}{
		{"interim", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + okReply, true},
		{"until close", "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + `{"jsonrpc":"2.0","id":1,"result":{}}`, true},
		{"trailer", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2e\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n\r\n0\r\nX: y\r\n\r\n", true},
		{"not HTTP", "220 mail.example ESMTP\r\n", false},
		{"endless head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", false},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}", false},
		{"bad chunk", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false},
		{"upgrade", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := rawServer(t, func(_ int, c net.Conn, r *bufio.Reader) {
				if req, err := http.ReadRequest(r); err == nil {
					io.Copy(io.Discard, req.Body)
					io.WriteString(c, tt.response)
				}
			})
			b, err := upstream.New(upstream.Options{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for range 2 {
				_, err = b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
				if tt.ok != (err == nil) || err != nil && !errors.Is(err, router.ErrOutcomeUnknown) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

// TestBodyAfterResponse has the server go on after the response: what it sends
// must never be taken for the answer to the next call.
func TestBodyAfterResponse(t *testing.T) {
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
	response := chunk("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"fresh\"}\n\n")
	for name, rest := range map[string]string{
		"another response": chunk("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"stale\"}\n\n") + "0\r\n\r\n",
		"not ended":        "",
		"comments":         chunk(": x\n\n"),
		"like an end":      chunk("0\r\n\r\n"),
		"ended":            "0\r\n\r\n",
		"more than ended":  "0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\r\n" + `{"jsonrpc":"2.0","id":1,"result":"stale"}`,
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			url := rawServer(t, func(_ int, c net.Conn, r *bufio.Reader) {
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					io.Copy(io.Discard, req.Body)
					calls.Add(1)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"+response+rest)
				}
			})
			b, err := upstream.New(upstream.Options{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for range 10 {
				reply, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
				if err != nil || !strings.Contains(string(reply.Body), "fresh") {
					t.Fatalf("got %+v, %v", reply, err)
				}
			}
			if n := calls.Load(); n != 10 {
				t.Errorf("the server saw %d calls, want 10", n)
			}
			if _, open := b.Idle(); name == "ended" && open > 2 {
				t.Errorf("%d connections for 10 calls in a row", open)
			}
		})
	}
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

func TestClose(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		hangs := make(chan struct{})
		s := &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": func(w http.ResponseWriter, r *http.Request) {
			close(hangs)
			<-r.Context().Done()
		}}}
		b := over(t, transport, s, upstream.Options{})
		var ids []string
		for range 40 {
			ids = append(ids, initialize(t, b))
		}
		failed := make(chan error)
		go func() {
			_, err := b.Serve(t.Context(), in(t, ids[0], toolCall), router.Discard)
			failed <- err
		}()
		<-hangs
		go b.Close()
		if err := wait(t, failed); !errors.Is(err, router.ErrOutcomeUnknown) {
			t.Errorf("the call in flight: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if n := s.live(); n != 0 {
			t.Errorf("%d sessions left at the upstream", n)
		}
		_, err := b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
		wantError(t, err, router.ErrUnavailable, 503, "closing")
		_, err = b.Probe(t.Context())
		wantError(t, err, router.ErrUnavailable, 503, "closing")
	})
}

// TestCloseIsBounded closes while the server answers no DELETE.
func TestCloseIsBounded(t *testing.T) {
	s := &server{sessions: true, on: map[string]http.HandlerFunc{"DELETE": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}}
	b := over(t, "plain", s, upstream.Options{})
	for range 100 {
		initialize(t, b)
	}
	start := time.Now()
	b.Close()
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("took %v", d)
	}
}
