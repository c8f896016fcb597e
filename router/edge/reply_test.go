package edge_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

func rpcErr(code string) []byte {
	return []byte(`{"jsonrpc":"2.0","id":7,"error":{"code":` + code + `,"message":"m"}}`)
}

func TestStatus(t *testing.T) {
	for _, tt := range []struct {
		name           string
		reply          *router.Reply
		err            error
		legacy, modern int
	}{
		{"result", &router.Reply{Body: []byte(result)}, nil, 200, 200},
		{"given", &router.Reply{Body: []byte(result), Status: 203}, nil, 203, 203},
		{"given for an error", &router.Reply{Body: rpcErr("-32601"), Status: 503}, nil, 503, 503},
		{"nonsense", &router.Reply{Body: []byte(result), Status: 99}, nil, 200, 200},
		{"method not found", &router.Reply{Body: rpcErr("-32601")}, nil, 200, 404},
		{"header mismatch", &router.Reply{Body: rpcErr("-32020")}, nil, 200, 400},
		{"missing capability", &router.Reply{Body: rpcErr("-32021")}, nil, 200, 400},
		{"unsupported version", &router.Reply{Body: rpcErr("-32022")}, nil, 200, 400},
		{"invalid request", &router.Reply{Body: rpcErr("-32600")}, nil, 200, 400},
		{"invalid params", &router.Reply{Body: rpcErr("-32602")}, nil, 200, 400},
		{"parse error", &router.Reply{Body: rpcErr("-32700")}, nil, 200, 400},
		{"internal error", &router.Reply{Body: rpcErr("-32603")}, nil, 200, 200},
		{"own error", &router.Reply{Body: rpcErr("42")}, nil, 200, 200},
		{"error first", &router.Reply{Body: []byte(` { "error" : {"message":"m","code":-32601} , "id":7,"jsonrpc":"2.0"}`)}, nil, 200, 404},
		{"null error", &router.Reply{Body: []byte(`{"error":null,"result":{},"id":7,"jsonrpc":"2.0"}`)}, nil, 200, 200},
		{"no such server", nil, router.Errorf(router.ErrServerNotFound, "no x"), 404, 404},
		{"unavailable", nil, router.Errorf(router.ErrUnavailable, "no instance"), 503, 503},
		{"overloaded", nil, router.Errorf(router.ErrOverloaded, "full"), 429, 429},
		{"outcome unknown", nil, router.Errorf(router.ErrOutcomeUnknown, "lost"), 200, 200},
		{"backend", nil, router.Errorf(router.ErrBackend, "died"), 502, 502},
		{"wrapped", nil, errors.Join(errors.New("a"), router.Errorf(router.ErrTooLarge, "big")), 413, 413},
		{"unknown error", nil, errors.New("disk full"), 500, 500},
		{"no reply", nil, nil, 200, 200},
		{"no body", &router.Reply{}, nil, 200, 200},
		{"no body, status", &router.Reply{Status: 404}, nil, 404, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := edge.New(edge.Options{Handler: replying(tt.reply, tt.err)})
			w := do(t, e, "POST", "/mcp/demo", legacyCall, header())
			if w.Code != tt.legacy {
				t.Errorf("legacy: %d %s, want %d", w.Code, w.Body, tt.legacy)
			}
			w = do(t, e, "POST", "/mcp/demo", modernCall, modernHeader())
			if w.Code != tt.modern {
				t.Errorf("modern: %d %s, want %d", w.Code, w.Body, tt.modern)
			}
			if tt.reply != nil && tt.reply.Body != nil && w.Body.String() != string(tt.reply.Body) {
				t.Errorf("body %s, want the reply as it was", w.Body)
			}
			if w.Header().Get("Content-Type") != "application/json" || !strings.Contains(w.Body.String(), `"id":7`) {
				t.Errorf("%v %s", w.Header(), w.Body)
			}
			if want := map[int]string{429: "1", 503: "1"}[w.Code]; w.Header().Get("Retry-After") != want {
				t.Errorf("Retry-After %q, want %q", w.Header().Get("Retry-After"), want)
			}
		})
	}
}

