package eras_test

//lint:file-ignore SA1019 what 2026-07-28 deprecates is what has to be translated

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/gosdk"
	"ripstop/router/stdio"
	"ripstop/router/upstream"
)

const patience = 20 * time.Second // for things that take milliseconds

// versions are what a server is restricted to.
var versions = map[string][]string{
	"legacy": router.LegacyVersions,
	"modern": {router.Version20260728},
	"both":   nil,
}

// TestMain also is the stdio server.
func TestMain(m *testing.M) {
	stdio.RunGuard()
	if era := os.Getenv("ERAS_TEST_SERVER"); era != "" {
		_ = sdkServer(era).Run(context.Background(), &mcp.StdioTransport{}) // ends with stdin
		return
	}
	os.Exit(m.Run())
}

// sdkServer returns a server of the official SDK that speaks one era only, and
// asks its client in that era's way: the SDK turns input requests into requests
// for legacy clients.
func sdkServer(era string) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: era + "-server", Version: "7"}, &mcp.ServerOptions{
		SupportedProtocolVersions: versions[era],
		Instructions:              "Be kind.",
		SubscribeHandler: func(_ context.Context, req *mcp.SubscribeRequest) error {
			if req.Params.URI == "mem://secret" {
				return errors.New("no")
			}
			return nil
		},
		UnsubscribeHandler: func(context.Context, *mcp.UnsubscribeRequest) error { return nil },
	})
	if era == "modern" { // the SDK answers initialize all the same; others do not
		s.AddReceivingMiddleware(func(next mcp.MethodHandler) mcp.MethodHandler {
			return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
				if method == "initialize" {
					return nil, errors.New("initialize is none of 2026-07-28")
				}
				return next(ctx, method, req)
			}
		})
	}
	addTools(s)
	read := func(_ context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: req.Params.URI, Text: "the note"}}}, nil
	}
	s.AddResource(&mcp.Resource{URI: "mem://note", Name: "note"}, read)
	s.AddResource(&mcp.Resource{URI: "mem://secret", Name: "secret"}, read)
	s.AddPrompt(&mcp.Prompt{Name: "hello"}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{Text: "hello"}}}}, nil
	})
	return s
}

type textArgs struct {
	Text string `json:"text,omitempty"`
}

func say(format string, args ...any) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: fmt.Sprintf(format, args...)}}}
}

func tool(s *mcp.Server, name string, f func(ctx context.Context, req *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error)) {
	mcp.AddTool(s, &mcp.Tool{Name: name}, func(ctx context.Context, req *mcp.CallToolRequest, in textArgs) (*mcp.CallToolResult, any, error) {
		res, err := f(ctx, req, in.Text)
		return res, nil, err
	})
}

// asking returns a tool that asks its client for questions, all at once.
func asking(questions mcp.InputRequestMap, answer func(mcp.InputResponseMap) string) func(context.Context, *mcp.CallToolRequest, string) (*mcp.CallToolResult, error) {
	return func(_ context.Context, req *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error) {
		if len(req.Params.InputResponses) == 0 {
			return &mcp.CallToolResult{InputRequests: questions, RequestState: "state of " + text}, nil
		}
		if req.Params.RequestState != "state of "+text {
			return nil, fmt.Errorf("state is %q", req.Params.RequestState)
		}
		return say("%s", answer(req.Params.InputResponses)), nil
	}
}

