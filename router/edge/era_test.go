package edge_test

import (
	"net/http"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`

func message(method, params string) string {
	return `{"jsonrpc":"2.0","id":3,"method":"` + method + `","params":{` + params + `}}`
}

func TestEra(t *testing.T) {
	const m = "MCP-Protocol-Version"
	list := message("tools/list", meta)
	for _, tt := range []struct {
		name, body string
		head       http.Header
		era        router.Era
		code       int // 0 = reaches the handler
	}{
		{"no version at all", message("tools/list", ""), header(), router.EraLegacy, 0},
		{"every legacy version", message("tools/list", ""), header(m, "2024-11-05"), router.EraLegacy, 0},
		{"legacy header, modern meta", list, header(m, "2025-11-25"), 0, router.CodeHeaderMismatch},
		{"unknown old version", message("tools/list", ""), header(m, "1900-01-01"), 0, router.CodeUnsupportedVersion},
		{"unknown old version in both", message("tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"1900-01-01"}`), header(m, "1900-01-01"), 0, router.CodeUnsupportedVersion},
		{"legacy version in both", message("tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2025-11-25"}`), header(m, "2025-11-25"), router.EraLegacy, 0},
		{"modern", list, header(m, "2026-07-28", "Mcp-Method", "tools/list"), router.EraModern, 0},
		{"unknown new version is for the backend", message("tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"v999.0.0"}`), header(m, "v999.0.0", "Mcp-Method", "tools/list"), router.EraModern, 0},
		{"meta without header", list, header("Mcp-Method", "tools/list"), 0, router.CodeHeaderMismatch},
		{"header without meta", message("tools/list", ""), header(m, "2026-07-28", "Mcp-Method", "tools/list"), 0, -32602},
		{"header, meta without a version", message("tools/list", `"_meta":{}`), header(m, "2026-07-28", "Mcp-Method", "tools/list"), 0, -32602},
		{"header, version not a string", message("tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":5}`), header(m, "2026-07-28", "Mcp-Method", "tools/list"), 0, -32602},
		{"header and meta differ", list, header(m, "2026-08-01", "Mcp-Method", "tools/list"), 0, router.CodeHeaderMismatch},
		{"two version headers", list, http.Header{"Content-Type": {"application/json"}, "Accept": {"*/*"}, "Mcp-Protocol-Version": {"2026-07-28", "2026-07-28"}, "Mcp-Method": {"tools/list"}}, 0, router.CodeRefused},
		{"version is not ASCII", message("tools/list", ""), header(m, "2026\x80"), 0, router.CodeRefused},
		{"no method header", list, header(m, "2026-07-28"), 0, router.CodeHeaderMismatch},
		{"wrong method header", list, header(m, "2026-07-28", "Mcp-Method", "prompts/list"), 0, router.CodeHeaderMismatch},
		{"method header in capitals", list, header(m, "2026-07-28", "Mcp-Method", "TOOLS/LIST"), 0, router.CodeHeaderMismatch},
		{"removed methods are for the backend", message("ping", meta), header(m, "2026-07-28", "Mcp-Method", "ping"), router.EraModern, 0},
		{"initialize too", message("initialize", meta), header(m, "2026-07-28", "Mcp-Method", "initialize"), router.EraModern, 0},
		{"method header means nothing before", message("tools/list", ""), header(m, "2025-11-25", "Mcp-Method", "x", "Mcp-Name", "y"), router.EraLegacy, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &recording{}
			w := do(t, edge.New(edge.Options{Handler: h}), "POST", "/mcp/demo", tt.body, tt.head)
			if tt.code != 0 {
				wantError(t, w, 400, tt.code, "3")
				if h.count() != 0 {
					t.Error("it reached the handler")
				}
				return
			}
			if got := h.last(t); got.Era != tt.era || got.Version != tt.head.Get(m) {
				t.Errorf("era %v version %q, want %v", got.Era, got.Version, tt.era)
			}
		})
	}
}

func TestMirroredName(t *testing.T) {
	for _, tt := range []struct {
		name, method, params string
		header               []string // Mcp-Name values
		ok                   bool
	}{
		{"tool", "tools/call", `"name":"echo"`, []string{"echo"}, true},
		{"prompt", "prompts/get", `"name":"greet"`, []string{"greet"}, true},
		{"resource", "resources/read", `"uri":"file:///a b"`, []string{"file:///a b"}, true},
		{"wrong", "tools/call", `"name":"echo"`, []string{"Echo"}, false},
		{"absent", "tools/call", `"name":"echo"`, nil, false},
		{"twice", "tools/call", `"name":"echo"`, []string{"echo", "echo"}, false},
		{"no name in the body", "tools/call", ``, []string{"echo"}, false},
		{"neither", "resources/read", ``, nil, false},
		{"encoded", "tools/call", `"name":"Hello, 世界"`, []string{"=?base64?SGVsbG8sIOS4lueVjA==?="}, true},
		{"encoded though plain", "tools/call", `"name":"Hello"`, []string{"=?base64?SGVsbG8=?="}, true},
		{"encoded empty", "tools/call", `"name":""`, []string{"=?base64??="}, true},
		{"encoded sentinel", "tools/call", `"name":"=?base64?literal?="`, []string{"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="}, true},
		{"sentinel not encoded", "tools/call", `"name":"=?base64?literal?="`, []string{"=?base64?literal?="}, false},
		{"encoded, but other", "tools/call", `"name":"Hello"`, []string{"=?base64?SGVsbG8h?="}, false},
		{"bad padding", "tools/call", `"name":"Hello"`, []string{"=?base64?SGVsbG8?="}, false},
		{"bad characters", "tools/call", `"name":"Hello"`, []string{"=?base64?SGVs!!!bG8=?="}, false},
		{"not canonical", "tools/call", `"name":"Hello"`, []string{"=?base64?SGVsbG9=?="}, false},
		{"no prefix is literal", "tools/call", `"name":"SGVsbG8="`, []string{"SGVsbG8="}, true},
		{"no suffix is literal", "tools/call", `"name":"=?base64?SGVsbG8="`, []string{"=?base64?SGVsbG8="}, true},
		{"raw UTF-8, as go-sdk sends it", "tools/call", `"name":"é"`, []string{"é"}, true},
		{"task", "tasks/get", `"taskId":"t1"`, []string{"t1"}, true},
		{"task without", "tasks/get", `"taskId":"t1"`, nil, true},
		{"other task", "tasks/cancel", `"taskId":"t1"`, []string{"t2"}, false},
		{"method without names", "tools/list", ``, []string{"whatever"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			params := meta
			if tt.params != "" {
				params += "," + tt.params
			}
			head := header("MCP-Protocol-Version", "2026-07-28", "Mcp-Method", tt.method)
			if tt.header != nil {
				head["Mcp-Name"] = tt.header
			}
			w := do(t, edge.New(edge.Options{Handler: &recording{}}), "POST", "/mcp/demo", message(tt.method, params), head)
			if tt.ok && w.Code != 200 {
				t.Errorf("%d %s, want 200", w.Code, w.Body)
			} else if !tt.ok {
				wantError(t, w, 400, router.CodeHeaderMismatch, "3")
			}
		})
	}
}

func TestModernOneway(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}})
	for _, tt := range []struct {
		body string
		head http.Header
		code int
	}{
		{initialized, header("MCP-Protocol-Version", "2026-07-28"), 0},
		{initialized, header("MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "notifications/initialized"), 0},
		{initialized, header("MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"), router.CodeHeaderMismatch},
		{`{"jsonrpc":"2.0","id":1,"result":{}}`, header("MCP-Protocol-Version", "2026-07-28"), -32600},
	} {
		w := do(t, e, "POST", "/mcp/demo", tt.body, tt.head)
		if tt.code != 0 {
			wantError(t, w, 400, tt.code, "null")
		} else if w.Code != 202 || w.Body.Len() != 0 {
			t.Errorf("%s: %d %s, want 202", tt.body, w.Code, w.Body)
		}
	}
}

func TestDuplicateParamHeader(t *testing.T) {
	head := modernHeader()
	head["Mcp-Param-Region"] = []string{"a", "b"}
	wantError(t, do(t, edge.New(edge.Options{Handler: &recording{}}), "POST", "/mcp/demo", modernCall, head), 400, router.CodeHeaderMismatch, "7")
}

func TestLegacySessionHeader(t *testing.T) {
	h := &recording{}
	e := edge.New(edge.Options{Handler: h})
	for _, s := range []string{"with space", "tab\tx", "\x7f", "é", strings.Repeat("s", 257)} {
		wantError(t, do(t, e, "POST", "/mcp/demo", legacyCall, header("Mcp-Session-Id", s)), 400, router.CodeRefused, "7")
	}
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
	head := header()
	head["Mcp-Session-Id"] = []string{"a", "b"}
	wantError(t, do(t, e, "POST", "/mcp/demo", legacyCall, head), 400, router.CodeRefused, "7")
	long := strings.Repeat("s", 256)
	do(t, e, "POST", "/mcp/demo", legacyCall, header("Mcp-Session-Id", long))
	if got := h.last(t).Session; got != long {
		t.Errorf("session %q", got)
	}
}
