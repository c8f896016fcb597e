package aggregate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

// bubble runs a test on fake time; it fails if a goroutine is left behind.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

func TestInitialize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := start(t, newNet())
		for asked, want := range map[string]string{
			"2025-11-25": "2025-11-25", "2024-11-05": "2024-11-05", "2099-01-01": "2025-11-25", "2026-07-28": "2025-11-25",
		} {
			m := parse(t, strings.Replace(initialize, "2025-11-25", asked, 1))
			reply, err := b.Serve(t.Context(), &router.Request{Message: m}, router.Discard)
			got := show(reply, err)
			has(t, "initialize "+asked, got, `"protocolVersion":"`+want+`"`, `"serverInfo":{"name":"ripstop","version":"1.2.3"}`,
				`"tools":{"listChanged":true}`, `"prompts":{"listChanged":true}`, `"subscribe":true`, `"logging":{}`, `"completions":{}`)
		}
		bad := parse(t, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}`)
		has(t, "initialize without a version", show(b.Serve(t.Context(), &router.Request{Message: bad}, router.Discard)), "-32602")
		again := connect(t, b).request(initialize)
		has(t, "initialize in a session", show(b.Serve(t.Context(), again, router.Discard)), "400", "-32600")
	})
}

func TestLists(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		n.add("b", &fake{legacy: true, tools: []string{tool("echo"), tool("b1")}, resources: []string{`{"name":"r","uri":"file:///x"}`}})
		n.add("a", &fake{legacy: true, tools: []string{tool("echo"), tool("a1"), tool("a2")}, perPage: 2,
			templates: []string{`{"uriTemplate":"file:///{p}","name":"t"}`}, prompts: []string{}})
		c := connect(t, start(t, n))

		body := c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		equal(t, "tools", names(t, body, "tools", "name"), []string{"a__echo", "a__a1", "a__a2", "b__echo", "b__b1"})
		has(t, "tools/list", body, `{"name":"a__echo","inputSchema":{"type":"object"},"x-unknown":{"kept":[1,2.50]}}`)
		hasNot(t, "tools/list", body, "nextCursor", "resultType", "ttlMs")

		equal(t, "prompts", names(t, c.do(`{"jsonrpc":"2.0","id":2,"method":"prompts/list","params":{}}`), "prompts", "name"), []string{})
		body = c.do(`{"jsonrpc":"2.0","id":3,"method":"resources/list"}`)
		equal(t, "resources", names(t, body, "resources", "uri"), []string{"ripstop://b/file:///x"})
		equal(t, "their names", names(t, body, "resources", "name"), []string{"r"})
		body = c.do(`{"jsonrpc":"2.0","id":4,"method":"resources/templates/list"}`)
		equal(t, "templates", names(t, body, "resourceTemplates", "uriTemplate"), []string{"ripstop://a/file:///{p}"})
		has(t, "a cursor", c.do(`{"jsonrpc":"2.0","id":5,"method":"tools/list","params":{"cursor":"x"}}`), "-32602", "cursor")
	})
}

func TestCallsKeepEveryByte(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true}
		n.add("a", a)
		c := connect(t, start(t, n))
		body := c.do(`{"jsonrpc":"2.0", "id":"x", "params":{ "arguments":{"name":"b__c","n":1.00,"u":"\u00e9"},"name":"a__do__it","_meta":{"progressToken":7} },"method":"tools/call"}`)
		equal(t, "reply", body, `{"jsonrpc":"2.0","id":"x","result":{"content":[{"type":"text","text":"do__it"}]}}`)
		got := a.requests("tools/call")[0]
		equal(t, "request", string(got.Message.Raw),
			`{"jsonrpc":"2.0", "id":"x", "params":{ "arguments":{"name":"b__c","n":1.00,"u":"\u00e9"},"name":"do__it","_meta":{"progressToken":7} },"method":"tools/call"}`)
		if got.Session != "s1" || got.Version != "2025-06-18" || got.Era != router.EraLegacy {
			t.Errorf("request in session %q, version %q, era %v; want those negotiated with the member", got.Session, got.Version, got.Era)
		}
		init := a.requests("initialize")[0].Message
		equal(t, "member's initialize", string(init.Params), string(parse(t, initialize).Params))
		if len(a.requests("notifications/initialized")) != 1 {
			t.Error("the member was not told that it is initialized")
		}
	})
}

func TestUnknownNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		n.add("demo", &fake{legacy: true})
		c := connect(t, start(t, n))
		for _, tt := range []struct{ raw, code string }{
			{`"method":"tools/call","params":{"name":"echo"}`, "200 -32602"},
			{`"method":"tools/call","params":{"name":"nope__echo"}`, "200 -32602"},
			{`"method":"tools/call","params":{}`, "200 -32602"},
			{`"method":"prompts/get","params":{"name":"p"}`, "200 -32602"},
			{`"method":"resources/read","params":{"uri":"file:///x"}`, "200 -32002"},
			{`"method":"resources/subscribe","params":{"uri":"ripstop://nope/x"}`, "200 -32002"},
			{`"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"}}`, "200 -32602"},
			{`"method":"completion/complete","params":{"ref":{"type":"ref/x"}}`, "200 -32602"},
			{`"method":"tasks/get","params":{"taskId":"1"}`, "200 -32601"},
			{`"method":"server/discover"`, "200 -32601"},
			{`"method":"logging/setLevel","params":{"level":"loud"}`, "200 -32602"},
		} {
			got := c.do(`{"jsonrpc":"2.0","id":1,` + tt.raw + `}`)
			status, code, _ := strings.Cut(tt.code, " ")
			has(t, tt.raw, got, status+" ", `"code":`+code)
		}
		has(t, "error", c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}`), "<server>__<name>", "demo")
		c.session = "abcdefghij-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
		has(t, "unknown session", c.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "404 ", "-32011")
		c.session = ""
		has(t, "no session", c.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "400 ", "-32600")
	})
}

