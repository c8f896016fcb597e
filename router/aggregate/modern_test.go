package aggregate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

func ask(t testing.TB, b *aggregate.Backend, method, id, params string, out ...router.Stream) string {
	t.Helper()
	return show(b.Serve(t.Context(), modern(t, method, id, params), append(out, router.Discard)[0]))
}

func TestDiscover(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		n.add("a", &fake{modern: true})
		b := start(t, n)
		body := ask(t, b, "server/discover", `"d"`, "")
		has(t, "discover", body, `"id":"d"`, `"resultType":"complete"`, `"supportedVersions":["2026-07-28","2025-11-25",`,
			`"tools":{"listChanged":true}`, `"ttlMs":5000`, `"cacheScope":"public"`, "Server a: Be modern.",
			`"io.modelcontextprotocol/serverInfo":{"name":"ripstop","version":"1.2.3"}`)
		n.add("dead", &fake{fail: router.Errorf(router.ErrUnavailable, "dead")})
		n.add("old", &fake{legacy: true})
		has(t, "discover with others", ask(t, b, "server/discover", "1", ""), `"ttlMs":0`, `"cacheScope":"private"`)
	})
}

func TestModernLists(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a := &fake{modern: true, tools: []string{tool("x"), tool("y")}, perPage: 1, caps: `,"ttlMs":7000,"cacheScope":"public"`}
		c := &fake{modern: true, tools: []string{tool("x")}, caps: `,"ttlMs":3000,"cacheScope":"public"`}
		n.add("a", a)
		n.add("c", c)
		b := start(t, n)
		body := ask(t, b, "tools/list", "1", "")
		equal(t, "tools", names(t, body, "tools", "name"), []string{"a__x", "a__y", "c__x"})
		has(t, "tools/list", body, `"resultType":"complete"`, `"ttlMs":3000`, `"cacheScope":"public"`, `"io.modelcontextprotocol/serverInfo":{"name":"ripstop"`)
		for _, r := range a.requests("tools/list") {
			has(t, "a page asked for", string(r.Message.Raw), triple)
		}
		c.set(func(f *fake) { f.caps = `,"ttlMs":3000` })
		has(t, "one without a scope", ask(t, b, "tools/list", "1", ""), `"cacheScope":"private"`)
		c.set(func(f *fake) { f.caps = `,"ttlMs":3000,"cacheScope":"private"` })
		has(t, "one private", ask(t, b, "tools/list", "1", ""), `"cacheScope":"private"`)
		n.add("dead", &fake{fail: router.Errorf(router.ErrUnavailable, "dead")})
		has(t, "one left out", ask(t, b, "tools/list", "1", ""), `"ttlMs":0`, `"cacheScope":"private"`)
		n.remove("dead")
		has(t, "nothing at all", ask(t, b, "prompts/list", "1", ""), `"prompts":[]`, `"ttlMs":0`)
		n.add("old", &fake{legacy: true, tools: []string{tool("z")}})
		body = ask(t, b, "tools/list", "1", "")
		equal(t, "tools with a legacy member", names(t, body, "tools", "name"), []string{"a__x", "a__y", "c__x", "old__z"})
		has(t, "tools/list", body, `"ttlMs":0`, `"cacheScope":"private"`)
		if n := len(a.requests("server/discover")); n != 4 {
			t.Errorf("a was discovered %d times, want once, and once more each time members changed", n)
		}
	})
}

func TestModernCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a := &fake{modern: true, onCall: func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			return &router.Reply{Body: result(req, `{"resultType":"input_required","requestState":"s","content":[{"type":"resource_link","uri":"f:x"}]}`).Body,
				Status: 200, Stream: true, Session: "not the client's"}, nil
		}}
		n.add("a", a)
		b := start(t, n)
		req := modern(t, "tools/call", `"i"`, `"name":"a__x","arguments":{"n":1.0},"requestState":"r","inputResponses":{"q":{}}`)
		req.Params, req.Principal = map[string]string{"Mcp-Param-Region": "eu"}, "ann"
		reply, err := b.Serve(t.Context(), req, router.Discard)
		got := show(reply, err)
		if !reply.Stream || reply.Session != "" {
			t.Errorf("reply %+v, want a stream as the member's, and no session", reply)
		}
		equal(t, "reply", got, `200 {"jsonrpc":"2.0","id":"i","result":{"resultType":"input_required","requestState":"s","content":[{"type":"resource_link","uri":"ripstop://a/f:x"}]}}`)
		sent := a.requests("tools/call")[0]
		equal(t, "request", string(sent.Message.Raw), strings.Replace(string(req.Message.Raw), "a__x", "x", 1))
		if sent.Params["Mcp-Param-Region"] != "eu" || sent.Principal != "ann" || sent.Version != "2026-07-28" || sent.Message.Name != "x" {
			t.Errorf("sent %+v", sent)
		}
		for _, tt := range []struct{ method, params, status, code string }{
			{"tools/call", `"name":"x"`, "200", "-32602"},
			{"resources/read", `"uri":"ripstop://b/x"`, "200", "-32602"},
			{"initialize", ``, "404", "-32601"},
			{"ping", ``, "404", "-32601"},
			{"logging/setLevel", `"level":"info"`, "404", "-32601"},
			{"resources/subscribe", `"uri":"ripstop://a/x"`, "404", "-32601"},
			{"nope", ``, "404", "-32601"},
			{"tools/list", `"cursor":"x"`, "200", "-32602"},
		} {
			has(t, tt.method, ask(t, b, tt.method, "1", tt.params), tt.status+" ", `"code":`+tt.code)
		}
	})
}

func TestModernMetadataIsChecked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := start(t, newNet())
		for meta, want := range map[string]string{
			`{"io.modelcontextprotocol/protocolVersion":"2027-01-01","io.modelcontextprotocol/clientCapabilities":{}}`:                                                 `"code":-32022`,
			`{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`:                                                                                                 `"code":-32602`,
			`{"io.modelcontextprotocol/protocolVersion":5,"io.modelcontextprotocol/clientCapabilities":{}}`:                                                            `"code":-32602`,
			`{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":[]}`:                                                 `"code":-32602`,
			`{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":"me"}`:       `"code":-32602`,
			`{"io.modelcontextprotocol/clientCapabilities":{}}`:                                                                                                        `"code":-32602`,
			`{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":1}}`: `"result"`,
		} {
			req := &router.Request{Era: router.EraModern, Message: parse(t, `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":`+meta+`}}`)}
			got := show(b.Serve(t.Context(), req, router.Discard))
			has(t, meta, got, want)
			if !strings.Contains(want, "result") {
				has(t, meta, got, "400 ")
			}
		}
	})
}

