package edge_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

const (
	benchLegacy = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}`
	benchModern = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}},"name":"echo","arguments":{"text":"hello"}}}`
)

var benchResult = []byte(`{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"hello"}]}}`)

// answering is a handler that costs nothing, so that what is measured is the edge.
var answering = router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
	return &router.Reply{Body: benchResult}, nil
})

// nullWriter is a connection that costs nothing.
type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *nullWriter) WriteHeader(int)             {}
func (w *nullWriter) FlushError() error           { return nil }

func (w *nullWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *nullWriter) SetWriteDeadline(time.Time) error { return nil }

func benchHeader(modern bool) http.Header {
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	h.Set("MCP-Protocol-Version", router.Version20251125)
	h.Set("Mcp-Session-Id", "abcdefghij-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	if modern {
		h.Del("Mcp-Session-Id")
		h.Set("MCP-Protocol-Version", router.Version20260728)
		h.Set("Mcp-Method", "tools/call")
		h.Set("Mcp-Name", "echo")
	}
	return h
}

func benchBody(modern bool) []byte {
	if modern {
		return []byte(benchModern)
	}
	return []byte(benchLegacy)
}

// BenchmarkServe is the edge's own cost of one call.
func BenchmarkServe(b *testing.B) {
	for _, modern := range []bool{false, true} {
		b.Run(map[bool]string{false: "legacy", true: "modern"}[modern], func(b *testing.B) {
			e := edge.New(edge.Options{Handler: answering})
			body := benchBody(modern)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "POST", "/mcp/demo", nil)
			r.Header = benchHeader(modern)
			r.ContentLength = int64(len(body))
			rd := bytes.NewReader(body)
			r.Body = io.NopCloser(rd)
			w := &nullWriter{h: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				rd.Reset(body)
				clear(w.h)
				e.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkHTTP is one call over a kept-alive loopback connection, and the same
// through a handler that only reads the body and writes the answer.
func BenchmarkHTTP(b *testing.B) {
	floor := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			b.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(benchResult)))
		_, _ = w.Write(benchResult)
	})
	for _, c := range []struct {
		name    string
		handler http.Handler
		modern  bool
	}{
		{"floor", floor, false},
		{"legacy", edge.New(edge.Options{Handler: answering}), false},
		{"modern", edge.New(edge.Options{Handler: answering}), true},
	} {
		b.Run(c.name, func(b *testing.B) {
			srv := httptest.NewUnstartedServer(nil)
			srv.Config = edge.NewServer("", c.handler)
			srv.Start()
			defer srv.Close()
			body, client := benchBody(c.modern), srv.Client()
			b.ReportAllocs()
			for b.Loop() {
				r, err := http.NewRequest("POST", srv.URL+"/mcp/demo", bytes.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				r.Header = benchHeader(c.modern)
				resp, err := client.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, benchResult) {
					b.Fatalf("got %d %s, %v", resp.StatusCode, got, err)
				}
				_ = resp.Body.Close()
			}
		})
	}
}

// BenchmarkIdleStream is what a session's open GET stream keeps in memory, the
// client's end of the connection included. Of 1000 (-benchtime 1000x), since
// every one takes two files.
func BenchmarkIdleStream(b *testing.B) {
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		if err := out.Send(ctx, nil); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, nil
	})})
	srv := live(b, e)
	memory := func() uint64 {
		var m runtime.MemStats
		for range 4 { // stacks shrink by half at each
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	head := make([]byte, 12)
	before, n := memory(), 0
	for b.Loop() {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, "GET /mcp/demo HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nMcp-Session-Id: s\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 200" {
			b.Fatalf("got %q, %v", head, err)
		}
		n++
	}
	b.ReportMetric(float64(memory()-before)/float64(n), "B/stream")
}

// BenchmarkStream is one call with ten progress notifications.
func BenchmarkStream(b *testing.B) {
	note := []byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}`)
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		for range 10 {
			if err := out.Send(ctx, note); err != nil {
				return nil, err
			}
		}
		return &router.Reply{Body: benchResult}, nil
	})})
	r := httptest.NewRequest("POST", "/mcp/demo", nil)
	r.Header = benchHeader(false)
	r.ContentLength = int64(len(benchLegacy))
	rd := bytes.NewReader([]byte(benchLegacy))
	r.Body = io.NopCloser(rd)
	w := &nullWriter{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		rd.Reset([]byte(benchLegacy))
		clear(w.h)
		e.ServeHTTP(w, r)
	}
}