func TestResourcesAreRewritten(t *testing.T) {
	content := `{"content":[{"type":"resource_link","uri":"file:///a","name":"uri"},{"type":"resource","resource":{"text":"uri","uri":"file:\/\/\/b"}},` +
		`{"type":"text","text":"\"uri\":\"file:///c\""}],"structuredContent":{"uri":"file:///d"}}`
	results := map[string]string{
		"tools/call":          content,
		"prompts/get":         `{"messages":[{"role":"user","content":{"type":"resource","resource":{"uri":"file:///a"}}},{"role":"user","content":[{"type":"resource_link","uri":"x:b"}]}]}`,
		"resources/read":      `{"contents":[{"uri":"file:///a","text":""},{"uri":"file:///a/b"}]}`,
		"completion/complete": `{"completion":{"values":["\"uri\""]}}`,
	}
	bubble(t, func(t *testing.T) {
		n := newNet()
		m := &fake{legacy: true, onCall: func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			if req.Message.Name == "none" {
				return &router.Reply{Body: jsonrpc.NewError(req.ID(), -32002, "not found", []byte(`{"uri":"none"}`))}, nil
			}
			return result(req, results[req.Method()]), nil
		}}
		n.add("m", m)
		c := connect(t, start(t, n))
		got := c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`)
		want := strings.NewReplacer(`"uri":"file:///a"`, `"uri":"ripstop://m/file:///a"`, `"uri":"file:\/`, `"uri":"ripstop://m/file:\/`).Replace(content)
		equal(t, "tool result", got, `{"jsonrpc":"2.0","id":1,"result":`+want+`}`)
		has(t, "prompt", c.do(`{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"m__p"}}`), `"ripstop://m/file:///a"`, `"ripstop://m/x:b"`)
		has(t, "resource", c.do(`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"ripstop://m/file:///a"}}`),
			`"ripstop://m/file:///a"`, `"ripstop://m/file:///a/b"`)
		equal(t, "uri read", m.requests("resources/read")[0].Message.Name, "file:///a")
		has(t, "missing resource", c.do(`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"ripstop://m/none"}}`), `{"uri":"ripstop://m/none"}`)
		for _, ref := range []string{`{"type":"ref/prompt","name":"%s"}`, `{"type":"ref/resource","uri":"%s"}`} {
			joined, plain := "m__p", "p"
			if strings.Contains(ref, "uri") {
				joined, plain = "ripstop://m/f:{x}", "f:{x}"
			}
			c.do(`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":` + fmt.Sprintf(ref, joined) + `,"argument":{"name":"x","value":"m__p"}}}`)
			seen := m.requests("completion/complete")
			equal(t, "completion", string(seen[len(seen)-1].Message.Params), `{"ref":`+fmt.Sprintf(ref, plain)+`,"argument":{"name":"x","value":"m__p"}}`)
		}
	})
}

func TestSlowAndFailingMembersAreLeftOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, log := newNet(), &logged{}
		slow := &fake{legacy: true, tools: []string{tool("late")}, delay: 8 * time.Second}
		dead := &fake{legacy: true, tools: []string{tool("x")}, fail: router.Errorf(router.ErrUnavailable, "dead")}
		n.add("dead", dead)
		n.add("good", &fake{legacy: true, tools: []string{tool("echo")}})
		n.add("junk", &fake{legacy: true, tools: []string{`{"name":`}})
		n.add("slow", slow)
		c := connect(t, start(t, n, withLog(log)))
		out := &sink{}
		stop := c.listen(out)
		defer stop()
		begin := time.Now()
		list := `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`
		equal(t, "tools", names(t, c.do(list), "tools", "name"), []string{"good__echo"})
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("the list took %v, want the 5 s a member may take", took)
		}
		slow.set(func(f *fake) { f.delay = 0 })
		equal(t, "told", len(out.take()), 0)
		equal(t, "tools, asked again", names(t, c.do(list), "tools", "name"), []string{"good__echo", "slow__late"})
		if took := time.Since(begin); took != 8*time.Second {
			t.Errorf("both took %v, want the 8 s until the slow member was there", took)
		}
		for _, name := range []string{"dead", "junk", "slow"} {
			if got := log.lines(`"server left out of lists" server=` + name); got != 1 {
				t.Errorf("%s: logged %d times, want once", name, got)
			}
		}
		synctest.Wait()
		has(t, "after the late member came", strings.Join(out.take(), " "), "tools/list_changed", "prompts/list_changed", "resources/list_changed")
		dead.set(func(f *fake) { f.fail = nil })
		equal(t, "tools later", names(t, c.do(list), "tools", "name"), []string{"dead__x", "good__echo", "slow__late"})
		if got := log.lines(`"server is in lists again" server=dead`); got != 1 {
			t.Errorf("recovery logged %d times, want once", got)
		}
	})
}

func TestMemberThatPagesForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		var many []string
		for i := range 500 {
			many = append(many, tool(fmt.Sprint(i)))
		}
		n.add("loop", &fake{legacy: true, tools: many, perPage: 1})
		n.add("ok", &fake{legacy: true, tools: []string{tool("x")}})
		c := connect(t, start(t, n))
		equal(t, "tools", names(t, c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`), "tools", "name"), []string{"ok__x"})
	})
}

func TestMessagesOfACall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		n.add("m", &fake{legacy: true, onCall: func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			for _, msg := range []string{
				`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":1}}`,
				`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}`,
				`{"jsonrpc":"2.0","method":"notifications/message","params":{"logger":"db","level":"info","data":"x"}}`,
				`junk`,
				`{"jsonrpc":"2.0","id":5,"result":{}}`,
				`{"jsonrpc":"2.0","method":"notifications/custom"}`,
			} {
				if err := out.Send(ctx, []byte(msg)); err != nil {
					return nil, err
				}
			}
			return result(req, `{}`), nil
		}})
		c, out := connect(t, start(t, n)), &sink{}
		c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x","_meta":{"progressToken":"tok"}}}`, out)
		equal(t, "messages", strings.Join(out.take(), "\n"), strings.Join([]string{
			`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":1}}`,
			`{"jsonrpc":"2.0","method":"notifications/message","params":{"logger":"m","level":"info","data":"x"}}`,
			`{"jsonrpc":"2.0","method":"notifications/message","params":{"logger":"m/db","level":"info","data":"x"}}`,
			`{"jsonrpc":"2.0","method":"notifications/custom"}`,
		}, "\n"))
	})
}

