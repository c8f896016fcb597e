package stdio_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/stdio"
)

// runSDK is a server as people write them, of both eras.
func runSDK() {
	s := mcp.NewServer(&mcp.Implementation{Name: "sdk", Version: "1.2.3"}, nil)
	type greeting struct {
		Name string `json:"name"`
	}
	hello := func(_ context.Context, _ *mcp.CallToolRequest, in greeting) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "hello " + in.Name}}}, nil, nil
	}
	mcp.AddTool(s, &mcp.Tool{Name: "hello"}, hello)
	mcp.AddTool(s, &mcp.Tool{Name: "grow"}, func(_ context.Context, _ *mcp.CallToolRequest, in greeting) (*mcp.CallToolResult, any, error) {
		mcp.AddTool(s, &mcp.Tool{Name: in.Name}, hello)
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "grown"}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask"}, func(ctx context.Context, req *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, any, error) {
		res, err := req.Session.Elicit(ctx, &mcp.ElicitParams{Message: "sure?"})
		if err != nil {
			return nil, nil, err
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: res.Action}}}, nil, nil
	})
	_ = s.Run(context.Background(), &mcp.StdioTransport{}) // ends with stdin
}

func sdkOptions() stdio.Options {
	o := fakeOptions(quirks{})
	o.Env = []string{"STDIO_TEST_ROLE=sdk"}
	return o
}

func TestSDKServer(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sdkOptions())
	info, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "sdk" || info.Version != "1.2.3" || !slices.Contains(info.Versions, router.Version20260728) || !slices.Contains(info.Versions, router.Version20250326) {
		t.Errorf("Probe = %+v", info)
	}
	if got := onceText(t, b, router.EraModern, modernCall("1", "hello", `{"name":"modern"}`)); got != "hello modern" {
		t.Errorf("modern: %q", got)
	}
	if got := onceText(t, b, router.EraBare, toolCall("1", "hello", `{"name":"bare"}`)); got != "hello bare" {
		t.Errorf("bare: %q", got)
	}
	c := mustDial(t, b)
	out := newStream()
	p := c.background(t.Context(), toolCall("1", "ask", "{}"), out)
	q := out.next(t)
	if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":`+string(q.ID)+`,"result":{"action":"accept"}}`, nil); err != nil {
		t.Fatal(err)
	}
	reply, err := p.wait(t)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := textOf(reply.Body); got != "accept" {
		t.Errorf("ask = %q, %v", got, err)
	}
}

func TestSDKSubscription(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sdkOptions())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := newStream()
	p := make(chan error, 1)
	go func() {
		_, err := once(ctx, b, router.EraModern, `{"jsonrpc":"2.0","id":"sub","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},`+modernMeta+`}}`, out)
		p <- err
	}()
	if m := out.next(t); !strings.Contains(string(m.Params), `"io.modelcontextprotocol/subscriptionId":"sub"`) {
		t.Errorf("acknowledgement %s", m.Params)
	}
	onceText(t, b, router.EraModern, modernCall("1", "grow", `{"name":"more"}`))
	if m := out.next(t); m.Method != "notifications/tools/list_changed" || !strings.Contains(string(m.Params), `"io.modelcontextprotocol/subscriptionId":"sub"`) {
		t.Errorf("got %s %s", m.Method, m.Params)
	}
	cancel()
	if err := <-p; err == nil {
		t.Error("the cancelled subscription has no error")
	}
}
