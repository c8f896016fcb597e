package aggregate_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router/aggregate"
)

const patience = 20 * time.Second // for things that take milliseconds

// sdkServer returns a real server: the same for both eras, so that all names
// are those of the other members too.
func sdkServer(name string) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: name, Version: "1"}, &mcp.ServerOptions{
		Instructions:       "I am " + name + ".",
		SubscribeHandler:   func(context.Context, *mcp.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *mcp.UnsubscribeRequest) error { return nil },
		CompletionHandler: func(_ context.Context, req *mcp.CompleteRequest) (*mcp.CompleteResult, error) {
			return &mcp.CompleteResult{Completion: mcp.CompletionResultDetails{Values: []string{req.Params.Ref.Name + req.Params.Ref.URI}}}, nil
		},
		PageSize: 2,
	})
	type args struct {
		Text string `json:"text"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo"}, func(ctx context.Context, req *mcp.CallToolRequest, in args) (*mcp.CallToolResult, any, error) {
		if token := req.Params.GetProgressToken(); token != nil {
			req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: 1, Message: name})
		}
		return &mcp.CallToolResult{Content: []mcp.Content{
			&mcp.TextContent{Text: name + ": " + in.Text},
			&mcp.ResourceLink{URI: "mem://note", Name: "note"},
		}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask"}, func(_ context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		if len(req.Params.InputResponses) == 0 {
			return &mcp.CallToolResult{
				InputRequests: mcp.InputRequestMap{"q": &mcp.ElicitParams{Message: name + "?", RequestedSchema: map[string]any{"type": "object"}}},
				RequestState:  "state of " + name,
			}, nil, nil
		}
		answer := req.Params.InputResponses["q"].(*mcp.ElicitResult)
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: answer.Action + " to " + req.Params.RequestState}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "hang"}, func(ctx context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Message: "hang"})
		<-ctx.Done()
		return nil, nil, ctx.Err()
	})
	read := func(_ context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: req.Params.URI, Text: name}}}, nil
	}
	s.AddResource(&mcp.Resource{URI: "mem://note", Name: "note"}, read)
	s.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "mem://by/{id}", Name: "by"}, read)
	s.AddPrompt(&mcp.Prompt{Name: "hello"}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.EmbeddedResource{
			Resource: &mcp.ResourceContents{URI: "mem://note", Text: name}}}}}, nil
	})
	return s
}

// sdkNet returns two real servers. One speaks the legacy era only; the other
// both, though it keeps no session in the legacy era.
func sdkNet() (n *net, legacy, stateless *mcp.Server) {
	legacy, stateless = sdkServer("old"), sdkServer("new")
	n = newNet()
	n.add("old", overHTTP{mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return legacy }, nil)})
	n.add("new", overHTTP{mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return stateless },
		&mcp.StreamableHTTPOptions{Stateless: true, PropagateRequestCancellation: true})})
	return n, legacy, stateless
}

// heard collects what a client is notified of.
type heard chan string

func (h heard) wait(t *testing.T, want string) {
	t.Helper()
	var got []string
	for timeout := time.After(patience); ; {
		select {
		case what := <-h:
			if what == want {
				return
			}
			got = append(got, what)
		case <-timeout:
			t.Fatalf("not notified of %q, only of %q", want, got)
		}
	}
}

func sdkClient(t *testing.T, b *aggregate.Backend, version string) (*mcp.ClientSession, heard) {
	h := make(heard, 100)
	c := mcp.NewClient(&mcp.Implementation{Name: "tester", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(_ context.Context, req *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			h <- "elicit " + req.Params.Message
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{}}, nil
		},
		ToolListChangedHandler: func(context.Context, *mcp.ToolListChangedRequest) { h <- "tools changed" },
		ResourceUpdatedHandler: func(_ context.Context, req *mcp.ResourceUpdatedNotificationRequest) { h <- "updated " + req.Params.URI },
		ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
			h <- fmt.Sprintf("progress %v of %s", req.Params.ProgressToken, req.Params.Message)
		},
	})
	s, err := c.Connect(t.Context(), transport{b}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close client: %v", err)
		}
	})
	return s, h
}

// noLeak fails the test if a goroutine of this package is left at its end.
func noLeak(t *testing.T) {
	t.Cleanup(func() {
		var stacks string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
			buf := make([]byte, 1<<20)
			stacks = string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(stacks, "ripstop/router/aggregate.") {
				return
			}
		}
		t.Errorf("goroutines are left:\n%s", stacks)
	})
}

func TestRealServers(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			noLeak(t)
			n, old, stateless := sdkNet()
			b := start(t, n)
			s, heard := sdkClient(t, b, version)
			if got := s.InitializeResult().ProtocolVersion; got != version {
				t.Fatalf("negotiated %s, want %s", got, version)
			}
			checkLists(t, s)
			for _, server := range []string{"old", "new"} {
				checkServer(t, s, heard, server)
			}
			if version == "2025-11-25" {
				checkQuestions(t, s, heard, "old")
			} else {
				checkQuestions(t, s, heard, "new")
			}
			checkChanges(t, s, heard, old, "old")
			checkChanges(t, s, heard, stateless, "new")
			n.add("third", overHTTP{mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return old }, nil)})
			heard.wait(t, "tools changed")
			tools, err := s.ListTools(t.Context(), nil)
			if err != nil || !slices.ContainsFunc(tools.Tools, func(x *mcp.Tool) bool { return x.Name == "third__echo" }) {
				t.Errorf("tools after a server came: %v, %v", tools, err)
			}
		})
	}
}

func checkLists(t *testing.T, s *mcp.ClientSession) {
	t.Helper()
	ctx := t.Context()
	var got []string
	for x, err := range s.Tools(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.Name)
	}
	for x, err := range s.Prompts(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.Name)
	}
	for x, err := range s.Resources(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.URI)
	}
	for x, err := range s.ResourceTemplates(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.URITemplate)
	}
	equal(t, "everything", got, []string{"new__ask", "new__echo", "new__hang", "old__ask", "old__echo", "old__hang",
		"new__hello", "old__hello", "ripstop://new/mem://note", "ripstop://old/mem://note", "ripstop://new/mem://by/{id}", "ripstop://old/mem://by/{id}"})
}

// checkServer uses all that one server has.
func checkServer(t *testing.T, s *mcp.ClientSession, heard heard, server string) {
	t.Helper()
	ctx := t.Context()
	note := "ripstop://" + server + "/mem://note"
	params := &mcp.CallToolParams{Name: server + "__echo", Arguments: map[string]any{"text": "hi"}}
	params.SetProgressToken("p-" + server)
	call, err := s.CallTool(ctx, params)
	if err != nil {
		t.Fatalf("%s: %v", server, err)
	}
	equal(t, "text", call.Content[0].(*mcp.TextContent).Text, server+": hi")
	equal(t, "link", call.Content[1].(*mcp.ResourceLink).URI, note)
	heard.wait(t, "progress p-"+server+" of "+server)

	for _, uri := range []string{note, "ripstop://" + server + "/mem://by/7"} {
		read, err := s.ReadResource(ctx, &mcp.ReadResourceParams{URI: uri})
		if err != nil {
			t.Fatalf("%s: %v", uri, err)
		}
		equal(t, "read", []string{read.Contents[0].URI, read.Contents[0].Text}, []string{uri, server})
	}
	prompt, err := s.GetPrompt(ctx, &mcp.GetPromptParams{Name: server + "__hello"})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "prompt", prompt.Messages[0].Content.(*mcp.EmbeddedResource).Resource.URI, note)
	complete, err := s.Complete(ctx, &mcp.CompleteParams{Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: server + "__hello"}, Argument: mcp.CompleteParamsArgument{Name: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "completion", complete.Completion.Values, []string{"hello"})
	for _, params := range []*mcp.CallToolParams{{Name: server + "__none"}, {Name: "none__echo"}} {
		if _, err := s.CallTool(ctx, params); err == nil || !strings.Contains(err.Error(), "unknown tool") {
			t.Errorf("%s: %v, want that the tool is unknown", params.Name, err)
		}
	}
	if _, err := s.ReadResource(ctx, &mcp.ReadResourceParams{URI: "ripstop://" + server + "/mem://none"}); err == nil {
		t.Error("a resource that is not there was read")
	}
}

// checkQuestions uses what only a member of the client's own era can do.
func checkQuestions(t *testing.T, s *mcp.ClientSession, heard heard, server string) {
	t.Helper()
	ctx := t.Context()
	call, err := s.CallTool(ctx, &mcp.CallToolParams{Name: server + "__ask", Arguments: map[string]any{}})
	if err != nil {
		t.Fatalf("ask: %v", err)
	}
	heard.wait(t, "elicit "+server+"?")
	equal(t, "answer", call.Content[0].(*mcp.TextContent).Text, "accept to state of "+server)
}

// checkChanges uses what a member tells of outside of calls, and the end of a
// call.
func checkChanges(t *testing.T, s *mcp.ClientSession, heard heard, real *mcp.Server, server string) {
	t.Helper()
	ctx := t.Context()
	hang, cancel := context.WithCancel(ctx)
	go func() {
		heard.wait(t, "progress h of hang")
		cancel()
	}()
	params := &mcp.CallToolParams{Name: server + "__hang", Arguments: map[string]any{}}
	params.SetProgressToken("h")
	if _, err := s.CallTool(hang, params); err == nil {
		t.Error("a cancelled call had a result")
	}

	note := "ripstop://" + server + "/mem://note"
	if err := s.Subscribe(ctx, &mcp.SubscribeParams{URI: note}); err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	// The subscription, and the stream to hear it on, may be on their way yet.
	updates := time.NewTicker(20 * time.Millisecond)
	defer updates.Stop()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			real.ResourceUpdated(ctx, &mcp.ResourceUpdatedNotificationParams{URI: "mem://note"})
			select {
			case <-updates.C:
			case <-done:
				return
			}
		}
	})
	heard.wait(t, "updated "+note)
	close(done)
	wg.Wait()
	real.AddPrompt(&mcp.Prompt{Name: "more"}, nil)
	mcp.AddTool(real, &mcp.Tool{Name: "more"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return nil, nil, nil
	})
	heard.wait(t, "tools changed")
}