// TestQuestions lets two members ask the client at the same time, with the same
// id and progress token, and answers in the other order.
func TestQuestions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		ask := func(method string) *fake {
			return &fake{legacy: true, onCall: func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{"_meta":{"progressToken":1}}}`))
				<-ctx.Done()
				return nil, err
			}}
		}
		a, b := ask("elicitation/create"), ask("sampling/createMessage")
		n.add("a", a)
		n.add("b", b)
		c, out := connect(t, start(t, n)), &sink{}
		ctx, cancel := context.WithCancel(t.Context())
		for i, server := range []string{"a", "b"} {
			req := c.request(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%s__x"}}`, i, server))
			go c.b.Serve(ctx, req, out)
			synctest.Wait()
		}
		equal(t, "questions", strings.Join(out.take(), "\n"),
			`{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{"_meta":{"progressToken":1}}}`+"\n"+
				`{"jsonrpc":"2.0","id":2,"method":"sampling/createMessage","params":{"_meta":{"progressToken":2}}}`)
		c.do(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":2,"progress":1}}`)
		c.do(`{"jsonrpc":"2.0","id":2,"result":{"from":"b"}}`)
		c.do(`{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}`)
		c.do(`{"jsonrpc":"2.0","id":1,"result":{"twice":true}}`)
		c.do(`{"jsonrpc":"2.0","id":"z","result":{}}`)
		answers := func(f *fake) string {
			var got []string
			for _, r := range f.requests("") {
				if r.Message != nil {
					got = append(got, r.Session+string(r.Message.Raw))
				}
			}
			return strings.Join(got, " ")
		}
		equal(t, "answers to a", answers(a), `s1{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}`)
		equal(t, "answers to b", answers(b), `s1{"jsonrpc":"2.0","id":1,"result":{"from":"b"}}`)
		equal(t, "progress to b", string(b.requests("notifications/progress")[0].Message.Raw),
			`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}`)
		cancel()
		synctest.Wait()
	})
}

func TestMemberWithdrawsQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		n.add("a", &fake{legacy: true, onCall: func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			for _, msg := range []string{
				`{"jsonrpc":"2.0","id":"q","method":"elicitation/create"}`,
				`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"other"}}`,
				`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"q"}}`,
			} {
				if err := out.Send(ctx, []byte(msg)); err != nil {
					return nil, err
				}
			}
			return result(req, `{}`), nil
		}})
		c, out := connect(t, start(t, n)), &sink{}
		c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`, out)
		equal(t, "messages", strings.Join(out.take(), " "), `{"jsonrpc":"2.0","id":1,"method":"elicitation/create"} `+
			`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	})
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		hang := func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		a, b := &fake{legacy: true, onCall: hang}, &fake{legacy: true}
		n.add("a", a)
		n.add("b", b)
		c := connect(t, start(t, n))
		c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"b__x"}}`)
		done := make(chan string)
		go func() { done <- c.do(`{"jsonrpc":"2.0","id":"c1","method":"tools/call","params":{"name":"a__x"}}`) }()
		synctest.Wait()
		has(t, "the same id again", c.do(`{"jsonrpc":"2.0","id":"c1","method":"ping"}`), "400 ", "-32600")
		begin := time.Now()
		c.do(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c1","reason":"bored"}}`)
		has(t, "the call", <-done, "context canceled")
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("the call ended after %v, want the 2 s its member has to answer", took)
		}
		got := a.requests("notifications/cancelled")
		if len(got) != 1 || got[0].Session != "s1" {
			t.Fatalf("member got %d cancellations, want one in its session", len(got))
		}
		equal(t, "cancellation", string(got[0].Message.Raw), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c1","reason":"bored"}}`)
		if n := len(b.requests("notifications/cancelled")); n != 0 {
			t.Errorf("another member got %d cancellations, want none", n)
		}
		c.do(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"never"}}`)
	})
}

func TestSettingsReachAllMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a, b := &fake{legacy: true}, &fake{legacy: true}
		n.add("a", a)
		n.add("b", b)
		c := connect(t, start(t, n))
		call := func(server string) {
			c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + server + `__x"}}`)
		}
		call("a")
		equal(t, "setLevel", c.do(`{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"error"}}`), `{"jsonrpc":"2.0","id":2,"result":{}}`)
		c.do(`{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`)
		if len(b.requests("initialize")) != 0 {
			t.Error("a setting opened a session that nothing needs")
		}
		call("b")
		for name, f := range map[string]*fake{"a": a, "b": b} {
			got := f.requests("logging/setLevel")
			if len(got) != 1 {
				t.Fatalf("%s was told the level %d times, want once", name, len(got))
			}
			equal(t, name, string(got[0].Message.Params), `{"level":"error"}`)
		}
		if len(a.requests("notifications/roots/list_changed")) != 1 || len(b.requests("notifications/roots/list_changed")) != 0 {
			t.Error("roots/list_changed belongs to the members that are open")
		}
	})
}

func TestMemberLosesSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true, tools: []string{tool("x")}}
		n.add("a", a)
		c := connect(t, start(t, n))
		call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`
		c.do(call)
		c.do(`{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"error"}}`)
		c.do(`{"jsonrpc":"2.0","id":3,"method":"resources/subscribe","params":{"uri":"ripstop://a/file:///x"}}`)
		c.do(`{"jsonrpc":"2.0","id":4,"method":"resources/subscribe","params":{"uri":"ripstop://a/file:///y"}}`)
		c.do(`{"jsonrpc":"2.0","id":5,"method":"resources/unsubscribe","params":{"uri":"ripstop://a/file:///y"}}`)
		a.lose()
		c.do(`{"jsonrpc":"2.0","id":5,"method":"tools/list"}`)
		has(t, "first result after the loss", c.do(call), `"_meta":{"ripstop/reinitialized":true}`, `"text":"x"`)
		hasNot(t, "second", c.do(call), "reinitialized")
		equal(t, "sessions", a.open(), []string{"s2"})
		levels, subs := a.requests("logging/setLevel"), a.requests("resources/subscribe")
		if len(levels) != 2 || levels[1].Session != "s2" {
			t.Errorf("level was told %d times, want again in the new session", len(levels))
		}
		if len(subs) != 3 || subs[2].Session != "s2" || subs[2].Message.Name != "file:///x" {
			t.Errorf("subscribed %d times, want again in the new session", len(subs))
		}
		a.set(func(f *fake) {
			f.onCall = func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
				return &router.Reply{Status: 404, Body: []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}`)}, nil
			}
		})
		got := c.do(call)
		has(t, "a session lost twice", got, "503 ", "-32012")
		if n := len(a.requests("tools/call")); n != 5 {
			t.Errorf("the member was called %d times, want 5: a call is sent again once", n)
		}
	})
}

func TestStatusOfErrorsDoesNotEndTheSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true}
		n.add("a", a)
		c := connect(t, start(t, n))
		call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`
		c.do(call)
		a.set(func(f *fake) {
			f.onCall = func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
				return &router.Reply{Status: 404, Body: jsonrpc.NewError(req.ID(), -32601, "no", nil)}, nil
			}
		})
		equal(t, "member's 404", c.do(call), `200 {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`)
		a.set(func(f *fake) { f.fail = router.Errorf(router.ErrServerNotFound, "gone") })
		equal(t, "router's 404", c.do(call), `200 {"jsonrpc":"2.0","id":null,"error":{"code":-32010,"message":"gone"}}`)
		a.set(func(f *fake) { f.fail = router.Errorf(router.ErrOutcomeUnknown, "perhaps") })
		has(t, "an unknown outcome", c.do(call), "-32013")
		if n := len(a.requests("tools/call")); n != 4 {
			t.Errorf("the member was called %d times, want 4: nothing is sent again", n)
		}
	})
}

func TestEndOfSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a, b, hung := &fake{legacy: true}, &fake{legacy: true, stateless: true}, &fake{legacy: true}
		n.add("a", a)
		n.add("b", b)
		n.add("hung", hung)
		be := start(t, n)
		c := connect(t, be)
		for _, s := range []string{"a", "b", "hung"} {
			c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + s + `__x"}}`)
		}
		if got := b.requests("notifications/initialized"); len(got) != 0 {
			t.Error("a member without sessions was told of one")
		}
		if got := b.requests("tools/call")[0].Era; got != router.EraBare {
			t.Errorf("a request without a session is %v, want bare", got)
		}
		hung.set(func(f *fake) { f.delay = time.Hour })
		begin := time.Now()
		got := show(be.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: c.session}, router.Discard))
		equal(t, "end", got, "204")
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("ending took %v, want the 5 s a hung member may take", took)
		}
		equal(t, "member's sessions", len(a.open()), 0)
		has(t, "use after the end", c.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "404 ")
		has(t, "second end", show(be.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: c.session}, router.Discard)), "404 ")
	})
}

