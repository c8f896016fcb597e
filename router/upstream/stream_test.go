package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/upstream"
)

// resumable is a server whose event streams break: every POST and GET gives the
// next of parts, and then ends.
type resumable struct {
	mu    sync.Mutex
	parts []string
	asked []string // Last-Event-ID of every GET
	at    []time.Time
	id    string // the POST's request id
}

func (r *resumable) next(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = append(r.at, time.Now())
	if req.Method == http.MethodGet {
		r.asked = append(r.asked, req.Header.Get("Last-Event-ID"))
		if req.Header.Get("Mcp-Session-Id") != "U1" || req.Header.Get("Mcp-Protocol-Version") != legacy || req.Header.Get("Accept") != "text/event-stream" {
			http.Error(w, "what?", http.StatusBadRequest)
			return
		}
	} else {
		r.id = requestID(req)
	}
	if len(r.parts) == 0 {
		http.Error(w, "no such event", http.StatusBadRequest)
		return
	}
	part := strings.ReplaceAll(r.parts[0], "ID", r.id)
	r.parts = r.parts[1:]
	switch {
	case strings.HasPrefix(part, "status "):
		var status int
		fmt.Sscanf(part, "status %d", &status)
		http.Error(w, "no", status)
		return
	case part == "break":
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, part)
}

// serve makes a server of r.
func (r *resumable) serve() *server {
	return &server{sessions: true, on: map[string]http.HandlerFunc{"tools/call": r.next, "GET": r.next}}
}

func TestResume(t *testing.T) {
	note := func(id, n string) string {
		return "id: " + id + "\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"n" + n + "\"}\n\n"
	}
	for _, tt := range []struct {
		name  string
		parts []string
		asked []string
		sent  int
		waits []time.Duration // between the requests
		ok    bool
	}{
		{"after a prime event", []string{"id: a_0\ndata:\n\n", "id: a_1\n" + result}, []string{"a_0"}, 0, []time.Duration{100 * time.Millisecond}, true},
		{"keeps the order", []string{note("1", "1") + note("2", "2"), note("3", "3"), result}, []string{"2", "3"}, 3, []time.Duration{100 * time.Millisecond, 100 * time.Millisecond}, true},
		{"as the server says", []string{"id: 1\nretry: 7000\ndata:\n\n", result}, []string{"1"}, 0, []time.Duration{7 * time.Second}, true},
		{"backs off", []string{"id: 1\ndata:\n\n", "status 503", "break", ": x\n\n", result}, []string{"1", "1", "1", "1"}, 0,
			[]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}, true},
		{"gives up", []string{"id: 1\ndata:\n\n", "break", "break", "break", "break", "break", result}, []string{"1", "1", "1", "1", "1"}, 0,
			[]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond}, false},
		{"the server can't", []string{"id: 1\ndata:\n\n", "status 405", result}, []string{"1"}, 0, []time.Duration{100 * time.Millisecond}, false},
		{"no id, no resuming", []string{note("", "1")}, nil, 1, nil, false},
		{"an id cut off does not count", []string{"id: 1\ndata: x"}, nil, 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &resumable{parts: tt.parts}
				b := over(t, "inprocess", r.serve(), upstream.Options{})
				defer b.Close()
				var out stream
				reply, err := b.Serve(t.Context(), in(t, initialize(t, b), toolCall), &out)
				if tt.ok && (err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":1,"result":{}}`) {
					t.Errorf("got %v, %v", reply, err)
				}
				if !tt.ok {
					wantError(t, err, router.ErrOutcomeUnknown, 200, "may have been executed")
				}
				if !slices.Equal(r.asked, tt.asked) {
					t.Errorf("asked for %q, want %q", r.asked, tt.asked)
				}
				if len(out.msgs) != tt.sent {
					t.Errorf("sent %q", out.msgs)
				}
				var waits []time.Duration
				for i := 1; i < len(r.at); i++ {
					waits = append(waits, r.at[i].Sub(r.at[i-1]))
				}
				if !slices.Equal(waits, tt.waits) {
					t.Errorf("waited %v, want %v", waits, tt.waits)
				}
			})
		})
	}
}

