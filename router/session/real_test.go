package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/demo"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
	"ripstop/router/stdio"
)

// realServer is the demo server with a tool that tells its process.
func realServer() *mcp.Server {
	s := demo.New(nil)
	mcp.AddTool(s, &mcp.Tool{Name: "pid"}, func(context.Context, *mcp.CallToolRequest, any) (*mcp.CallToolResult, map[string]int, error) {
		return nil, map[string]int{"pid": os.Getpid()}, nil
	})
	return s
}

func runServer() {
	_ = realServer().Run(context.Background(), &mcp.StdioTransport{}) // ends with stdin
}

// spy is a backend whose sessions can be ended behind its client's back.
type spy struct {
	router.Backend
	last string
}

func (s *spy) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	r, err := s.Backend.Serve(ctx, req, out)
	if r != nil && r.Session != "" {
		s.last = r.Session
	}
	return r, err
}

func TestSDKServer(t *testing.T) {
	t.Parallel()
	inner, err := gosdk.New(here, realServer(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &spy{Backend: inner}
	survive(t, b, func(*fixture, string) {
		if _, err := inner.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: b.last}, router.Discard); err != nil {
			t.Fatal(err)
		}
	})
}

func TestProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, ends := range map[string]bool{"it is the session": true, "it is started again": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := stdio.New(stdio.Options{Instance: here, Command: []string{exe}, Env: []string{"SESSION_TEST_ROLE=server"}, EndWithProcess: ends})
			if err != nil {
				t.Fatal(err)
			}
			kill := func(f *fixture, id string) {
				var r struct {
					Result struct {
						Content struct{ PID int } `json:"structuredContent"`
					}
				}
				if err := json.Unmarshal([]byte(f.tool(id, "pid", `{}`)), &r); err != nil || r.Result.Content.PID == 0 {
					t.Fatalf("pid: %+v, %v", r, err)
				}
				if err := syscall.Kill(r.Result.Content.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if !ends { // the layer has nothing to do
				f := setup(t, nil)
				f.l = f.another(b, nil)
				id := f.open()
				f.say(f.l, id, initialized)
				kill(f, id)
				contains(t, f.again(id), `"ripstop/reinitialized":{"cause":`)
				return
			}
			survive(t, b, kill)
		})
	}
}

// tool calls a tool.
func (f *fixture) tool(id, name, args string) string {
	f.t.Helper()
	return f.say(f.l, id, `{"jsonrpc":"2.0","id":"t","method":"tools/call","params":{"name":"`+name+`","arguments":`+args+`}}`)
}

// again calls until the loss of the server is noticed and over.
func (f *fixture) again(id string) (body string) {
	f.t.Helper()
	eventually(f.t, "the server answers again", func() bool {
		r, err := f.l.Serve(f.t.Context(), request(f.t, id, `{"jsonrpc":"2.0","id":"t","method":"tools/call","params":{"name":"recall","arguments":{"key":"k"}}}`), nil)
		if err != nil {
			return false // it was in flight when the process died
		}
		body = string(r.Body)
		return strings.Contains(body, "reinitialized") || strings.Contains(body, "no value is remembered")
	})
	return body
}

// survive is a session of a real server that is lost behind the layer's back.
func survive(t *testing.T, b router.Backend, lose func(f *fixture, id string)) {
	f := setup(t, nil)
	f.l = f.another(b, nil)
	id := f.open()
	f.say(f.l, id, initialized)
	contains(t, f.tool(id, "remember", `{"key":"k","value":"v"}`), `"key":"k"`)
	contains(t, f.tool(id, "recall", `{"key":"k"}`), `"value":"v"`)
	contains(t, f.say(f.l, id, `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"demo://clock"}}`), `"result"`)
	g := f.listen(f.l, id, "")
	g.opened(t)
	contains(t, g.wait(t), "resources/updated")
	f.elicit(id)

	lose(f, id)
	contains(t, f.again(id), "no value is remembered")
	if n := f.l.Stats().Reinitialized; n != 1 {
		t.Errorf("reinitialized %d times, want once", n)
	}
	var since []string
	for len(since) < 2 || !strings.Contains(since[len(since)-1], "resources/updated") || !slices.ContainsFunc(since, func(m string) bool { return strings.Contains(m, "list_changed") }) {
		since = append(since, g.wait(t)) // the subscription lives on
	}
	f.elicit(id)
	if _, err := f.l.Serve(t.Context(), &router.Request{Op: router.OpEnd, Server: server, Session: id}, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.end(t); err != nil {
		t.Errorf("listener: %v", err)
	}
}

// elicit has the server ask the client, and answers.
func (f *fixture) elicit(id string) {
	f.t.Helper()
	req := request(f.t, id, `{"jsonrpc":"2.0","id":"e","method":"tools/call","params":{"name":"ask","arguments":{"question":"colour?"}}}`)
	req.StreamID = post
	out, done := newStream(), make(chan string, 1)
	go func() {
		r, err := f.l.Serve(f.t.Context(), req, out)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(r.Body)
	}()
	for {
		m := parse(f.t, out.wait(f.t))
		if m.Method != "elicitation/create" {
			continue
		}
		answer := jsonrpc.NewResult(bytes.Clone(m.ID), []byte(`{"action":"accept","content":{"answer":"red"}}`))
		if r, err := f.l.Serve(f.t.Context(), request(f.t, id, string(answer)), nil); err != nil || r.Status >= 300 {
			f.t.Fatalf("answer: %+v, %v", r, err)
		}
		break
	}
	select {
	case body := <-done:
		contains(f.t, body, `"answer":"red"`)
	case <-time.After(10 * time.Second):
		f.t.Fatal("the call does not end")
	}
}

var _ session.Keeper = (*keeper)(nil)