// TestLegacyMemberForModernClients has two clients with the same ids and
// progress tokens share one session with a member.
func TestLegacyMemberForModernClients(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		gate := make(chan struct{})
		m := &fake{legacy: true, resources: []string{}, onCall: func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			<-gate
			for _, msg := range []string{
				`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":` + string(req.Message.ProgressToken) + `}}`,
				`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"debug","data":"x"}}`,
				`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error","data":"x"}}`,
				`{"jsonrpc":"2.0","id":"q","method":"elicitation/create"}`,
				`{"jsonrpc":"2.0","id":"p","method":"ping"}`,
			} {
				if err := out.Send(ctx, []byte(msg)); err != nil {
					return nil, err
				}
			}
			return result(req, `{"content":[],"_meta":{"k":1}}`), nil
		}}
		n.add("m", m)
		b := start(t, n)
		const level = `"io.modelcontextprotocol/logLevel":"warning",`
		var wg sync.WaitGroup
		outs := [2]*sink{{}, {}}
		for i := range outs {
			req := modern(t, "tools/call", "1", `"name":"m__x","arguments":{"_meta":1}`)
			meta := `"progressToken":"tok",`
			if i == 1 {
				meta += level
			}
			req.Message = parse(t, strings.Replace(string(req.Message.Raw), `"_meta":{`, `"_meta":{`+meta, 1))
			wg.Go(func() {
				got := show(b.Serve(t.Context(), req, outs[i]))
				equal(t, "reply", got, `{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[],"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"fake","version":"9"},"k":1}}}`)
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		synctest.Wait()
		progress := `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok"}}`
		equal(t, "without a log level", outs[0].take(), []string{progress})
		equal(t, "with a log level", outs[1].take(), []string{progress, `{"jsonrpc":"2.0","method":"notifications/message","params":{"logger":"m","level":"error","data":"x"}}`})

		sent := m.requests("tools/call")
		if len(sent) != 2 || string(sent[0].ID()) == string(sent[1].ID()) || string(sent[0].Message.ProgressToken) == string(sent[1].Message.ProgressToken) {
			t.Fatalf("requests %s and %s, want ids and tokens of their own", sent[0].Message.Raw, sent[1].Message.Raw)
		}
		for _, r := range sent {
			if r.Era != router.EraLegacy || r.Session != "s1" || r.Version != "2025-06-18" {
				t.Errorf("era %v, session %q, version %q; want the member's session", r.Era, r.Session, r.Version)
			}
			hasNot(t, "request", string(r.Message.Raw), "io.modelcontextprotocol/")
			has(t, "request", string(r.Message.Raw), `"arguments":{"_meta":1}`)
		}
		init := m.requests("initialize")
		if len(init) != 1 {
			t.Fatalf("%d sessions were opened, want one", len(init))
		}
		equal(t, "capabilities declared", string(field(init[0].Message.Params, "capabilities")), "{}")
		var answers []string
		for _, r := range m.requests("") {
			answers = append(answers, string(r.Message.Raw))
		}
		slices.Sort(answers)
		has(t, "answers to the member", strings.Join(answers, " "), `{"jsonrpc":"2.0","id":"p","result":{}}`, `{"jsonrpc":"2.0","id":"q","error":{"code":-32601`)

		has(t, "a list", ask(t, b, "resources/list", "1", ""), `"resources":[]`, `"ttlMs":0,"cacheScope":"private"`)
		m.set(func(f *fake) {
			f.onCall = func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
				if req.Method() == "prompts/get" {
					return &router.Reply{Body: jsonrpc.NewError(req.ID(), -32601, "no", nil)}, nil
				}
				if req.Message.Name == "none" {
					return &router.Reply{Body: jsonrpc.NewError(req.ID(), -32002, "none", nil)}, nil
				}
				return result(req, `{"contents":[{"uri":"f:x"}]}`), nil
			}
		})
		equal(t, "read", ask(t, b, "resources/read", "5", `"uri":"ripstop://m/f:x"`),
			`{"jsonrpc":"2.0","id":5,"result":{"resultType":"complete","ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"fake","version":"9"}},"contents":[{"uri":"ripstop://m/f:x"}]}}`)
		has(t, "missing resource", ask(t, b, "resources/read", "5", `"uri":"ripstop://m/none"`), `"id":5`, `"code":-32602`)
		has(t, "missing method", ask(t, b, "prompts/get", "5", `"name":"m__x"`), "404 ", `"code":-32601`)

		m.lose()
		has(t, "after the member lost the session", ask(t, b, "resources/read", "6", `"uri":"ripstop://m/f:x"`), `"id":6`, "result")
		equal(t, "sessions", m.open(), []string{"s2"})
		other := modern(t, "resources/read", "7", `"uri":"ripstop://m/f:x"`)
		other.Principal = "ann"
		has(t, "another principal", show(b.Serve(t.Context(), other, router.Discard)), "result")
		equal(t, "sessions", m.open(), []string{"s2", "s3"})
		time.Sleep(time.Hour)
		synctest.Wait()
		equal(t, "sessions not used", len(m.open()), 0)
		has(t, "use after that", ask(t, b, "resources/read", "8", `"uri":"ripstop://m/f:x"`), "result")
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		equal(t, "sessions after Close", len(m.open()), 0)
	})
}

