package edge_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

func TestPostHeaders(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	for _, tt := range []struct {
		key, value string
		status     int
	}{
		{"Content-Type", "", 415},
		{"Content-Type", "text/plain", 415},
		{"Content-Type", "application/jsonx", 415},
		{"Content-Type", ";;", 415},
		{"Content-Type", "application/json; charset=utf-8", 200},
		{"Content-Type", "Application/JSON", 200},
		{"Content-Encoding", "gzip", 415},
		{"Content-Encoding", "identity", 200},
		{"Accept", "", 406},
		{"Accept", "application/json", 406},
		{"Accept", "text/event-stream", 406},
		{"Accept", "text/html", 406},
		{"Accept", "application/json;q=0, text/event-stream", 406},
		{"Accept", "application/json, text/event-stream;q=0.0", 406},
		{"Accept", "text/event-stream, application/json", 200},
		{"Accept", "Text/Event-Stream;q=0.5 , application/JSON;q=0.1", 200},
		{"Accept", "*/*", 200},
		{"Accept", "application/*, text/*", 200},
	} {
		w := do(t, e, "POST", "/mcp/demo", legacyCall, header(tt.key, tt.value))
		if tt.status == 200 {
			if w.Code != 200 {
				t.Errorf("%s %q: %d %s", tt.key, tt.value, w.Code, w.Body)
			}
			continue
		}
		wantError(t, w, tt.status, router.CodeRefused, "null")
	}
	head := header()
	head["Accept"] = []string{"application/json", "text/event-stream"}
	if w := do(t, e, "POST", "/mcp/demo", legacyCall, head); w.Code != 200 {
		t.Errorf("two Accept headers: %d %s", w.Code, w.Body)
	}
}

func TestMalformed(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	for _, tt := range []struct {
		body string
		code int
		id   string
	}{
		{"", router.CodeRefused, "null"},
		{" \n", -32700, "null"},
		{"{", -32700, "null"},
		{"hello", -32700, "null"},
		{legacyCall + "x", -32700, "null"},
		{"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", -32700, "null"},
		{strings.Repeat(`{"a":`, 5000), -32700, "null"},
		{"1", -32600, "null"},
		{`{"jsonrpc":"1.0","id":5,"method":"ping"}`, -32600, "null"},
		{`{"id":5,"method":"ping"}`, -32600, "5"},
		{`{"jsonrpc":"2.0","id":"x","method":""}`, -32600, `"x"`},
		{`{"jsonrpc":"2.0","id":{},"method":"ping"}`, -32600, "null"},
		{`{"jsonrpc":"2.0","id":5,"method":"ping","Method":"x"}`, -32600, "null"},
		{`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":1}}`, -32602, "5"},
	} {
		wantError(t, do(t, e, "POST", "/mcp/demo", tt.body, header()), 400, tt.code, tt.id)
	}
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
}

func TestOneway(t *testing.T) {
	for _, body := range []string{initialized, `{"jsonrpc":"2.0","id":4,"result":{"action":"accept"}}`, `{"jsonrpc":"2.0","id":4,"error":{"code":1,"message":"x"}}`} {
		h := &recording{next: replying(&router.Reply{Body: []byte(result)}, nil)} // a body that no client expects
		w := do(t, edge.New(edge.Options{Handler: h}), "POST", "/mcp/demo", body, header("Mcp-Session-Id", "s"))
		if w.Code != 202 || w.Body.Len() != 0 || len(w.Header()) != 0 {
			t.Errorf("%s: %d %s %v, want a bare 202", body, w.Code, w.Body, w.Header())
		}
		if got := h.last(t); string(got.Message.Raw) != body {
			t.Errorf("handler got %s", got.Message.Raw)
		}
		// The id of a client's response is the server's, so an error can't carry it.
		e := edge.New(edge.Options{Handler: replying(nil, router.Errorf(router.ErrSessionNotFound, "gone"))})
		w = do(t, e, "POST", "/mcp/demo", body, header("Mcp-Session-Id", "s"))
		wantError(t, w, 404, router.CodeSessionNotFound, "null")
	}
	e := edge.New(edge.Options{Handler: &recording{}})
	w := do(t, e, "POST", "/mcp/demo", `{"jsonrpc":"2.0","id":4,"result":{}}`, header("Mcp-Session-Id", "a b"))
	wantError(t, w, 400, router.CodeRefused, "null")
}

