package gosdk_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
)

// lengthServer has a tool that returns the length of what it is given.
func lengthServer() *mcp.Server {
	type in struct {
		Text string `json:"text"`
	}
	type out struct {
		Length int `json:"length"`
	}
	s := mcp.NewServer(&mcp.Implementation{Name: "length", Version: "3"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "length"}, func(_ context.Context, _ *mcp.CallToolRequest, a in) (*mcp.CallToolResult, out, error) {
		return nil, out{len(a.Text)}, nil
	})
	return s
}

func TestHandlerServesBothEras(t *testing.T) {
	s := httptest.NewServer(gosdk.Handler(lengthServer(), nil))
	defer s.Close()
	for _, version := range []string{router.Version20260728, router.Version20251125, router.Version20250326} {
		c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
		cs, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: s.URL}, &mcp.ClientSessionOptions{ProtocolVersion: version})
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		if got := cs.InitializeResult().ProtocolVersion; got != version {
			t.Errorf("negotiated %s, want %s", got, version)
		}
		if hasSession := cs.ID() != ""; hasSession != (version < router.Version20260728) {
			t.Errorf("%s: session %q", version, cs.ID())
		}
		text := strings.Repeat("x", 5<<20) // more than the SDK takes by default
		res, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "length", Arguments: map[string]any{"text": text}})
		if err != nil || res.Content[0].(*mcp.TextContent).Text != `{"length":5242880}` {
			t.Errorf("%s: %v, %v", version, res, err)
		}
		cs.Close()
	}
}

func TestHandlerRefusesModernStreams(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		r := httptest.NewRequest(method, "/", nil)
		r.Header.Set("Mcp-Protocol-Version", router.Version20260728)
		r.Header.Set("Accept", "text/event-stream")
		w := httptest.NewRecorder()
		gosdk.Handler(lengthServer(), nil).ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d, want 405", method, w.Code)
		}
	}
}

func TestBackend(t *testing.T) {
	server := lengthServer()
	b, err := gosdk.New(router.NewInstanceID(), server, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.Probe(t.Context())
	if err != nil || info.Name != "length" || info.Version != "3" || info.Versions[0] != router.Version20260728 || len(info.Versions) < 4 {
		t.Errorf("probe: %+v, %v", info, err)
	}
	serve := func(req *router.Request, raw string) *router.Reply {
		t.Helper()
		m, err := jsonrpc.Parse([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Message = m
		reply, err := b.Serve(t.Context(), req, router.Discard)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		return reply
	}
	const call = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"length","arguments":{"text":"abc"}}}`
	reply := serve(&router.Request{Era: router.EraBare}, call)
	if !strings.Contains(string(reply.Body), `{"length":3}`) {
		t.Errorf("bare: %s", reply.Body)
	}
	reply = serve(&router.Request{}, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	session := reply.Session
	if session == "" {
		t.Fatalf("no session: %s", reply.Body)
	}
	serve(&router.Request{Session: session, Version: router.Version20251125}, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	reply = serve(&router.Request{Session: session, Version: router.Version20251125}, call)
	if !strings.Contains(string(reply.Body), `{"length":3}`) {
		t.Errorf("legacy: %s", reply.Body)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for s := range server.Sessions() {
		t.Errorf("session %q is left", s.ID())
	}
}

func serve(t *testing.T, b router.Backend, era router.Era, session, version, text string) (*router.Reply, error) {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b.Serve(t.Context(), &router.Request{Era: era, Session: session, Version: version, Message: m}, router.Discard)
}

// Names that can't stand in a header as they are reach the server all the same.
func TestNamesBeyondASCII(t *testing.T) {
	server := lengthServer()
	names := []string{"größe", " x ", "a\nb", "=?base64?eA==?="}
	for _, name := range names {
		server.AddPrompt(&mcp.Prompt{Name: name}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Description: "found"}, nil
		})
	}
	b, err := gosdk.New(router.NewInstanceID(), server, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
	for _, name := range names {
		text := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":%q,%s}}`, name, meta)
		reply, err := serve(t, b, router.EraModern, "", router.Version20260728, text)
		if err != nil || !strings.Contains(string(reply.Body), "found") {
			t.Errorf("%q: %+v, %v", name, reply, err)
		}
	}
}

func TestLegacyErrors(t *testing.T) {
	b, err := gosdk.New(router.NewInstanceID(), lengthServer(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	reply, err := serve(t, b, router.EraLegacy, "", "", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	if err != nil || reply.Status != http.StatusBadRequest || !strings.Contains(string(reply.Body), "Mcp-Session-Id is required") || !strings.Contains(string(reply.Body), "-32600") {
		t.Errorf("without a session: %+v, %v", reply, err)
	}
	reply, err = serve(t, b, router.EraLegacy, "", "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if err != nil || reply.Session == "" {
		t.Fatalf("initialize: %+v, %v", reply, err)
	}
	session := reply.Session
	if _, err := serve(t, b, router.EraLegacy, session, "", `{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil {
		t.Fatal(err)
	}
	reply, err = serve(t, b, router.EraLegacy, session, "", `{"jsonrpc":"2.0","id":"q","method":"no/such"}`)
	if err != nil || string(reply.Body) != `{"jsonrpc":"2.0","id":"q","error":{"code":-32601,"message":"method not found: \"no/such\""}}` {
		t.Errorf("unknown method: %s, %v", reply.Body, err)
	}
	_, err = serve(t, b, router.EraLegacy, session, "", `{"jsonrpc":"2.0","id":2,"method":"tools/call"}`)
	if err == nil || strings.Contains(err.Error(), "in-process") {
		t.Errorf("without params: %v, want no address in it", err)
	}
}
