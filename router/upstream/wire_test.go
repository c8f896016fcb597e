package upstream_test

import (
	"bufio"
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

	"ripstop/router"
	"ripstop/router/upstream"
)

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
			for i := range 2 {
				_, err = b.Serve(t.Context(), in(t, "", toolCall), router.Discard)
				if i > 0 && tt.ok && errors.Is(err, router.ErrOutcomeUnknown) {
					continue // sent on the first's connection just before its end was seen
				}
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
