package demo_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router/demo"
	"ripstop/router/gosdk"
	"ripstop/router/upstream"
)

const (
	legacy = "2025-11-25"
	modern = "2026-07-28"
)

var eras = []string{legacy, modern}

// dialer connects clients to one demo server.
type dialer func(t *testing.T, version string, opts *mcp.ClientOptions) *mcp.ClientSession

// inProcess serves a demo server without a network.
func inProcess(t *testing.T) dialer {
	rt := upstream.InProcess(gosdk.Handler(demo.New(nil), nil))
	t.Cleanup(func() { _ = rt.(io.Closer).Close() })
	return func(t *testing.T, version string, opts *mcp.ClientOptions) *mcp.ClientSession {
		return connect(t, version, &http.Client{Transport: rt}, "http://demo/mcp", opts)
	}
}

// overHTTP serves a demo server on a port.
func overHTTP(t *testing.T) dialer {
	s := httptest.NewServer(gosdk.Handler(demo.New(nil), nil))
	t.Cleanup(s.Close)
	return func(t *testing.T, version string, opts *mcp.ClientOptions) *mcp.ClientSession {
		return connect(t, version, s.Client(), s.URL, opts)
	}
}

func connect(t *testing.T, version string, hc *http.Client, url string, opts *mcp.ClientOptions) *mcp.ClientSession {
	t.Helper()
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, opts)
	cs, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: hc}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { cs.Close() })
	if got := cs.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("negotiated %s, want %s", got, version)
	}
	return cs
}

// call calls a tool and returns its text and whether it is an error.
func call(t *testing.T, cs *mcp.ClientSession, tool string, args any) (string, bool) {
	t.Helper()
	res, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	if len(res.Content) != 1 {
		t.Fatalf("%s: %d contents", tool, len(res.Content))
	}
	return res.Content[0].(*mcp.TextContent).Text, res.IsError
}

func eachEra(t *testing.T, test func(t *testing.T, dial dialer, version string)) {
	for name, serve := range map[string]func(*testing.T) dialer{"inprocess": inProcess, "http": overHTTP} {
		for _, version := range eras {
			t.Run(name+"/"+version, func(t *testing.T) { test(t, serve(t), version) })
		}
	}
}

func TestTools(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		cs := dial(t, version, nil)
		res, err := cs.ListTools(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, tool := range res.Tools {
			got = append(got, tool.Name)
			if tool.Title == "" || tool.Description == "" || tool.Annotations == nil {
				t.Errorf("%s lacks a title, description or annotations", tool.Name)
			}
			if readOnly := tool.Name != "remember"; tool.Annotations.ReadOnlyHint != readOnly {
				t.Errorf("%s: readOnlyHint is %t", tool.Name, !readOnly)
			}
		}
		if want := []string{"add", "ask", "count", "echo", "now", "recall", "remember"}; !slices.Equal(got, want) {
			t.Errorf("tools %v, want %v", got, want)
		}
		for _, tt := range []struct {
			tool   string
			args   any
			want   string // contained
			failed bool
		}{
			{"echo", map[string]any{"text": "hi ☃"}, "hi ☃", false},
			{"add", map[string]any{"a": 2, "b": 0.5}, `{"sum":2.5}`, false},
			{"add", map[string]any{"a": 1.7e308, "b": 1.7e308}, "more than a float64", true},
			{"add", map[string]any{"a": "2", "b": 1}, "validating", true},
			{"count", map[string]any{"to": 2, "delay_ms": 0}, `{"counted":2}`, false},
			{"count", map[string]any{"to": 0}, "minimum", true},
			{"count", map[string]any{"to": 100000}, "maximum", true},
			{"echo", map[string]any{}, "text", true},
		} {
			got, failed := call(t, cs, tt.tool, tt.args)
			if !strings.Contains(got, tt.want) || failed != tt.failed {
				t.Errorf("%s(%v) = %q, error %t; want %q, error %t", tt.tool, tt.args, got, failed, tt.want, tt.failed)
			}
		}
	})
}

func TestNow(t *testing.T) {
	cs := inProcess(t)(t, modern, nil)
	before := time.Now().Unix()
	res, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "now"})
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		Time time.Time
		Unix int64
	}
	raw, _ := json.Marshal(res.StructuredContent)
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	if out.Unix < before || out.Unix > time.Now().Unix() || out.Time.Unix() != out.Unix {
		t.Errorf("now = %s", raw)
	}
}

func TestCountReportsProgress(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		got := make(chan float64, 10)
		cs := dial(t, version, &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			got <- r.Params.Progress
		}})
		p := &mcp.CallToolParams{Name: "count", Arguments: map[string]any{"to": 3, "delay_ms": 1}}
		p.SetProgressToken("t")
		if _, err := cs.CallTool(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		for want := 1.0; want <= 3; want++ {
			if v := <-got; v != want {
				t.Errorf("progress %v, want %v", v, want)
			}
		}
	})
}