// TestMemberOpensAfterTheEnd has a member answer initialize when the session it
// was for is over, by a client's word or by Close.
func TestMemberOpensAfterTheEnd(t *testing.T) {
	for _, how := range []string{"end", "close"} {
		bubble(t, func(t *testing.T) {
			n, m, gate := newNet(), &fake{legacy: true}, make(chan struct{})
			n.add("m", router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				if req.Method() == "initialize" {
					<-gate // whatever ctx says
				}
				return m.Serve(context.WithoutCancel(ctx), req, out)
			}))
			b := start(t, n)
			c := connect(t, b)
			done := make(chan string)
			go func() { done <- c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`) }()
			synctest.Wait()
			over := make(chan struct{})
			go func() {
				defer close(over)
				if how == "close" {
					b.Close()
				} else {
					b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: c.session}, router.Discard)
				}
			}()
			has(t, "the call", <-done, "canceled")
			close(gate)
			<-over
			synctest.Wait()
			equal(t, how+": initialized", m.opened, 1)
			equal(t, how+": sessions left", len(m.open()), 0)
		})
	}
}

func TestResponseToMemberThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		m := &fake{legacy: true, onCall: func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`))
			return result(req, `{}`), err
		}}
		n.add("m", m)
		c := connect(t, start(t, n))
		call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`
		c.do(call)
		c.do(call)
		m.lose()
		equal(t, "response into a lost session", c.do(`{"jsonrpc":"2.0","id":1,"result":{}}`), "")
		m.set(func(f *fake) { f.fail = router.Errorf(router.ErrUnavailable, "dead") })
		has(t, "response to a dead member", c.do(`{"jsonrpc":"2.0","id":2,"result":{}}`), "503 ", "-32012")
	})
}

func TestManyServers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		b := start(t, n, func(o *aggregate.Options) { o.Watch = nil; close(n.watched) })
		c := connect(t, b)
		unknown := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + strings.Repeat("x", 500) + `__y"}}`
		has(t, "no servers", c.do(unknown), "servers now: none", "xxx…")
		for i := range 30 {
			n.add(fmt.Sprintf("s%02d", i), &fake{legacy: true, tools: []string{tool("x")}})
		}
		has(t, "many servers", c.do(unknown), "s00, s01", "and 10 more")
		has(t, "a server that nobody told of", c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"s29__x"}}`), "result")
		equal(t, "tools", len(names(t, c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`), "tools", "name")), 30)
	})
}

