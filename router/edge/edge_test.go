package edge_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

const (
	initialize  = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`
	initialized = `{"jsonrpc":"2.0","method":"notifications/initialized"}`
	legacyCall  = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo"}}`
	modernCall  = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`
	result      = `{"jsonrpc":"2.0","id":7,"result":{}}`
	note        = `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}`
)

// recording is a handler that keeps what it was asked and answers with next.
type recording struct {
	mu   sync.Mutex
	reqs []router.Request
	next router.HandlerFunc
}

func (h *recording) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	h.mu.Lock()
	h.reqs = append(h.reqs, *req)
	h.mu.Unlock()
	if h.next != nil {
		return h.next(ctx, req, out)
	}
	if req.ID() == nil {
		return &router.Reply{}, nil
	}
	return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":` + string(req.ID()) + `,"result":{}}`)}, nil
}

// last returns the only request the handler got.
func (h *recording) last(t testing.TB) router.Request {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reqs) != 1 {
		t.Fatalf("the handler got %d requests, want 1", len(h.reqs))
	}
	return h.reqs[0]
}

func (h *recording) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.reqs)
}

// replying answers every request so.
func replying(reply *router.Reply, err error) router.HandlerFunc {
	return func(context.Context, *router.Request, router.Stream) (*router.Reply, error) { return reply, err }
}

// post headers: a legacy client's, and what changes for others as key, value
// pairs; an empty value removes.
func header(pairs ...string) http.Header {
	h := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
	for i := 0; i < len(pairs); i += 2 {
		if h.Del(pairs[i]); pairs[i+1] != "" {
			h.Set(pairs[i], pairs[i+1])
		}
	}
	return h
}

func modernHeader(pairs ...string) http.Header {
	return header(append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "echo"}, pairs...)...)
}

// do sends one request to the edge without a network.
func do(t testing.TB, h http.Handler, method, target, body string, head http.Header) *httptest.ResponseRecorder {
	t.Helper()
	return doContext(t, t.Context(), h, method, target, body, head)
}

func doContext(t testing.TB, ctx context.Context, h http.Handler, method, target, body string, head http.Header) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(ctx, method, "/", strings.NewReader(body))
	r.URL.Path = target
	r.Header = head
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// wantError checks for an HTTP status with a JSON-RPC error as its body.
func wantError(t testing.TB, w *httptest.ResponseRecorder, status, code int, id string) {
	t.Helper()
	if w.Code != status {
		t.Errorf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	wantErrorBody(t, w.Body.Bytes(), code, id)
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q, want application/json", ct)
	}
}

func wantErrorBody(t testing.TB, body []byte, code int, id string) {
	t.Helper()
	var msg struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal(body, &msg); err != nil {
		t.Fatalf("body %q is not JSON: %v", body, err)
	}
	if msg.JSONRPC != "2.0" || msg.Error.Code != code || string(msg.ID) != id || msg.Error.Message == "" {
		t.Errorf("body %s, want error %d for id %s with a text", body, code, id)
	}
}

func TestRoute(t *testing.T) {
	for _, tt := range []struct {
		path, all string
		server    string // "" = 404
	}{
		{"/mcp/demo", "", "demo"},
		{"/mcp/demo/", "", "demo"},
		{"/mcp/a-b_c", "", "a-b_c"},
		{"/mcp", "all", "all"},
		{"/mcp/", "all", "all"},
		{"/mcp", "", ""},
		{"/mcpx", "all", ""},
		{"/", "all", ""},
		{"/mcp/a/b", "all", ""},
		{"/mcp/a__b", "all", ""},
		{"/mcp/-a", "all", ""},
		{"/mcp/a.b", "all", ""},
		{"/mcp/" + strings.Repeat("a", 64), "all", ""},
		{"/mcp/\x00\xff", "all", ""},
	} {
		h := &recording{}
		w := do(t, edge.New(edge.Options{Handler: h, AllServers: tt.all}), "POST", tt.path, legacyCall, header())
		if tt.server == "" {
			wantError(t, w, 404, router.CodeServerNotFound, "null")
			if h.count() != 0 {
				t.Errorf("%q reached the handler", tt.path)
			}
		} else if got := h.last(t); got.Server != tt.server || w.Code != 200 {
			t.Errorf("%q: server %q, status %d, want %q", tt.path, got.Server, w.Code, tt.server)
		}
	}
}

