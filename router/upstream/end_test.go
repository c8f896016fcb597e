package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/upstream"
)

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
	synctest.Test(t, func(t *testing.T) {
		s := &server{sessions: true, on: map[string]http.HandlerFunc{"DELETE": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}}
		b := over(t, "inprocess", s, upstream.Options{})
		for range 100 {
			initialize(t, b)
		}
		start := time.Now()
		b.Close()
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("took %v, want 3 s", d)
		}
	})
}