// TestCountStops cancels a count that would take a quarter of an hour, and
// waits for the tool itself to return.
func TestCountStops(t *testing.T) {
	for _, version := range eras {
		t.Run(version, func(t *testing.T) {
			server := demo.New(nil)
			returned := make(chan string, 1)
			server.AddReceivingMiddleware(func(next mcp.MethodHandler) mcp.MethodHandler {
				return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
					res, err := next(ctx, method, req)
					if r, ok := res.(*mcp.CallToolResult); ok {
						returned <- r.Content[0].(*mcp.TextContent).Text
					}
					return res, err
				}
			})
			s := httptest.NewServer(gosdk.Handler(server, nil))
			t.Cleanup(s.Close)
			ctx, cancel := context.WithCancel(t.Context())
			cs := connect(t, version, s.Client(), s.URL, &mcp.ClientOptions{
				ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) { cancel() },
			})
			p := &mcp.CallToolParams{Name: "count", Arguments: map[string]any{"to": 1000, "delay_ms": 200}}
			p.SetProgressToken(1)
			if _, err := cs.CallTool(ctx, p); err == nil {
				t.Error("a cancelled call returned")
			}
			select {
			case got := <-returned:
				if !strings.Contains(got, "cancelled after counting to") {
					t.Errorf("got %q", got)
				}
			case <-time.After(10 * time.Second):
				t.Error("the tool still runs")
			}
		})
	}
}

func TestAsk(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		action := "accept"
		cs := dial(t, version, &mcp.ClientOptions{ElicitationHandler: func(_ context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			if r.Params.Message != "why?" {
				t.Errorf("asked %q", r.Params.Message)
			}
			if action != "accept" {
				return &mcp.ElicitResult{Action: action}, nil
			}
			return &mcp.ElicitResult{Action: action, Content: map[string]any{"answer": "because"}}, nil
		}})
		for _, tt := range []struct{ action, want string }{
			{"accept", `{"action":"accept","answer":"because"}`},
			{"decline", `{"action":"decline"}`},
		} {
			action = tt.action
			if got, failed := call(t, cs, "ask", map[string]any{"question": "why?"}); got != tt.want || failed {
				t.Errorf("%s: got %s, error %t", tt.action, got, failed)
			}
		}
	})
}

func TestAskWithoutElicitation(t *testing.T) {
	dial := inProcess(t)
	if got, failed := call(t, dial(t, legacy, nil), "ask", map[string]any{"question": "why?"}); !failed || !strings.Contains(got, "elicitation") {
		t.Errorf("legacy: %q, error %t", got, failed)
	}
	_, err := dial(t, modern, nil).CallTool(t.Context(), &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{"question": "why?"}})
	var we *jsonrpc.Error
	if !errors.As(err, &we) || we.Code != mcp.CodeMissingRequiredClientCapabilities {
		t.Errorf("modern: %v, want code %d", err, mcp.CodeMissingRequiredClientCapabilities)
	}
}

func TestMemory(t *testing.T) {
	dial := inProcess(t)
	a, b := dial(t, legacy, nil), dial(t, legacy, nil)
	for _, tt := range []struct {
		cs     *mcp.ClientSession
		tool   string
		args   map[string]any
		want   string
		failed bool
	}{
		{a, "recall", map[string]any{"key": "k"}, "nothing yet", true},
		{a, "remember", map[string]any{"key": "k", "value": "1"}, `"replaced":false`, false},
		{a, "remember", map[string]any{"key": "k", "value": "2"}, `"replaced":true`, false},
		{a, "recall", map[string]any{"key": "k"}, `"value":"2"`, false},
		{a, "recall", map[string]any{"key": "x"}, "remembered: k", true},
		{b, "recall", map[string]any{"key": "k"}, "nothing yet", true},
		{a, "remember", map[string]any{"key": "", "value": "1"}, "at least one", true},
		{a, "remember", map[string]any{"key": "k", "value": strings.Repeat("x", 5000)}, "4096", true},
		{dial(t, modern, nil), "remember", map[string]any{"key": "k", "value": "1"}, "initialize", true},
		{dial(t, modern, nil), "recall", map[string]any{"key": "k"}, "initialize", true},
	} {
		got, failed := call(t, tt.cs, tt.tool, tt.args)
		if !strings.Contains(got, tt.want) || failed != tt.failed {
			t.Errorf("%s(%v) = %.200q, error %t; want %q, error %t", tt.tool, tt.args, got, failed, tt.want, tt.failed)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	cs := inProcess(t)(t, legacy, nil)
	for i := range 64 {
		if got, failed := call(t, cs, "remember", map[string]any{"key": string(rune('a' + i)), "value": "v"}); failed {
			t.Fatal(got)
		}
	}
	if got, failed := call(t, cs, "remember", map[string]any{"key": "one more", "value": "v"}); !failed || !strings.Contains(got, "limit") {
		t.Errorf("65th value: %q, error %t", got, failed)
	}
	if got, failed := call(t, cs, "remember", map[string]any{"key": "a", "value": "w"}); failed {
		t.Errorf("replacing: %q", got)
	}
}

func TestResources(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		cs := dial(t, version, nil)
		read := func(uri string) (string, error) {
			res, err := cs.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: uri})
			if err != nil {
				return "", err
			}
			return res.Contents[0].Text, nil
		}
		if got, err := read("demo://greeting/J%C3%BCrgen%20A"); err != nil || got != "Hello, Jürgen A!" {
			t.Errorf("greeting: %q, %v", got, err)
		}
		got, err := read("demo://clock")
		if _, perr := time.Parse(time.RFC3339Nano, got); err != nil || perr != nil {
			t.Errorf("clock: %q, %v", got, err)
		}
		for _, uri := range []string{"demo://nothing", "demo://greeting/"} {
			if got, err := read(uri); err == nil {
				t.Errorf("%s = %q, want an error", uri, got)
			}
		}
	})
}