// TestModernStreamsDontResume: 2026-07-28 has no event ids.
func TestModernStreamsDontResume(t *testing.T) {
	r := &resumable{parts: []string{"id: 1\ndata:\n\n", result}}
	b := over(t, "plain", r.serve(), upstream.Options{})
	req := in(t, "", toolCall)
	req.Era = router.EraModern
	_, err := b.Serve(t.Context(), req, router.Discard)
	wantError(t, err, router.ErrOutcomeUnknown, 200, "ended")
	if len(r.asked) != 0 {
		t.Errorf("asked for %q", r.asked)
	}
}

func TestListen(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		more := make(chan string)
		s := &server{sessions: true, on: map[string]http.HandlerFunc{"GET": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Last-Event-ID") != "" {
				http.Error(w, "unknown event", http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			for part := range more {
				fmt.Fprint(w, part)
				w.(http.Flusher).Flush()
			}
		}}}
		b := over(t, transport, s, upstream.Options{})
		out := &stream{got: make(chan string, 10)}
		req := &router.Request{Op: router.OpListen, Session: initialize(t, b), Version: legacy, LastEventID: "the edge's"}
		replies := make(chan *router.Reply, 1)
		go func() {
			reply, err := b.Serve(t.Context(), req, out)
			if err != nil {
				t.Errorf("listen: %v", err)
			}
			replies <- reply
		}()
		if got := wait(t, out.got); got != "" {
			t.Errorf("first message %q, want the empty one", got)
		}
		note := `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`
		for range 3 {
			more <- "data: " + note + "\n\n"
			if got := wait(t, out.got); got != note {
				t.Errorf("got %q", got)
			}
		}
		close(more)
		if reply := wait(t, replies); reply == nil || reply.Body != nil || reply.Status != 200 {
			t.Errorf("reply %+v", reply)
		}
	})
}

func TestListenResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &resumable{parts: []string{"id: 1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n\n", "id: 2\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"m\"}\n\n", "status 404"}}
		b := over(t, "inprocess", r.serve(), upstream.Options{})
		defer b.Close()
		var out stream
		req := &router.Request{Op: router.OpListen, Session: initialize(t, b), Version: legacy}
		reply, err := b.Serve(t.Context(), req, &out)
		if err != nil || reply.Status != 200 {
			t.Errorf("got %+v, %v", reply, err)
		}
		if want := []string{"", "1", "2"}; !slices.Equal(r.asked, want) {
			t.Errorf("asked for %q, want %q", r.asked, want)
		}
		if len(out.msgs) != 3 {
			t.Errorf("sent %q", out.msgs)
		}
	})
}

func TestListenRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		h      http.HandlerFunc
		kind   *router.Error
		status int
	}{
		{"405", page(405, "text/plain", "no"), invalidRequest, 405},
		{"404", page(404, "text/plain", "gone"), router.ErrSessionNotFound, 404},
		{"400", page(400, "text/plain", "bad"), invalidRequest, 400},
		{"html", page(200, "text/html", "<html>"), router.ErrBackend, 502},
		{"junk", events("data: x\n\n"), router.ErrBackend, 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, transport string) {
				b := over(t, transport, &server{sessions: true, on: map[string]http.HandlerFunc{"GET": tt.h}}, upstream.Options{})
				out := &stream{}
				_, err := b.Serve(t.Context(), &router.Request{Op: router.OpListen, Session: initialize(t, b)}, out)
				wantError(t, err, tt.kind, tt.status, "")
				if len(out.msgs) > 0 != (tt.name == "junk") {
					t.Errorf("opened: %q", out.msgs)
				}
			})
		})
	}
}

func TestListenCancelled(t *testing.T) {
	each(t, func(t *testing.T, transport string) {
		closed := make(chan struct{})
		b := over(t, transport, &server{sessions: true, on: map[string]http.HandlerFunc{"GET": func(w http.ResponseWriter, r *http.Request) {
			events(": x\n\n")(w, r)
			<-r.Context().Done()
			close(closed)
		}}}, upstream.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		out := &stream{got: make(chan string, 1)}
		go func() {
			<-out.got
			cancel()
		}()
		_, err := b.Serve(ctx, &router.Request{Op: router.OpListen, Session: initialize(t, b)}, out)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		wait(t, closed)
	})
}
