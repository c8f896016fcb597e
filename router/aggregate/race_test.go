package aggregate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

// TestConcurrentSessions runs clients of both eras against members of both,
// while members come, go and lose sessions; every answer must be its own.
func TestConcurrentSessions(t *testing.T) {
	noLeak(t)
	n := newNet()
	echo := func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if req.Message.ProgressToken != nil {
			msg := `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":` + string(req.Message.ProgressToken) + `}}`
			if err := out.Send(ctx, []byte(msg)); err != nil {
				return nil, err
			}
		}
		return result(req, `{"echo":`+string(field(req.Message.Params, "arguments"))+`}`), nil
	}
	legacy := &fake{legacy: true, tools: []string{tool("x")}, onCall: echo}
	modernly := &fake{modern: true, tools: []string{tool("x")}, onCall: echo}
	n.add("legacy", legacy)
	n.add("modern", modernly)
	b := start(t, n)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := connect(t, b)
			stop := c.listen(&sink{})
			for j := range 15 {
				server := []string{"legacy", "modern"}[j%2]
				want := fmt.Sprintf(`"echo":{"who":"%d-%d"}`, i, j)
				call := fmt.Sprintf(`"name":"%s__x","arguments":{"who":"%d-%d"}`, server, i, j)
				out := &sink{}
				has(t, "legacy call", c.do(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{%s,"_meta":{"progressToken":"%d-%d"}}}`, j, call, i, j), out), want, fmt.Sprintf(`"id":%d,`, j))
				has(t, "its progress", strings.Join(out.take(), " "), fmt.Sprintf(`"progressToken":"%d-%d"`, i, j))
				has(t, "modern call", ask(t, b, "tools/call", fmt.Sprintf(`"%d"`, j), call), want, fmt.Sprintf(`"id":"%d",`, j))
				has(t, "list", c.do(`{"jsonrpc":"2.0","id":"l","method":"tools/list"}`), "legacy__x", "modern__x")
			}
			stop()
			b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: c.session}, router.Discard)
		})
	}
	stop := listenModern(t, b, "1", `{"toolsListChanged":true}`, &sink{})
	for i := range 20 {
		n.add("other", &fake{legacy: i%2 == 0, modern: i%2 == 1, tools: []string{tool("y")}})
		ask(t, b, "tools/list", "1", "")
		n.remove("other")
	}
	wg.Wait()
	stop()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if open := legacy.open(); len(open) != 0 {
		t.Errorf("sessions %v are left with a member", open)
	}
}

// FuzzResults holds the splicing of tool results against encoding/json: what
// comes out must decode to what went in but for the URIs.
func FuzzResults(f *testing.F) {
	for _, s := range []string{
		`{"content":[{"type":"resource_link","uri":"a:b"},{"type":"resource","resource":{"uri":"a:\"b"}}]}`,
		`{"content":[{"uri":"x","type":"resource_link","uri":"y"}, 5, [], {"type":"text","text":"\\\"uri\""}] , "uri":"z"}`,
		`{"content":{"type":"resource_link","uri":"a:b"}}`, `{ }`, `{"content":[ ],"a":[{"b":[[]]}],"uri":null}`,
		`{"c\u006fntent":[{"type":"res\u006furce","resource":{"uri":"","x":-1.5e9}}],"t":true}`,
	} {
		f.Add(s)
	}
	var raw string
	n := newNet()
	n.add("m", router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":` + raw + `}`)}, nil
	}))
	b := start(f, n)
	call := &router.Request{Era: router.EraBare, Message: parse(f, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`)}
	f.Fuzz(func(t *testing.T, in string) {
		raw = in
		if _, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":1,"result":` + raw + `}`)); err != nil {
			return
		}
		var got, want struct{ Result any }
		if json.Unmarshal([]byte(in), &want.Result) != nil {
			return // a number no float64 holds
		}
		reply, err := b.Serve(t.Context(), call, router.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(reply.Body, &got); err != nil {
			t.Fatalf("%s became %s: %v", in, reply.Body, err)
		}
		if strings.Contains(in, `"uri"`) {
			rename(want.Result)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s became %s", in, reply.Body)
		}
	})
}

// rename does to a decoded result what the backend does to the raw one.
func rename(result any) {
	object, _ := result.(map[string]any)
	content, _ := object["content"].([]any)
	for _, c := range content {
		block, _ := c.(map[string]any)
		if block["type"] == "resource" {
			block, _ = block["resource"].(map[string]any)
		} else if block["type"] != "resource_link" {
			continue
		}
		if uri, ok := block["uri"].(string); ok {
			block["uri"] = aggregate.JoinURI("m", uri)
		}
	}
}

// BenchmarkCall compares a tools/call through the aggregate with the member
// called directly; the difference is what the aggregate costs.
func BenchmarkCall(b *testing.B) {
	n := newNet()
	done := func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		switch req.Method() {
		case "initialize":
			r := result(req, `{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"x"}}`)
			r.Session = "s"
			return r, nil
		case "server/discover":
			return result(req, `{"supportedVersions":["2026-07-28"]}`), nil
		}
		return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"hello"}]}}`)}, nil
	}
	n.add("m", router.HandlerFunc(done))
	be := start(b, n)
	c := connect(b, be)
	for _, size := range []int{100, 100_000} {
		args := `,"arguments":{"text":"` + strings.Repeat("x", size) + `"}`
		legacy := c.request(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"` + args + `}}`)
		modern := modern(b, "tools/call", "1", `"name":"m__x"`+args)
		for name, run := range map[string]func() (*router.Reply, error){
			"direct": func() (*router.Reply, error) {
				return n.Serve(b.Context(), &router.Request{Server: "m", Message: legacy.Message}, router.Discard)
			},
			"legacy": func() (*router.Reply, error) { return be.Serve(b.Context(), legacy, router.Discard) },
			"modern": func() (*router.Reply, error) { return be.Serve(b.Context(), modern, router.Discard) },
		} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := run(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkIdleSession reports the memory of a session that has called one
// member, as B/session.
func BenchmarkIdleSession(b *testing.B) {
	n := newNet()
	n.add("m", router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		r := result(req, `{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"x"}}`)
		r.Session = router.NewSessionID("abcdefghij")
		return r, nil
	}))
	be := start(b, n, func(o *aggregate.Options) { o.MaxSessions = 1 << 30 })
	before := heap()
	sessions := 0
	for b.Loop() {
		connect(b, be).do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`)
		sessions++
	}
	b.ReportMetric(float64(heap()-before)/float64(sessions), "B/session")
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
