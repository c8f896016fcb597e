package aggregate_test

import (
	"context"
	"fmt"
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

func TestProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		info, err := start(t, newNet()).Probe(t.Context())
		if err != nil || info.Name != "ripstop" || info.Version != "1.2.3" || len(info.Versions) != 5 || field(info.Capabilities, "tools") == nil {
			t.Errorf("Probe = %+v, %v", info, err)
		}
	})
}
