package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestBadInput: each bad request gets the right error, and the node lives on.
func TestBadInput(t *testing.T) {
	n := startNode(t)
	id := n.session(t, "demo")
	const modern = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
	modernCall := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"},` + modern + `}}`
	modernHeaders := func(change ...string) []string {
		return append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "echo"}, change...)
	}
	for name, tt := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		want               string
	}{
		"malformed JSON":     {"POST", "/mcp/demo", `{"jsonrpc"`, nil, 400, "-32700"},
		"no JSON-RPC":        {"POST", "/mcp/demo", `{"a":1}`, nil, 400, "-32600"},
		"empty body":         {"POST", "/mcp/demo", "", nil, 400, ""},
		"key twice":          {"POST", "/mcp/demo", `{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}`, nil, 400, "-32600"},
		"unknown server":     {"POST", "/mcp/nope", initialize, nil, 404, `\"nope\"`},
		"bad server name":    {"POST", "/mcp/a__b", initialize, nil, 404, ""},
		"unknown session":    {"POST", "/mcp/demo", callBody(1, "echo", `{"text":"x"}`), []string{"Mcp-Session-Id", "nosuchsess-AAAAAAAAAAAAAAAAAAAAAAAAAA"}, 404, "initialize"},
		"other's session":    {"POST", "/mcp/all", callBody(1, "echo", `{"text":"x"}`), []string{"Mcp-Session-Id", id}, 404, "initialize"},
		"unknown method":     {"POST", "/mcp/demo", `{"jsonrpc":"2.0","id":1,"method":"no/such"}`, []string{"Mcp-Session-Id", id}, 0, `"id":1`},
		"unknown tool":       {"POST", "/mcp/demo", callBody(1, "nope", `{}`), []string{"Mcp-Session-Id", id}, 200, "nope"},
		"wrong type":         {"POST", "/mcp/demo", callBody(1, "add", `{"a":"x","b":1}`), []string{"Mcp-Session-Id", id}, 200, `"isError":true`},
		"name no string":     {"POST", "/mcp/demo", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}`, []string{"Mcp-Session-Id", id}, 400, "-32602"},
		"not JSON":           {"POST", "/mcp/demo", "x", []string{"Content-Type", "text/plain"}, 415, ""},
		"accepts nothing":    {"POST", "/mcp/demo", initialize, []string{"Accept", "image/png"}, 406, ""},
		"bad version":        {"POST", "/mcp/demo", callBody(1, "echo", `{"text":"x"}`), []string{"Mcp-Session-Id", id, "MCP-Protocol-Version", "1999-01-01"}, 400, "1999-01-01"},
		"other host":         {"POST", "/mcp/demo", initialize, []string{"Host", "evil.example"}, 403, ""},
		"other origin":       {"POST", "/mcp/demo", initialize, []string{"Origin", "https://evil.example"}, 403, ""},
		"PUT":                {"PUT", "/mcp/demo", "{}", nil, 405, ""},
		"GET, no session":    {"GET", "/mcp/demo", "", nil, 400, ""},
		"DELETE, no session": {"DELETE", "/mcp/demo", "", nil, 400, ""},
		"no such page":       {"GET", "/nope", "", nil, 404, "/mcp"},
		"deep nesting":       {"POST", "/mcp/demo", strings.Repeat("[", 100000), nil, 400, ""},
		"20 MiB":             {"POST", "/mcp/demo", callBody(1, "echo", `{"text":"`+strings.Repeat("x", 20<<20)+`"}`), []string{"Mcp-Session-Id", id}, 413, ""},
		"modern":             {"POST", "/mcp/demo", modernCall, modernHeaders(), 200, `"resultType":"complete"`},
		"modern, base64":     {"POST", "/mcp/demo", modernCall, modernHeaders("Mcp-Name", "=?base64?ZWNobw==?="), 200, `"resultType":"complete"`},
		"modern, other name": {"POST", "/mcp/demo", modernCall, modernHeaders("Mcp-Name", "add"), 400, "-32020"},
		"modern, bad base64": {"POST", "/mcp/demo", modernCall, modernHeaders("Mcp-Name", "=?base64?!?="), 400, "-32020"},
		"modern, no name":    {"POST", "/mcp/demo", modernCall, modernHeaders("Mcp-Name", ""), 400, "-32020"},
		"modern, method":     {"POST", "/mcp/demo", modernCall, modernHeaders("Mcp-Method", "tools/list"), 400, "-32020"},
		"modern, no header":  {"POST", "/mcp/demo", modernCall, nil, 400, "-32020"},
		"modern, no meta":    {"POST", "/mcp/demo", callBody(1, "echo", `{"text":"x"}`), modernHeaders(), 400, "-32602"},
		"modern, future":     {"POST", "/mcp/demo", strings.ReplaceAll(modernCall, "2026-07-28", "2999-01-01"), modernHeaders("MCP-Protocol-Version", "2999-01-01"), 400, "-32022"},
		"modern, removed":    {"POST", "/mcp/demo", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{` + modern + `}}`, []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "ping"}, 404, "-32601"},
		"modern, GET":        {"GET", "/mcp/demo", "", []string{"MCP-Protocol-Version", "2026-07-28"}, 405, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := n.do(t, tt.method, tt.path, tt.body, tt.headers...)
			if tt.status != 0 && a.status != tt.status {
				t.Errorf("status %d, want %d: %.300s", a.status, tt.status, a.body)
			}
			if !strings.Contains(a.body, tt.want) {
				t.Errorf("%d %.300s, want %q", a.status, a.body, tt.want)
			}
			if a.status >= 400 && a.header.Get("Content-Type") == "application/json" && !strings.Contains(a.body, `"jsonrpc":"2.0"`) {
				t.Errorf("not a JSON-RPC error: %.300s", a.body)
			}
		})
	}
	if a := n.do(t, "POST", "/mcp/demo", callBody(9, "echo", `{"text":"alive"}`), "Mcp-Session-Id", id); a.status != 200 || !strings.Contains(a.body, "alive") {
		t.Errorf("the session afterwards: %d %s", a.status, a.body)
	}
}

