package agent_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
	"ripstop/router/jsonrpc"
)

// edges are two nodes' HTTP edges in front of one agent.
type edges struct {
	t       *testing.T
	servers [2]*httptest.Server
	kill    [2]func() // without a word to anybody
	session string
}

func newEdges(t *testing.T, l *lab) *edges {
	t.Helper()
	e := &edges{t: t}
	for i := range e.servers {
		c := l.client(t)
		h := edge.New(edge.Options{Handler: c})
		s := httptest.NewServer(h)
		e.servers[i] = s
		e.kill[i] = func() {
			s.CloseClientConnections()
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = h.Shutdown(ctx) // what was in flight is cut
		}
		t.Cleanup(func() { e.kill[i](); s.Close() })
	}
	resp := e.do(0, "POST", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"c","version":"1"}}}`)
	e.session = resp.Header.Get("Mcp-Session-Id")
	if resp.StatusCode != 200 || e.session == "" {
		t.Fatalf("initialize: %d, session %q", resp.StatusCode, e.session)
	}
	return e
}

func (e *edges) do(i int, method, body string, head ...string) *http.Response {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.servers[i].URL+"/mcp/demo", strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	if e.session != "" {
		req.Header.Set("Mcp-Session-Id", e.session)
	}
	for n := 0; n < len(head); n += 2 {
		req.Header.Set(head[n], head[n+1])
		if head[n+1] == "" {
			req.Header.Del(head[n])
		}
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// event reads the next event that has data, and its id.
func event(t *testing.T, r *bufio.Reader) (id, data string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("read stream: %v", err)
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case name == "id":
			id = value
		case name == "data":
			data = value
		case line == "\n" && data != "":
			return id, data
		}
	}
}

// A server asks, the client's edge dies, the client answers at another edge and
// finds there what the server makes of it.
func TestAnswerAtAnotherEdge(t *testing.T) {
	l := newLab(t)
	answer := make(chan string)
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		switch {
		case req.Message == nil:
			<-ctx.Done()
			return nil, ctx.Err()
		case req.Message.Kind == jsonrpc.Response:
			answer <- string(req.Message.Result)
			return nil, nil
		case req.Method() == "initialize":
			return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25"}`)), Session: "b1"}, nil
		}
		if err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{}}`)); err != nil {
			return nil, err
		}
		select {
		case a := <-answer:
			return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"said":`+a+`}`))}, nil
		case <-ctx.Done():
			t.Error("the call was cancelled")
			return nil, ctx.Err()
		}
	})
	e := newEdges(t, l)
	id, data := event(t, bufio.NewReader(e.do(0, "POST", callEcho).Body))
	if !strings.Contains(data, "elicitation/create") || !strings.HasSuffix(id, ".1") {
		t.Fatalf("event %q: %s", id, data)
	}
	e.kill[0]()
	if resp := e.do(1, "POST", `{"jsonrpc":"2.0","id":"q","result":"yes"}`); resp.StatusCode != 202 {
		t.Fatalf("answer: %d", resp.StatusCode)
	}
	r := bufio.NewReader(e.do(1, "GET", "", "Last-Event-ID", id).Body)
	if id, data = event(t, r); data != `{"jsonrpc":"2.0","id":1,"result":{"said":"yes"}}` || !strings.HasSuffix(id, ".2") {
		t.Errorf("event %q: %s", id, data)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("after the response: %q, %v", rest, err)
	}
	if resp := e.do(1, "GET", "", "Last-Event-ID", "nobody's"); resp.StatusCode != 400 {
		t.Errorf("an id that none can be: %d", resp.StatusCode)
	}
}

// What a modern client has left is cancelled, wherever it runs.
func TestModernCallEndsWithItsEdge(t *testing.T) {
	l := newLab(t)
	cancelled := make(chan struct{})
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if req.Method() == "initialize" {
			return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25"}`)), Session: "b1"}, nil
		}
		if err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{}}`)); err != nil {
			return nil, err
		}
		<-ctx.Done()
		close(cancelled)
		return nil, ctx.Err()
	})
	e := newEdges(t, l)
	const call = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}},"name":"echo"}}`
	resp := e.do(0, "POST", call, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "echo", "Mcp-Session-Id", "")
	if id, _ := event(t, bufio.NewReader(resp.Body)); id != "" {
		t.Errorf("a modern stream has event id %q", id)
	}
	resp.Body.Close()
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the call goes on without its client")
	}
}
