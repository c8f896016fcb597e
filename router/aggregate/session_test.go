package aggregate_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

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
		has(t, "first result after the loss", c.do(call), `"_meta":{"ripstop/reinitialized":{"cause":"the session with `, ` had ended","epoch":1}}`, `"text":"x"`)
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