func TestSessionHeader(t *testing.T) {
	e := edge.New(edge.Options{Handler: replying(&router.Reply{Body: []byte(result), Session: "s1"}, nil)})
	w := do(t, e, "POST", "/mcp/demo", initialize, header())
	if got := w.Header().Get("Mcp-Session-Id"); got != "s1" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("session %q, %v", got, w.Header())
	}
}

// initialize's session is known only with its reply, so what comes before
// waits, and is then sent in order, under a head that has the session.
func TestInitializeStream(t *testing.T) {
	status := 0
	h := router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		msg := []byte(note)
		if err := errors.Join(out.Send(ctx, nil), out.Send(ctx, msg), out.Send(ctx, []byte(`{"n":2}`))); err != nil {
			return nil, err
		}
		msg[0] = 'X' // a stream keeps no reference
		return &router.Reply{Body: []byte(result), Session: "s1", Status: status}, nil
	})
	w := do(t, edge.New(edge.Options{Handler: h}), "POST", "/mcp/demo", initialize, header())
	want := "event: message\ndata: " + note + "\n\nevent: message\ndata: {\"n\":2}\n\nevent: message\ndata: " + result + "\n\n"
	if w.Body.String() != want || w.Header().Get("Mcp-Session-Id") != "s1" || w.Header().Get("Content-Type") != "text/event-stream" {
		t.Errorf("%v\n%s", w.Header(), w.Body)
	}
	status = 400
	w = do(t, edge.New(edge.Options{Handler: h}), "POST", "/mcp/demo", initialize, header())
	if w.Code != 400 || w.Body.String() != result {
		t.Errorf("failed initialize: %d %s", w.Code, w.Body)
	}
}

func TestInitializeStreamBounded(t *testing.T) {
	var sent int
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		big := bytes.Repeat([]byte("x"), 100<<10)
		for out.Send(ctx, big) == nil {
			sent++
		}
		return &router.Reply{Body: []byte(result)}, nil
	})})
	do(t, e, "POST", "/mcp/demo", initialize, header())
	if sent != 10 {
		t.Errorf("%d messages of 100 KiB were held back, want 10", sent)
	}
}

func TestStream(t *testing.T) {
	for _, tt := range []struct {
		name string
		send []string
		last string // reply
		want string
	}{
		{"one", []string{note}, result, "event: message\ndata: " + note + "\n\nevent: message\ndata: " + result + "\n\n"},
		{"opened only", []string{""}, result, ": ok\n\nevent: message\ndata: " + result + "\n\n"},
		{"opened twice", []string{"", "", `{}`, ""}, result, ": ok\n\nevent: message\ndata: {}\n\nevent: message\ndata: " + result + "\n\n"},
		{"pretty", []string{"{\n  \"a\": 1\n}"}, "\r\n{\r\n\"id\":7,\r\"x\":\"\\n\"}\n", "event: message\ndata: {  \"a\": 1}\n\nevent: message\ndata: {\"id\":7,\"x\":\"\\n\"}\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
				for _, msg := range tt.send {
					if err := out.Send(ctx, []byte(msg)); err != nil {
						t.Error(err)
					}
				}
				return &router.Reply{Body: []byte(tt.last), Status: 404}, nil // too late for a status
			})})
			w := do(t, e, "POST", "/mcp/demo", legacyCall, header())
			if w.Body.String() != tt.want || w.Code != 200 || !w.Flushed {
				t.Errorf("%d\n%q, want\n%q", w.Code, w.Body.String(), tt.want)
			}
			h := w.Header()
			if h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-cache, no-transform" || h.Get("X-Accel-Buffering") != "no" || h.Get("Content-Length") != "" {
				t.Errorf("headers %v", h)
			}
		})
	}
}

