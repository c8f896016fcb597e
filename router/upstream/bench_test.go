package upstream_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"testing"

	"ripstop/router"
	"ripstop/router/upstream"
)

// BenchmarkCall is one tools/call to a server that does nothing. Allocations
// include the server's; "server" is what that costs with net/http as client.
func BenchmarkCall(b *testing.B) {
	reply := `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"hello"}]}}`
	kinds := map[string]http.HandlerFunc{
		"json": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(reply)))
			fmt.Fprint(w, reply)
		},
		"sse": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "event: message\ndata: %s\n\n", reply)
			w.(http.Flusher).Flush()
		},
	}
	for _, kind := range []string{"json", "sse"} {
		for _, transport := range []string{"plain", "net/http", "inprocess"} {
			b.Run(kind+"/"+transport, func(b *testing.B) {
				opts := upstream.Options{}
				via := transport
				if transport == "net/http" {
					via, opts.Transport = "plain", upstream.NewStandard(nil)
				}
				back := over(b, via, kinds[kind], opts)
				req := in(b, "", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}`)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := back.Serve(b.Context(), req, router.Discard); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestSessionMemory bounds what an idle session costs.
func TestSessionMemory(t *testing.T) {
	s := &server{sessions: true}
	b := over(t, "inprocess", s, upstream.Options{})
	const n = 2000
	before := heap()
	for range n {
		initialize(t, b)
	}
	s.log, s.known = nil, nil // the server's share
	if each := (heap() - before) / n; each > 500 {
		t.Errorf("%d bytes a session, want less than 500", each)
	} else {
		t.Logf("%d bytes a session", each)
	}
	b.ForgetSessions()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // once for sync.Pool's victims too
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
