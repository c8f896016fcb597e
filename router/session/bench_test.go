package session_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"ripstop/router"
	"ripstop/router/demo"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
)

// quick is a backend that costs next to nothing.
type quick struct {
	plain
	reply *router.Reply
}

func newQuick() quick {
	n := 0
	q := quick{reply: &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":7,"result":{}}`)}}
	q.Handler = router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Session != "" || req.Method() != "initialize" {
			return q.reply, nil
		}
		n++
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25"}`)), Session: fmt.Sprintf("%s-%026d", here, n)}, nil
	})
	return q
}

// BenchmarkCall is what the layer adds to a call.
func BenchmarkCall(b *testing.B) {
	f := setup(b, nil)
	q := newQuick()
	l := f.another(q, func(o *session.Options) { o.Events = nil })
	r, err := l.Serve(b.Context(), request(b, "", initialize), nil)
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, h router.Handler, change func(*router.Request)) {
		b.Run(name, func(b *testing.B) {
			req := request(b, r.Session, call)
			if change != nil {
				change(req)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.Serve(ctx, req, router.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("backend alone", q, nil)
	run("without a session", l, func(req *router.Request) { req.Session = "" })
	run("in a session", l, nil)
	run("in a session, outliving its caller", l, func(req *router.Request) { req.StreamID = post })
}

// BenchmarkRealCall is the same with a server of the Go SDK in this process.
func BenchmarkRealCall(b *testing.B) {
	inner, err := gosdk.New(here, demo.New(nil), nil)
	if err != nil {
		b.Fatal(err)
	}
	f := setup(b, nil)
	l := f.another(inner, nil)
	for _, way := range []struct {
		name, stream string
		h            router.Handler
	}{{"backend alone", "", inner}, {"in a session", "", l}, {"in a session, outliving its caller", post, l}} {
		b.Run(way.name, func(b *testing.B) {
			r, err := way.h.Serve(b.Context(), request(b, "", initialize), router.Discard)
			if err != nil {
				b.Fatal(err)
			}
			req := request(b, r.Session, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}`)
			req.StreamID = way.stream
			b.ReportAllocs()
			for b.Loop() {
				if _, err := way.h.Serve(b.Context(), req, router.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdleSessions is the memory of sessions that do nothing, and of those
// that have had a call whose stream could have been resumed.
func BenchmarkIdleSessions(b *testing.B) {
	const n = 100_000
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		f := setup(b, nil)
		f.k.forget = true
		l := f.another(newQuick(), nil)
		before, goroutines := heap(), runtime.NumGoroutine()
		ids := make([]string, n)
		for i := range ids {
			r, err := l.Serve(b.Context(), request(b, "", initialize), nil)
			if err != nil {
				b.Fatal(err)
			}
			ids[i] = r.Session
		}
		b.ReportMetric((heap()-before)/n, "B/session")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
		for _, id := range ids {
			req := request(b, id, call)
			req.StreamID = post
			if _, err := l.Serve(b.Context(), req, nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((heap()-before)/n, "B/session-used")
	}
}