func TestMemberOfNoEra(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, m := newNet(), &fake{}
		n.add("m", m)
		b := start(t, n)
		has(t, "modern", ask(t, b, "tools/call", "1", `"name":"m__x"`), "-32022")
		has(t, "legacy", connect(t, b).do(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"m__x"}}`), "-32022")
		m.set(func(f *fake) { f.modern = true })
		has(t, "modern, later", ask(t, b, "tools/call", "1", `"name":"m__x"`), "result")
		m.set(func(f *fake) { f.fail = context.DeadlineExceeded })
		n.changed()
		has(t, "not reached", ask(t, b, "tools/call", "1", `"name":"m__x"`), "deadline")
		m.set(func(f *fake) { f.fail = nil })
		has(t, "reached again", ask(t, b, "tools/call", "1", `"name":"m__x"`), "result")
	})
}

func TestBare(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a := &fake{tools: []string{tool("x")}}
		n.add("a", a)
		n.add("b", &fake{tools: []string{tool("x")}})
		b := start(t, n)
		do := func(raw string) string {
			return show(b.Serve(t.Context(), &router.Request{Era: router.EraBare, Message: parse(t, raw)}, router.Discard))
		}
		body := do(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		equal(t, "tools", names(t, body, "tools", "name"), []string{"a__x", "b__x"})
		equal(t, "call", do(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"a__x"}}`), `{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"x"}]}}`)
		for _, r := range a.requests("tools/call") {
			if r.Era != router.EraBare {
				t.Errorf("era %v, want bare", r.Era)
			}
		}
		equal(t, "ping", do(`{"jsonrpc":"2.0","id":2,"method":"ping"}`), `{"jsonrpc":"2.0","id":2,"result":{}}`)
		has(t, "setLevel", do(`{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"info"}}`), "400 ", "session")
		has(t, "unknown", do(`{"jsonrpc":"2.0","id":2,"method":"x"}`), "200 ", "-32601")
		has(t, "a resource", do(`{"jsonrpc":"2.0","id":2,"method":"resources/read","params":{"uri":"x"}}`), "-32002")
		equal(t, "a notification", do(`{"jsonrpc":"2.0","method":"notifications/x"}`), "")
		has(t, "initialize", do(initialize), `"protocolVersion":"2025-11-25"`)
		has(t, "no message", show(b.Serve(t.Context(), &router.Request{}, router.Discard)), "400 ", "-32017")
	})
}

// TestMembersThatAnswerJunk holds every kind of answer that is none against
// every kind of request.
func TestMembersThatAnswerJunk(t *testing.T) {
	bodies := []string{``, `junk`, `{}`, `[]`, `{"jsonrpc":"2.0","id":1,"result":5}`, `{"jsonrpc":"2.0","id":1,"result":{"tools":{}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[5,null,"x",{},{"name":5}],"uri":[]}}`, `{"jsonrpc":"2.0","id":1,"error":5}`,
		`{"jsonrpc":"2.0","method":"x"}`, `{"jsonrpc":"2.0","id":1,"result":{"contents":"uri","content":{"uri":1},"x":"\"uri\""}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[],"nextCursor":"same"}}`, "\x00\xff"}
	bubble(t, func(t *testing.T) {
		for _, body := range bodies {
			n := newNet()
			n.add("junk", router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
				if body == "" {
					return nil, nil
				}
				return &router.Reply{Body: []byte(body)}, nil
			}))
			b := start(t, n)
			c := connect(t, b)
			for _, params := range []string{`"name":"junk__x"`, `"uri":"ripstop://junk/x"`, `"ref":{"type":"ref/prompt","name":"junk__x"}`} {
				for _, method := range []string{"tools/list", "tools/call", "resources/read", "resources/subscribe", "completion/complete", "server/discover"} {
					for who, got := range map[string]string{
						"legacy": c.do(fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"%s","params":{%s}}`, method, params)),
						"modern": ask(t, b, method, "1", params),
					} {
						raw := got[strings.Index(got, "{"):]
						if m, err := jsonrpc.Parse([]byte(raw)); err != nil || m.Kind != jsonrpc.Response {
							t.Errorf("%s %s to a member that says %q = %q", who, method, body, got)
						}
					}
				}
			}
			b.Close()
		}
	})
}