// TestSlowLoris: connections that dribble their request are dropped, and others
// are served meanwhile.
func TestSlowLoris(t *testing.T) {
	n := startNode(t)
	addr := strings.TrimPrefix(n.http, "http://")
	var closed atomic.Int32
	const many = 50
	for range many {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /mcp/demo HTTP/1.1\r\nHost: %s\r\nX-Slow: ", addr)
		go func() {
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			io.Copy(io.Discard, c)
			closed.Add(1)
		}()
	}
	n.cli(t, "call", "demo", "echo", "text=meanwhile").ok(t).says(t, "meanwhile")
	n.session(t, "demo")
	eventually(t, 15*time.Second, func() string {
		if got := closed.Load(); got < many {
			return fmt.Sprintf("%d of %d slow connections were dropped", got, many)
		}
		return ""
	})
}

// TestBadUpstream: servers that fail in every way give the client an error that
// says so, and say whether the call was executed.
func TestBadUpstream(t *testing.T) {
	var executed atomic.Int32
	gone := httptest.NewServer(http.NotFoundHandler())
	goneURL := gone.URL
	gone.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch text := string(body); {
		case strings.Contains(text, `"initialize"`):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"jsonrpc":"2.0","id":"init","result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bad","version":"1"}}}`)
		case strings.Contains(text, `"junk"`):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `<html>`)
		case strings.Contains(text, `"half"`):
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":1}}\n\n")
		case strings.Contains(text, `"drop"`):
			executed.Add(1)
			c, _, _ := http.NewResponseController(w).Hijack()
			c.Close()
		case strings.Contains(text, `"500"`):
			http.Error(w, "boom", 500)
		case strings.Contains(text, `"hang"`):
			<-r.Context().Done()
		default:
			w.WriteHeader(202)
		}
	}))
	t.Cleanup(bad.Close) // after the node's, which holds a connection
	n := startNode(t, "--servers", serversFile(t, fmt.Sprintf(`{"mcpServers":{"bad":{"url":%q},"gone":{"url":%q}}}`, bad.URL, goneURL)))
	for tool, want := range map[string]string{"junk": "-32", "half": "-32013", "drop": "-32013", "500": "boom"} {
		a := n.do(t, "POST", "/mcp/bad", callBody(1, tool, "{}"))
		if !strings.Contains(a.body, want) || !strings.Contains(a.body, `"error"`) {
			t.Errorf("%s: %d %.300s, want an error with %q", tool, a.status, a.body, want)
		}
	}
	if got := executed.Load(); got != 1 {
		t.Errorf("a dropped call was executed %d times", got)
	}
	if a := n.do(t, "POST", "/mcp/gone", initialize); a.status != 503 || !strings.Contains(a.body, "-32012") {
		t.Errorf("refused connection: %d %.300s", a.status, a.body)
	}
	// A hanging call ends when its client leaves, and holds nothing up.
	c, err := net.Dial("tcp", strings.TrimPrefix(n.http, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	body := callBody(1, "hang", "{}")
	fmt.Fprintf(c, "POST /mcp/bad HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	line, err := bufio.NewReader(c).ReadString('\n') // the stream is opened for a call that takes long
	if err != nil || !strings.Contains(line, "200") {
		t.Errorf("a call that takes long: %q, %v", line, err)
	}
	c.Close()
	n.cli(t, "call", "demo", "echo", "text=alive").ok(t).says(t, "alive")
}

// TestBadChild: a stdio server that dies, hangs, or prints junk.
func TestBadChild(t *testing.T) {
	script := `while read -r line; do
  case "$line" in
  *'"initialize"'*) id=${line#*\"id\":}; id=${id%%,*}; echo 'junk on stdout'; echo 'a word on stderr' >&2
    echo '{"jsonrpc":"2.0","id":'"$id"',"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sh","version":"1"}}}';;
  *'"die"'*) echo 'last words' >&2; exit 7;;
  *'"hang"'*) ;;
  *'"method":"notifications/'*) ;;
  *'"ok"'*) id=${line#*\"id\":}; id=${id%%,*}; echo '{"jsonrpc":"2.0","id":'"$id"',"result":{"content":[{"type":"text","text":"fine"}]}}';;
  *'"server/discover"'*) id=${line#*\"id\":}; id=${id%%,*}; echo '{"jsonrpc":"2.0","id":'"$id"',"error":{"code":-32601,"message":"no"}}';;
  esac
done`
	n := startNode(t, "--demo=false")
	n.attach(t, "sh", "--", "sh", "-c", script)
	id := n.session(t, "sh")
	call := func(tool string) answer {
		return n.do(t, "POST", "/mcp/sh", callBody(1, tool, "{}"), "Mcp-Session-Id", id)
	}
	if a := call("ok"); !strings.Contains(a.body, "fine") {
		t.Fatalf("ok: %d %s", a.status, a.body)
	}
	if a := call("die"); !strings.Contains(a.body, "-32013") || !strings.Contains(a.body, "last words") {
		t.Errorf("die: %d %s, want outcome unknown and its last words", a.status, a.body)
	}
	eventually(t, 5*time.Second, func() string { // restarted, with backoff
		if a := call("ok"); !strings.Contains(a.body, "fine") {
			return fmt.Sprintf("after its death: %d %s", a.status, a.body)
		}
		return ""
	})
}
