package aggregate_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
)

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