func TestIdleSessionsExpire(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true}
		n.add("a", a)
		b := start(t, n, func(o *aggregate.Options) { o.MaxSessions = 2; o.IdleTimeout = 10 * time.Minute })
		idle, busy := connect(t, b), connect(t, b)
		call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`
		idle.do(call)
		busy.do(call)
		stop := busy.listen(&sink{})
		reply, err := b.Serve(t.Context(), &router.Request{Message: parse(t, initialize)}, router.Discard)
		has(t, "a third session", show(reply, err), "429 ", "-32014")
		time.Sleep(9 * time.Minute)
		has(t, "before its time", idle.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "result")
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		has(t, "an idle session", idle.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "404 ")
		has(t, "one that listens", busy.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "result")
		equal(t, "member's sessions", a.open(), []string{"s2"})
		connect(t, b)
		stop()
	})
}

func TestSessionsBelongToTheirPrincipal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true}
		n.add("a", a)
		b := start(t, n)
		reply, err := b.Serve(t.Context(), &router.Request{Message: parse(t, initialize), Principal: "ann"}, router.Discard)
		if err != nil {
			t.Fatal(err)
		}
		req := &router.Request{Session: reply.Session, Principal: "ann",
			Message: parse(t, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`)}
		has(t, "ann", show(b.Serve(t.Context(), req, router.Discard)), "result")
		bob := *req
		bob.Principal = "bob"
		has(t, "bob", show(b.Serve(t.Context(), &bob, router.Discard)), "404 ")
		for _, method := range []string{"initialize", "notifications/initialized", "tools/call"} {
			if got := a.requests(method); len(got) != 1 || got[0].Principal != "ann" {
				t.Errorf("%s came %d times, want once from ann", method, len(got))
			}
		}
	})
}

func TestListen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a, b, quiet := &fake{legacy: true}, &fake{legacy: true}, &fake{legacy: true, noGET: 405}
		n.add("a", a)
		n.add("b", b)
		n.add("quiet", quiet)
		be := start(t, n)
		c, out := connect(t, be), &sink{}
		call := func(s string) {
			c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + s + `__x"}}`)
		}
		call("a")
		call("quiet")
		stop := c.listen(out)
		defer stop()
		synctest.Wait()
		if len(b.requests("")) != 0 {
			t.Error("a member without a session was listened to")
		}
		equal(t, "stream open", out.open, true)
		call("b")
		synctest.Wait()
		a.push(t, "s1", `{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///x"}}`)
		b.push(t, "s1", `{"jsonrpc":"2.0","id":9,"method":"roots/list"}`)
		b.push(t, "s1", `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
		equal(t, "messages", strings.Join(out.take(), "\n"), strings.Join([]string{
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"ripstop://a/file:///x"}}`,
			`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`,
			`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`}, "\n"))

		n.add("c", &fake{legacy: true})
		synctest.Wait()
		changes := []string{
			`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`,
			`{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/list_changed"}`,
		}
		equal(t, "after a server came", out.take(), changes)
		n.changed() // instances only
		synctest.Wait()
		equal(t, "after an instance came", len(out.take()), 0)
		n.remove("c")
		synctest.Wait()
		equal(t, "after a server left", out.take(), changes)

		listens := func(f *fake) (n int) {
			for _, r := range f.requests("") {
				if r.Op == router.OpListen {
					n++
				}
			}
			return n
		}
		time.Sleep(5 * time.Minute)
		equal(t, "streams asked of a member that has none", listens(quiet), 1)

		a.lose()
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "after a member lost its session", out.take(), changes)
		a.push(t, "s2", changes[0])
		equal(t, "its new stream", len(out.take()), 1)

		next := &sink{}
		stop2 := c.listen(next)
		defer stop2()
		synctest.Wait()
		a.push(t, "s2", changes[0])
		equal(t, "on the older stream", len(out.take()), 0)
		equal(t, "on the newer stream", len(next.take()), 1)
	})
}

func TestListenEndsWithItsSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, a := newNet(), &fake{legacy: true}
		n.add("a", a)
		b := start(t, n)
		c := connect(t, b)
		c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`)
		done := make(chan string)
		go func() {
			done <- show(b.Serve(t.Context(), &router.Request{Op: router.OpListen, Session: c.session}, &sink{}))
		}()
		synctest.Wait()
		b.Serve(t.Context(), &router.Request{Op: router.OpEnd, Session: c.session}, router.Discard)
		equal(t, "listen", <-done, "")
	})
}

func TestModernOnlyMemberForLegacyClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a := &fake{modern: true, tools: []string{tool("x")}, caps: `,"ttlMs":1,"cacheScope":"public"`}
		n.add("a", a)
		c, out := connect(t, start(t, n)), &sink{}
		c.do(`{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"info"}}`)
		equal(t, "tools", names(t, c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`), "tools", "name"), []string{"a__x"})
		has(t, "call", c.do(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"a__x","arguments":{"n":1.0}}}`), `"id":2`, `"text":"x"`)
		got := a.requests("tools/call")[0]
		if got.Era != router.EraModern || got.Session != "" || got.Version != router.Version20260728 {
			t.Errorf("era %v, session %q, version %q; want a modern request", got.Era, got.Session, got.Version)
		}
		meta := field(got.Message.Params, "_meta")
		equal(t, "capabilities", string(field(meta, "io.modelcontextprotocol/clientCapabilities")), `{"experimental":{"x":{}}}`)
		equal(t, "client", string(field(meta, "io.modelcontextprotocol/clientInfo")), `{"name":"tester","version":"7"}`)
		equal(t, "level", string(field(meta, "io.modelcontextprotocol/logLevel")), `"info"`)
		has(t, "request", string(got.Message.Raw), `"arguments":{"n":1.0}`)
		if n := len(a.requests("initialize")); n != 1 {
			t.Errorf("initialize was tried %d times, want once", n)
		}

		stop := c.listen(out)
		defer stop()
		synctest.Wait()
		equal(t, "subscribe", c.do(`{"jsonrpc":"2.0","id":3,"method":"resources/subscribe","params":{"uri":"ripstop://a/file:///x"}}`), `{"jsonrpc":"2.0","id":3,"result":{}}`)
		synctest.Wait()
		subs := a.requests("subscriptions/listen")
		equal(t, "subscriptions", string(field(subs[len(subs)-1].Message.Params, "notifications", "resourceSubscriptions")), `["file:///x"]`)
		a.push(t, "sub", `{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///x"}}`)
		equal(t, "messages", out.take(), []string{`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"ripstop://a/file:///x"}}`})

		a.set(func(f *fake) {
			f.onCall = func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
				return result(req, `{"resultType":"input_required","inputRequests":{}}`), nil
			}
		})
		has(t, "input", c.do(`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"a__x"}}`), "-32016", "input")
		hang := make(chan struct{})
		a.set(func(f *fake) {
			f.onCall = func(ctx context.Context, _ *router.Request, _ router.Stream) (*router.Reply, error) {
				close(hang)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		done := make(chan string)
		go func() { done <- c.do(`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"a__x"}}`) }()
		<-hang
		c.do(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}`)
		has(t, "cancelled", <-done, "context canceled")

		a.set(func(f *fake) { f.legacy, f.onCall = true, nil })
		n.changed()
		c.do(`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":{"name":"a__x"}}`)
		got = slices.MaxFunc(a.requests("tools/call"), func(x, y *router.Request) int { return strings.Compare(string(x.ID()), string(y.ID())) })
		if got.Era != router.EraLegacy {
			t.Error("a member whose instances changed was taken for what it was before")
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		started := make(chan struct{})
		a := &fake{legacy: true, onCall: func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		opening := &fake{legacy: true, delay: time.Hour}
		n.add("a", a)
		n.add("opening", opening)
		b := start(t, n)
		c := connect(t, b)
		stop := c.listen(&sink{})
		done := make(chan string)
		go func() { done <- c.do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__x"}}`) }()
		go func() { done <- c.do(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"opening__x"}}`) }()
		<-started
		synctest.Wait()
		closed := make(chan error)
		for range 2 {
			go func() { closed <- b.Close() }()
		}
		<-done
		<-done
		for range 2 {
			if err := <-closed; err != nil {
				t.Error(err)
			}
		}
		stop()
		equal(t, "member's sessions", len(a.open()), 0)
		has(t, "use after Close", c.do(`{"jsonrpc":"2.0","id":1,"method":"ping"}`), "503 ", "-32012")
		has(t, "modern use after Close", show(b.Serve(t.Context(), modern(t, "tools/list", "1", ""), router.Discard)), "503 ")
	})
}

func TestProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		info, err := start(t, newNet()).Probe(t.Context())
		if err != nil || info.Name != "ripstop" || info.Version != "1.2.3" || len(info.Versions) != 5 || field(info.Capabilities, "tools") == nil {
			t.Errorf("Probe = %+v, %v", info, err)
		}
	})
}
