package edge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
	"ripstop/router/jsonrpc"
)

// FuzzPost holds the edge to its promises for any body and any headers: no
// panic, a sensible status, a JSON-RPC error as the body of every refusal, and
// what reaches the handler is what was sent.
func FuzzPost(f *testing.F) {
	f.Add(legacyCall, "demo", "", "", "", "s1")
	f.Add(modernCall, "demo", "2026-07-28", "tools/call", "echo", "")
	f.Add(modernCall, "demo", "2026-07-28", "tools/call", "=?base64?ZWNobw==?=", "")
	f.Add(initialize, "demo", "", "", "", "")
	f.Add(initialized, "demo", "2025-11-25", "", "", "s1")
	f.Add("["+legacyCall+","+initialized+"]", "demo", "2025-03-26", "", "", "s1")
	f.Add("", "", "\x00", "\xff", "=?base64?", strings.Repeat("s", 300))
	f.Add(`{"jsonrpc":"2.0","id":1,"result":{}}`, "a__b", "v9", "x", "?=", " ")
	f.Fuzz(func(t *testing.T, body, server, version, method, name, session string) {
		var got []*router.Request
		h := router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			if req.Message.Kind != jsonrpc.Request {
				return nil, nil
			}
			return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte("{}"))}, nil
		})
		e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			if !strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "[") { // batches call from many goroutines
				got = append(got, req)
			}
			return h(ctx, req, out)
		})})
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.URL.Path = "/mcp/" + server
		r.Header = header()
		for key, value := range map[string]string{"Mcp-Protocol-Version": version, "Mcp-Method": method, "Mcp-Name": name, "Mcp-Session-Id": session} {
			if value != "" {
				r.Header[key] = []string{value}
			}
		}
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		checkAnswer(t, w)
		for _, req := range got {
			if string(req.Message.Raw) != strings.Trim(body, " \t\r\n") || req.Server == "" || req.Era == router.EraModern && req.Session != "" {
				t.Fatalf("the handler got %+v for %q", req, body)
			}
			if req.Era == router.EraModern && req.Message.Kind == jsonrpc.Request && (req.Message.Version != version || method != req.Message.Method) {
				t.Fatalf("headers %q %q do not match %s", version, method, req.Message.Raw)
			}
		}
	})
}

func checkAnswer(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.Bytes()
	switch {
	case w.Code == http.StatusAccepted:
		if len(body) != 0 {
			t.Fatalf("202 with a body: %s", body)
		}
	case w.Code == http.StatusOK:
		if !json.Valid(body) {
			t.Fatalf("200 with %q", body)
		}
	case w.Code >= 400 && w.Code < 500:
		type answer struct {
			JSONRPC string
			Error   *struct {
				Code    int
				Message string
			}
		}
		all := make([]answer, 1)
		err := json.Unmarshal(body, &all[0])
		if bytes.HasPrefix(body, []byte("[")) { // a batch of which nothing was any use
			err = json.Unmarshal(body, &all)
		}
		for _, msg := range all {
			if err != nil || msg.JSONRPC != "2.0" || msg.Error == nil || msg.Error.Code == 0 || msg.Error.Message == "" {
				t.Fatalf("%d with %q: %v", w.Code, body, err)
			}
		}
	default:
		t.Fatalf("status %d: %s", w.Code, body)
	}
}

// FuzzReply holds what the edge makes of a backend's bytes: the same bytes as
// JSON, or lines that a client of event streams reads as one message.
func FuzzReply(f *testing.F) {
	f.Add(result, note)
	f.Add(`{"error":{"code":-32601}}`, "{\r\n\"a\"\n:1}")
	f.Add(`{"id":1,"`, "\n\n")
	f.Add("{\"a\\\"\":1,\"error\"", "data: x")
	f.Fuzz(func(t *testing.T, reply, msg string) {
		e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
			if err := out.Send(ctx, []byte(msg)); err != nil {
				t.Error(err)
			}
			return &router.Reply{Body: []byte(reply)}, nil
		})})
		w := do(t, e, "POST", "/mcp/demo", modernCall, modernHeader())
		first, rest, _ := strings.Cut(w.Body.String(), "\n\n")
		want := strings.NewReplacer("\n", "", "\r", "").Replace(msg)
		if msg == "" {
			if first != ": ok" {
				t.Fatalf("opened with %q", first)
			}
		} else if first != "event: message\ndata: "+want {
			t.Fatalf("event %q for %q", first, msg)
		}
		if reply != "" && rest != "event: message\ndata: "+strings.NewReplacer("\n", "", "\r", "").Replace(reply)+"\n\n" {
			t.Fatalf("last event %q for %q", rest, reply)
		}
		e = edge.New(edge.Options{Handler: replying(&router.Reply{Body: []byte(reply)}, nil)})
		w = do(t, e, "POST", "/mcp/demo", modernCall, modernHeader())
		if reply != "" && w.Body.String() != reply {
			t.Fatalf("answer %q for %q", w.Body, reply)
		}
	})
}