// TestClock runs on a clock of its own, which also proves that nothing is left
// running: synctest fails if a goroutine outlives the test.
func TestClock(t *testing.T) {
	for _, version := range eras {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := demo.New(nil)
				notices := make(chan string, 100)
				server.AddSendingMiddleware(func(next mcp.MethodHandler) mcp.MethodHandler {
					return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
						if method == "notifications/resources/updated" {
							notices <- method
						}
						return next(ctx, method, req)
					}
				})
				rt := upstream.InProcess(gosdk.Handler(server, nil))
				updated := make(chan string, 100)
				cs := connect(t, version, &http.Client{Transport: rt}, "http://demo/", &mcp.ClientOptions{
					ResourceUpdatedHandler: func(_ context.Context, r *mcp.ResourceUpdatedNotificationRequest) { updated <- r.Params.URI },
				})
				time.Sleep(time.Hour)
				if err := cs.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "demo://clock"}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(11 * time.Second)
				if n := len(updated); n != 5 {
					t.Errorf("%d updates in 11 s, want 5", n)
				}
				if err := cs.Unsubscribe(t.Context(), &mcp.UnsubscribeParams{URI: "demo://clock"}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				if n, m := len(notices), len(updated); n != 5 || m != 5 {
					t.Errorf("%d notifications sent, %d received, want 5", n, m)
				}
				cs.Close()
				if err := rt.(io.Closer).Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestClockForgetsSessions ends a session that did not unsubscribe.
func TestClockForgetsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := demo.New(nil)
		var notices atomic.Int64
		server.AddSendingMiddleware(func(next mcp.MethodHandler) mcp.MethodHandler {
			return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
				notices.Add(1)
				return next(ctx, method, req)
			}
		})
		rt := upstream.InProcess(gosdk.Handler(server, nil))
		cs := connect(t, legacy, &http.Client{Transport: rt}, "http://demo/", nil)
		if err := cs.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "demo://clock"}); err != nil {
			t.Fatal(err)
		}
		cs.Close()
		time.Sleep(time.Hour)
		if n := notices.Load(); n != 0 {
			t.Errorf("%d notifications to nobody", n)
		}
		if err := rt.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSubscribeToWhatNeverChanges(t *testing.T) {
	cs := inProcess(t)(t, legacy, nil)
	err := cs.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "demo://greeting/x"})
	if err == nil || !strings.Contains(err.Error(), "demo://clock") {
		t.Errorf("got %v", err)
	}
}

func TestPrompt(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		cs := dial(t, version, nil)
		res, err := cs.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "haiku", Arguments: map[string]string{"topic": "rain"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Messages[0].Content.(*mcp.TextContent).Text; !strings.Contains(got, "about rain") {
			t.Errorf("got %q", got)
		}
		if _, err := cs.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "haiku"}); err == nil || !strings.Contains(err.Error(), "topic") {
			t.Errorf("without a topic: %v", err)
		}
	})
}

func TestCompletion(t *testing.T) {
	eachEra(t, func(t *testing.T, dial dialer, version string) {
		cs := dial(t, version, nil)
		for _, tt := range []struct {
			ref   *mcp.CompleteReference
			name  string
			value string
			want  []string
		}{
			{&mcp.CompleteReference{Type: "ref/prompt", Name: "haiku"}, "topic", "Q", []string{"quorum"}},
			{&mcp.CompleteReference{Type: "ref/prompt", Name: "haiku"}, "topic", "zz", []string{}},
			{&mcp.CompleteReference{Type: "ref/resource", URI: "demo://greeting/{name}"}, "name", "a", []string{"Ada", "Alan"}},
		} {
			res, err := cs.Complete(t.Context(), &mcp.CompleteParams{Ref: tt.ref, Argument: mcp.CompleteParamsArgument{Name: tt.name, Value: tt.value}})
			if err != nil {
				t.Errorf("%s: %v", tt.value, err)
			} else if !slices.Equal(res.Completion.Values, tt.want) {
				t.Errorf("%s: got %v, want %v", tt.value, res.Completion.Values, tt.want)
			}
		}
		_, err := cs.Complete(t.Context(), &mcp.CompleteParams{Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: "other"}, Argument: mcp.CompleteParamsArgument{Name: "x"}})
		if err == nil {
			t.Error("completed an unknown prompt")
		}
	})
}