func addTools(s *mcp.Server) {
	tool(s, "echo", func(ctx context.Context, req *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error) {
		_ = req.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Logger: "echo", Data: text}) // unwanted is fine
		_ = req.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "debug", Logger: "echo", Data: "too much"})
		if token := req.Params.GetProgressToken(); token != nil {
			_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: 1, Message: text})
		}
		return say("%s", text), nil
	})
	elicit := &mcp.ElicitParams{Message: "Sure?", RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}}}}
	sample := &mcp.CreateMessageParams{MaxTokens: 5, Messages: []*mcp.SamplingMessage{{Role: "user", Content: &mcp.TextContent{Text: "Say it"}}}}
	elicited := func(r mcp.InputResponse) string {
		e := r.(*mcp.ElicitResult)
		return fmt.Sprint(e.Action, " ", e.Content["name"])
	}
	tool(s, "ask", asking(mcp.InputRequestMap{"q": elicit}, func(r mcp.InputResponseMap) string { return elicited(r["q"]) }))
	tool(s, "sample", asking(mcp.InputRequestMap{"s": sample}, func(r mcp.InputResponseMap) string {
		switch m := r["s"].(type) {
		case *mcp.CreateMessageResult:
			return m.Content.(*mcp.TextContent).Text
		case *mcp.CreateMessageWithToolsResult:
			return m.Content[0].(*mcp.TextContent).Text
		default:
			return fmt.Sprintf("%T", m)
		}
	}))
	tool(s, "roots", asking(mcp.InputRequestMap{"r": &mcp.ListRootsParams{}}, func(r mcp.InputResponseMap) string {
		return r["r"].(*mcp.ListRootsResult).Roots[0].URI
	}))
	tool(s, "askboth", asking(mcp.InputRequestMap{"q": elicit, "r": &mcp.ListRootsParams{}}, func(r mcp.InputResponseMap) string {
		return elicited(r["q"]) + " " + r["r"].(*mcp.ListRootsResult).Roots[0].URI
	}))
	tool(s, "hang", func(ctx context.Context, req *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error) {
		_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Message: "hang"})
		<-ctx.Done()
		s.AddTool(&mcp.Tool{Name: "cancelled", InputSchema: map[string]any{"type": "object"}}, nil)
		return nil, ctx.Err()
	})
	tool(s, "grow", func(_ context.Context, _ *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error) {
		tool(s, text, func(context.Context, *mcp.CallToolRequest, string) (*mcp.CallToolResult, error) {
			return say("new"), nil
		})
		return say("grown"), nil
	})
	tool(s, "touch", func(ctx context.Context, _ *mcp.CallToolRequest, text string) (*mcp.CallToolResult, error) {
		return say("touched"), s.ResourceUpdated(ctx, &mcp.ResourceUpdatedNotificationParams{URI: text})
	})
	type mirrored struct {
		Region string `json:"region"`
		Count  int    `json:"count"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "mirrored", InputSchema: json.RawMessage(`{"type":"object","properties":{
		"region":{"type":"string","x-mcp-header":"Region"},"count":{"type":"integer","x-mcp-header":"Count"}}}`)},
		func(_ context.Context, _ *mcp.CallToolRequest, in mirrored) (*mcp.CallToolResult, any, error) {
			return say("%s %d", in.Region, in.Count), nil, nil
		})
	tool(s, "fail", func(context.Context, *mcp.CallToolRequest, string) (*mcp.CallToolResult, error) {
		return nil, errors.New("failed")
	})
}

// kinds are the kinds of backend.
var kinds = []string{"http", "go", "stdio"}

// backend returns a backend of one kind with a server of one era, not wrapped.
func backend(t testing.TB, kind, era, instance string) router.Backend {
	t.Helper()
	var b router.Backend
	var err error
	switch kind {
	case "stdio":
		b, err = stdio.New(stdio.Options{Instance: instance, Command: []string{os.Args[0]}, Env: []string{"ERAS_TEST_SERVER=" + era}})
	case "go":
		b, err = gosdk.New(instance, sdkServer(era), nil)
	case "http":
		server := sdkServer(era)
		h := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server },
			&mcp.StreamableHTTPOptions{Stateless: era == "modern", PropagateRequestCancellation: era == "modern"}))
		t.Cleanup(h.Close)
		b, err = upstream.New(upstream.Options{Instance: instance, URL: h.URL})
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wrapped returns the backend as this package makes it.
func wrapped(t testing.TB, kind, era string, opts eras.Options) router.Backend {
	t.Helper()
	if opts.Instance == "" {
		opts.Instance = router.NewInstanceID()
	}
	b := eras.Wrap(backend(t, kind, era, opts.Instance), opts)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// noLeak fails the test if a goroutine of this package is left at its end.
func noLeak(t *testing.T) {
	t.Cleanup(func() {
		var stacks string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
			buf := make([]byte, 1<<20)
			stacks = string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(stacks, "ripstop/router/eras.") {
				return
			}
		}
		t.Errorf("goroutines are left:\n%s", stacks)
	})
}
