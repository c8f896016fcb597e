package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

func TestBatch(t *testing.T) {
	var calls sync.WaitGroup
	calls.Add(2)
	initDone := false
	h := &recording{}
	h.next = func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.ID() == nil {
			initDone = true
			return nil, nil
		}
		if !initDone {
			t.Error("a call ran before the notification ahead of it")
		}
		calls.Done()
		calls.Wait() // returns only if both run at once
		return &router.Reply{Body: fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"result":{}}`, req.ID())}, nil
	}
	e := edge.New(edge.Options{Handler: h})
	body := `[` + initialized + `,{"jsonrpc":"2.0","id":1,"method":"ping"},{"nonsense":1},{"jsonrpc":"2.0","id":"b","method":"ping"}]`
	w := do(t, e, "POST", "/mcp/demo", body, header("Mcp-Session-Id", "s1", "MCP-Protocol-Version", "2025-03-26"))
	var got []struct {
		ID    any
		Error *struct{ Code int }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 || len(got) != 3 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	if got[0].ID != 1.0 || got[1].Error == nil || got[1].Error.Code != -32600 || got[2].ID != "b" {
		t.Errorf("answers %s", w.Body)
	}
	for _, req := range h.reqs {
		if req.Session != "s1" || req.Server != "demo" || req.Era != router.EraLegacy || req.Version != "2025-03-26" {
			t.Errorf("request %+v", req)
		}
	}
}

func TestBatchOfNotifications(t *testing.T) {
	h := &recording{}
	w := do(t, edge.New(edge.Options{Handler: h}), "POST", "/mcp/demo", "["+initialized+`,{"jsonrpc":"2.0","id":1,"result":{}}]`, header())
	if w.Code != 202 || w.Body.Len() != 0 || h.count() != 2 {
		t.Errorf("%d %s, %d requests", w.Code, w.Body, h.count())
	}
}

func TestBatchRefused(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	ping := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, tt := range []struct {
		body, version string
		code          int
	}{
		{"[" + ping + "]", "2025-06-18", -32600},
		{"[" + ping + "]", "2025-11-25", -32600},
		{"[" + ping + "]", "2026-07-28", -32600},
		{"[]", "", -32600},
		{"[" + ping, "", -32700},
		{"[" + initialize + "]", "", -32600},
		{"[" + modernCall + "]", "", -32600},
		{"[" + strings.Repeat(ping+",", 100) + ping + "]", "", -32600},
	} {
		wantError(t, do(t, e, "POST", "/mcp/demo", tt.body, header("MCP-Protocol-Version", tt.version)), 400, tt.code, "null")
	}
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
}

func TestBatchStream(t *testing.T) {
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if string(req.ID()) == "2" {
			if err := out.Send(ctx, []byte(note)); err != nil {
				return nil, err
			}
		}
		return &router.Reply{Body: fmt.Appendf(nil, `{"id":%s}`, req.ID())}, nil
	})})
	body := `[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]`
	w := do(t, e, "POST", "/mcp/demo", body, header())
	want := "event: message\ndata: " + note + "\n\nevent: message\ndata: {\"id\":1}\n\nevent: message\ndata: {\"id\":2}\n\n"
	if w.Body.String() != want {
		t.Errorf("got %q", w.Body)
	}
}

// A session that is gone must be a 404, or the client never opens another.
func TestBatchStatus(t *testing.T) {
	e := edge.New(edge.Options{Handler: replying(nil, router.Errorf(router.ErrSessionNotFound, "gone"))})
	body := `[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]`
	w := do(t, e, "POST", "/mcp/demo", body, header("Mcp-Session-Id", "s"))
	if w.Code != 404 || strings.Count(w.Body.String(), "-32011") != 2 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = do(t, e, "POST", "/mcp/demo", `[{"jsonrpc":"2.0","id":1,"method":"ping"},{}]`, header("Mcp-Session-Id", "s"))
	if w.Code != 200 {
		t.Errorf("mixed: %d %s", w.Code, w.Body)
	}
}