func TestOnewayHasNoStream(t *testing.T) {
	var sent, opened error
	e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		sent, opened = out.Send(ctx, []byte(note)), out.Send(ctx, nil)
		return nil, nil
	})})
	w := do(t, e, "POST", "/mcp/demo", initialized, header())
	if w.Code != 202 || w.Body.Len() != 0 || sent == nil || opened != nil {
		t.Errorf("%d %s, Send: %v, %v", w.Code, w.Body, sent, opened)
	}
}

// live serves the edge on loopback and returns its URL.
func live(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = edge.NewServer("", h)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

func postLive(t testing.TB, srv *httptest.Server, body io.Reader, length int64) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/mcp/demo", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header, r.ContentLength = header(), length
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func callOf(size int) []byte {
	head, tail := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","x":"`, `"}}`
	return []byte(head + strings.Repeat("x", size-len(head)-len(tail)) + tail)
}

// A client that sends all before it reads must get the answer, and keep its
// connection; so must one that does not say how much it sends.
func TestBodyLimit(t *testing.T) {
	for _, tt := range []struct {
		limit   int64
		size    int
		chunked bool
		status  int
	}{
		{0, 16 << 20, false, 200},
		{0, 20 << 20, false, 413},
		{1 << 20, 1 << 20, true, 200},
		{1 << 20, 1<<20 + 1, false, 413},
		{1 << 20, 1<<20 + 1, true, 413},
		{1 << 20, 3 << 20, true, 413},
		{1 << 20, 1 << 10, true, 200},
		{1 << 20, 100 << 10, false, 200},
	} {
		h := &recording{}
		srv := live(t, edge.New(edge.Options{Handler: h, MaxBody: tt.limit}))
		length := int64(tt.size)
		if tt.chunked {
			length = -1
		}
		resp := postLive(t, srv, bytes.NewReader(callOf(tt.size)), length)
		got := readAll(t, resp.Body)
		if resp.StatusCode != tt.status || resp.Close {
			t.Errorf("%d bytes, chunked %v: %d %.200s, close %v, want %d", tt.size, tt.chunked, resp.StatusCode, got, resp.Close, tt.status)
		}
		if tt.status == 413 {
			wantErrorBody(t, []byte(got), router.CodeTooLarge, "null")
		} else if n := len(h.last(t).Message.Raw); n != tt.size {
			t.Errorf("%d bytes arrived, want %d", n, tt.size)
		}
	}
}

// zeros is a body without end that counts what was read of it.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) { z.n += int64(len(p)); return len(p), nil }

func TestEndlessBody(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, MaxBody: 1 << 20})
	for _, length := range []int64{-1, 1 << 40} {
		body := &zeros{}
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/mcp/demo", body)
		r.Header, r.ContentLength = header(), length
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		wantError(t, w, 413, router.CodeTooLarge, "null")
		if w.Header().Get("Connection") != "close" {
			t.Errorf("length %d: the connection is kept", length)
		}
		if body.n > 8<<20 {
			t.Errorf("length %d: %d bytes were read", length, body.n)
		}
	}
}

func TestExpectContinueTooLarge(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, MaxBody: 1 << 10})
	body := &zeros{}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/mcp/demo", body)
	r.Header, r.ContentLength = header("Expect", "100-continue"), 2<<10
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	wantError(t, w, 413, router.CodeTooLarge, "null")
	if body.n != 0 {
		t.Errorf("%d bytes were asked for", body.n)
	}
}

func TestBodyBreaksOff(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}})
	for _, tt := range []struct {
		err          error
		status, code int
	}{
		{io.ErrUnexpectedEOF, 400, router.CodeRefused},
		{errors.New("connection reset"), 400, router.CodeRefused},
		{&http.MaxBytesError{Limit: 5}, 413, router.CodeTooLarge},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/mcp/demo", io.MultiReader(strings.NewReader(legacyCall[:20]), failing{tt.err}))
		r.Header = header()
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		wantError(t, w, tt.status, tt.code, "null")
		if w.Header().Get("Connection") != "close" {
			t.Errorf("%v: the connection is kept", tt.err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