// A backend that answers with a stream is answered for with one, as far as that
// leaves the status right.
func TestStreamAsBackend(t *testing.T) {
	for _, tt := range []struct {
		reply          router.Reply
		legacy, modern bool
	}{
		{router.Reply{Body: []byte(result)}, true, true},
		{router.Reply{Body: []byte(result), Status: 200}, true, true},
		{router.Reply{Body: rpcErr("-32603")}, true, true},
		{router.Reply{Body: rpcErr("-32601")}, true, false},
		{router.Reply{Body: rpcErr("-32601"), Status: 404}, false, false},
		{router.Reply{Body: []byte(result), Status: 201}, false, false},
	} {
		tt.reply.Stream = true
		e := edge.New(edge.Options{Handler: replying(&tt.reply, nil)})
		w := do(t, e, "POST", "/mcp/demo", legacyCall, header("MCP-Protocol-Version", "2025-06-18"))
		if got := w.Header().Get("Content-Type") == "text/event-stream"; got != tt.legacy || got && w.Body.String() != "event: message\ndata: "+string(tt.reply.Body)+"\n\n" {
			t.Errorf("legacy %+v: %v %q", tt.reply, w.Header(), w.Body)
		}
		w = do(t, e, "POST", "/mcp/demo", modernCall, modernHeader())
		if got := w.Header().Get("Content-Type") == "text/event-stream"; got != tt.modern {
			t.Errorf("modern %+v: %v %q", tt.reply, w.Header(), w.Body)
		}
	}
}

// A lost response is never a success, and never a failure that is safe to repeat.
func TestNoResponse(t *testing.T) {
	e := edge.New(edge.Options{Handler: replying(nil, nil)})
	wantError(t, do(t, e, "POST", "/mcp/demo", legacyCall, header()), 200, router.CodeOutcomeUnknown, "7")
	e = edge.New(edge.Options{Handler: replying(&router.Reply{Status: 404}, nil)})
	wantError(t, do(t, e, "POST", "/mcp/demo", legacyCall, header()), 404, router.CodeBackend, "7")
}

func TestConcurrentSend(t *testing.T) {
	const senders, each = 8, 50
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		var all sync.WaitGroup
		for range senders {
			all.Go(func() {
				for range each {
					if err := out.Send(ctx, []byte(note)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		return &router.Reply{Body: []byte(result)}, nil
	})})
	resp := postLive(t, live(t, e), strings.NewReader(legacyCall), int64(len(legacyCall)))
	want := strings.Repeat("event: message\ndata: "+note+"\n\n", senders*each) + "event: message\ndata: " + result + "\n\n"
	if got := readAll(t, resp.Body); got != want {
		t.Errorf("%d bytes came, want %d", len(got), len(want))
	}
}

func TestErrorEndsStream(t *testing.T) {
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		return nil, errors.Join(out.Send(ctx, []byte(note)), router.Errorf(router.ErrOutcomeUnknown, "backend died"))
	})})
	w := do(t, e, "POST", "/mcp/demo", legacyCall, header())
	_, last, _ := strings.Cut(w.Body.String(), "\n\nevent: message\ndata: ")
	wantErrorBody(t, []byte(strings.TrimSpace(last)), router.CodeOutcomeUnknown, "7")
}

func TestLateSend(t *testing.T) {
	var kept router.Stream
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(_ context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		kept = out
		return &router.Reply{Body: []byte(result)}, nil
	})})
	w := do(t, e, "POST", "/mcp/demo", legacyCall, header())
	if err := kept.Send(t.Context(), []byte(note)); err == nil {
		t.Error("a message after the reply was taken")
	}
	if w.Body.String() != result {
		t.Errorf("body %s", w.Body)
	}
}

func TestUnexpectedErrorIsLogged(t *testing.T) {
	var log bytes.Buffer
	e := edge.New(edge.Options{Handler: replying(nil, errors.New("disk full")), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	do(t, e, "POST", "/mcp/demo", legacyCall, header())
	if !strings.Contains(log.String(), "disk full") || !strings.Contains(log.String(), "server=demo") {
		t.Errorf("log %q", log.String())
	}
}