func TestMethods(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	for _, method := range []string{"HEAD", "PUT", "PATCH", "TRACE", "BREW"} {
		w := do(t, e, method, "/mcp/demo", "", header())
		if w.Code != 405 || w.Header().Get("Allow") != "POST, GET, DELETE, OPTIONS" {
			t.Errorf("%s: status %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
	for _, method := range []string{"GET", "DELETE"} {
		head := header("MCP-Protocol-Version", "2026-07-28", "Mcp-Session-Id", "s")
		w := do(t, e, method, "/mcp/demo", "", head)
		wantError(t, w, 405, router.CodeRefused, "null")
		if got := w.Header().Get("Allow"); got != "POST" {
			t.Errorf("modern %s: Allow %q, want POST", method, got)
		}
	}
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
}

func TestGetRefused(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	for _, tt := range []struct {
		head   http.Header
		status int
	}{
		{header("Accept", "application/json", "Mcp-Session-Id", "s"), 406},
		{header(), 400},
		{header("Mcp-Session-Id", "with space"), 400},
		{header("Mcp-Session-Id", "s", "Last-Event-ID", strings.Repeat("x", 1025)), 400},
		{header("Mcp-Session-Id", "s", "Last-Event-ID", "\x80"), 400},
	} {
		wantError(t, do(t, e, "GET", "/mcp/demo", "", tt.head), tt.status, router.CodeRefused, "null")
	}
	wantError(t, do(t, e, "GET", "/mcp/demo", "", header("Mcp-Session-Id", "s", "MCP-Protocol-Version", "2024-01-01")), 400, router.CodeUnsupportedVersion, "null")
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
}

func TestDelete(t *testing.T) {
	for _, tt := range []struct {
		reply  *router.Reply
		err    error
		status int
	}{
		{&router.Reply{}, nil, 204},
		{nil, nil, 204},
		{&router.Reply{Status: 200}, nil, 200},
		{&router.Reply{Status: 202}, nil, 202},
	} {
		h := &recording{next: replying(tt.reply, tt.err)}
		w := do(t, edge.New(edge.Options{Handler: h}), "DELETE", "/mcp/demo", "", header("Mcp-Session-Id", "s1", "MCP-Protocol-Version", "2025-06-18"))
		if w.Code != tt.status || w.Body.Len() != 0 {
			t.Errorf("DELETE: %d %s, want %d", w.Code, w.Body, tt.status)
		}
		if got := h.last(t); got.Op != router.OpEnd || got.Session != "s1" || got.Server != "demo" || got.Version != "2025-06-18" {
			t.Errorf("request %+v", got)
		}
	}
	h := &recording{next: replying(nil, router.Errorf(router.ErrSessionNotFound, "no session s1"))}
	e := edge.New(edge.Options{Handler: h})
	wantError(t, do(t, e, "DELETE", "/mcp/demo", "", header("Mcp-Session-Id", "s1")), 404, router.CodeSessionNotFound, "null")
	wantError(t, do(t, e, "DELETE", "/mcp/demo", "", header()), 400, router.CodeRefused, "null")
	if h.count() != 1 {
		t.Errorf("the handler got %d requests, want 1", h.count())
	}
}

func TestRequestFields(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h, Token: func() string { return "secret" }})
	do(t, e, "POST", "/mcp/demo", " "+legacyCall+"\n", header("Mcp-Session-Id", "s1", "MCP-Protocol-Version", "2025-03-26", "Authorization", "Bearer secret", "Mcp-Param-A", "x"))
	got := h.last(t)
	if got.Op != router.OpMessage || got.Session != "s1" || got.Era != router.EraLegacy || got.Version != "2025-03-26" ||
		got.Principal != "bearer" || got.Params != nil || string(got.Message.Raw) != legacyCall {
		t.Errorf("request %+v", got)
	}

	h = &recording{}
	e = edge.New(edge.Options{Handler: h})
	w := do(t, e, "POST", "/mcp/demo", modernCall, modernHeader("Mcp-Session-Id", "not read\x80", "Mcp-Param-Region", "=?base64?w6k=?="))
	got = h.last(t)
	if got.Session != "" || got.Era != router.EraModern || got.Version != "2026-07-28" || got.Principal != "" ||
		len(got.Params) != 1 || got.Params["Mcp-Param-Region"] != "=?base64?w6k=?=" || got.Message.Name != "echo" {
		t.Errorf("request %+v (%s)", got, w.Body)
	}
}

func TestNewWithoutHandlerPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New took no handler")
		}
	}()
	edge.New(edge.Options{})
}

func TestNewServerTimeouts(t *testing.T) {
	s := edge.NewServer("127.0.0.1:0", http.NotFoundHandler())
	if s.ReadHeaderTimeout.Seconds() != 10 || s.IdleTimeout.Seconds() != 120 || s.MaxHeaderBytes != 64<<10 || s.WriteTimeout != 0 || s.ReadTimeout != 0 {
		t.Errorf("server %+v", s)
	}
}

func TestHandlerPanic(t *testing.T) {
	h := router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) { panic("boom") })
	e := edge.New(edge.Options{Handler: h})
	w := do(t, e, "POST", "/mcp/demo", legacyCall, header())
	wantError(t, w, 500, -32603, "7")
	if strings.Contains(w.Body.String(), "boom") {
		t.Errorf("the panic's text reached the client: %s", w.Body)
	}
	w = do(t, e, "POST", "/mcp/demo", "["+legacyCall+"]", header())
	if w.Code != 500 || !strings.Contains(w.Body.String(), "-32603") {
		t.Errorf("batch: %d %s", w.Code, w.Body)
	}
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
