package aggregate_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/aggregate"
)

// listenModern opens a subscription; stop ends it, and returns the result.
func listenModern(t *testing.T, b *aggregate.Backend, id, notifications string, out router.Stream) (stop func() string) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 1)
	req := modern(t, "subscriptions/listen", id, `"notifications":`+notifications)
	go func() { done <- show(b.Serve(ctx, req, out)) }()
	return func() string { cancel(); return <-done }
}

func TestSubscriptions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		a, c := &fake{modern: true}, &fake{modern: true, granted: `{"toolsListChanged":true}`}
		n.add("a", a)
		n.add("c", c)
		n.add("old", &fake{legacy: true})
		n.add("slow", &fake{modern: true, delay: time.Hour})
		b, out := start(t, n), &sink{}
		begin := time.Now()
		defer func() { equal(t, "stream open", out.open, true) }()
		stop := listenModern(t, b, `"L"`, `{"toolsListChanged":true,"promptsListChanged":false,"x":1,"resourceSubscriptions":["ripstop://a/f:1","ripstop://c/f:2","ripstop://a/f:3","ripstop://none/f","f:4"]}`, out)
		synctest.Wait()
		a.push(t, "sub", `{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"L"},"uri":"f:1"}}`)
		if got := time.Since(begin); got != 5*time.Second {
			t.Errorf("something came after %v, want after the 5 s that members have to grant", got)
		}
		const id = `"_meta":{"io.modelcontextprotocol/subscriptionId":"L"}`
		equal(t, "messages", out.take(), []string{
			`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{` + id + `,"notifications":{"toolsListChanged":true,"resourceSubscriptions":["ripstop://a/f:1","ripstop://a/f:3"]}}}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{` + id + `,"uri":"ripstop://a/f:1"}}`,
		})
		for f, want := range map[*fake]string{
			a: `{"toolsListChanged":true,"promptsListChanged":false,"x":1,"resourceSubscriptions":["f:1","f:3"]}`,
			c: `{"toolsListChanged":true,"promptsListChanged":false,"x":1,"resourceSubscriptions":["f:2"]}`,
		} {
			got := f.requests("subscriptions/listen")
			if len(got) != 1 || string(got[0].ID()) != `"L"` {
				t.Fatalf("member got %d subscriptions, want one with the client's id", len(got))
			}
			equal(t, "asked of a member", string(field(got[0].Message.Params, "notifications")), want)
			has(t, "metadata", string(got[0].Message.Params), triple)
		}

		changed := `{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{` + id + `}}`
		d := &fake{modern: true}
		n.add("d", d)
		synctest.Wait()
		equal(t, "after a server came", out.take(), []string{changed})
		equal(t, "and it is subscribed to", len(d.requests("subscriptions/listen")), 1)
		d.push(t, "sub", changed)
		equal(t, "its message", out.take(), []string{changed})
		n.changed()
		synctest.Wait()
		equal(t, "after an instance came", len(out.take()), 0)

		a.mu.Lock()
		a.cut["sub"]()
		a.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "after a member was away", out.take(), []string{changed,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{` + id + `,"uri":"ripstop://a/f:1"}}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{` + id + `,"uri":"ripstop://a/f:3"}}`})
		n.remove("a")
		synctest.Wait()
		equal(t, "after a server left", out.take(), []string{changed})
		has(t, "stopped", stop(), "context canceled")

		stop = listenModern(t, b, "9", `{"promptsListChanged":true}`, out)
		time.Sleep(10 * time.Second)
		out.take()
		closed := make(chan struct{})
		go func() { b.Close(); close(closed) }()
		<-closed
		equal(t, "after Close", stop(), `{"jsonrpc":"2.0","id":9,"result":{"resultType":"complete","_meta":{"io.modelcontextprotocol/subscriptionId":9,"io.modelcontextprotocol/serverInfo":{"name":"ripstop","version":"1.2.3"}}}}`)
	})
}

// TestSubscriptionsToLegacyMember has clients share the stream of one session
// with a member of the legacy era.
func TestSubscriptionsToLegacyMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n, m := newNet(), &fake{legacy: true}
		n.add("m", m)
		b := start(t, n)
		outs := [2]*sink{{}, {}}
		stops := [2]func() string{
			listenModern(t, b, "1", `{"toolsListChanged":true,"resourceSubscriptions":["ripstop://m/f:1","ripstop://m/f:2"]}`, outs[0]),
			listenModern(t, b, "2", `{"promptsListChanged":true,"resourceSubscriptions":["ripstop://m/f:2","ripstop://m/f:2"]}`, outs[1]),
		}
		synctest.Wait()
		ack := func(id int, rest string) string {
			return fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%d},"notifications":{%s}}}`, id, rest)
		}
		note := func(id int, method, rest string) string {
			return fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/%s","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%d}%s}}`, method, id, rest)
		}
		equal(t, "first", outs[0].take(), []string{ack(1, `"toolsListChanged":true,"resourceSubscriptions":["ripstop://m/f:1","ripstop://m/f:2"]`)})
		equal(t, "second", outs[1].take(), []string{ack(2, `"promptsListChanged":true,"resourceSubscriptions":["ripstop://m/f:2","ripstop://m/f:2"]`)})
		equal(t, "sessions", m.open(), []string{"s1"})

		for _, msg := range []string{
			`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`,
			`{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/list_changed"}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"f:1"}}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"f:2"}}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"f:3"}}`,
			`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error","data":"x"}}`,
			`{"jsonrpc":"2.0","id":3,"method":"roots/list"}`, `junk`, ``,
		} {
			m.push(t, "s1", msg)
			synctest.Wait()
		}
		u1, u2 := `,"uri":"ripstop://m/f:1"`, `,"uri":"ripstop://m/f:2"`
		equal(t, "first", outs[0].take(), []string{note(1, "tools/list_changed", ""), note(1, "resources/updated", u1), note(1, "resources/updated", u2)})
		equal(t, "second", outs[1].take(), []string{note(2, "prompts/list_changed", ""), note(2, "resources/updated", u2)})
		has(t, "answer to the member", string(m.requests("")[1].Message.Raw), `"id":3,"error":{"code":-32601`)

		has(t, "first stopped", stops[0](), "canceled")
		synctest.Wait()
		equal(t, "unsubscribed from", len(m.requests("resources/unsubscribe")), 1)
		equal(t, "namely", m.requests("resources/unsubscribe")[0].Message.Name, "f:1")

		m.lose()
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "second, after the loss", outs[1].take(), []string{note(2, "resources/updated", u2), note(2, "prompts/list_changed", "")})
		subs := m.requests("resources/subscribe")
		if last := subs[len(subs)-1]; last.Session != "s2" || last.Message.Name != "f:2" {
			t.Errorf("subscribed to %q in session %q, want f:2 in s2", last.Message.Name, last.Session)
		}
		time.Sleep(2 * time.Hour)
		equal(t, "sessions, while somebody listens", m.open(), []string{"s2"})

		m.set(func(f *fake) { f.legacy, f.modern = false, true })
		n.changed()
		time.Sleep(time.Second)
		synctest.Wait()
		equal(t, "subscriptions of the member grown modern", len(m.requests("subscriptions/listen")), 1)
		m.set(func(f *fake) { f.legacy = true })
		has(t, "second stopped", stops[1](), "canceled")
		stop := listenModern(t, b, "3", `{"toolsListChanged":true}`, outs[0])
		synctest.Wait()
		stop()
	})
}

func TestSubscriptionsToNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNet()
		nothing := &fake{modern: true, granted: `{}`}
		n.add("a", nothing)
		b, out := start(t, n), &sink{}
		has(t, "an empty one", ask(t, b, "subscriptions/listen", "1", `"notifications":{}`, out), `"resultType":"complete"`)
		equal(t, "messages", out.take(), []string{`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":1},"notifications":{}}}`})
		has(t, "none", ask(t, b, "subscriptions/listen", "1", ""), "-32602")
		nothing.set(func(f *fake) { f.granted = "" })
		stop := listenModern(t, b, "2", `{"toolsListChanged":true}`, out)
		synctest.Wait()
		nothing.set(func(f *fake) { f.granted = `{}` })
		nothing.mu.Lock()
		nothing.cut["sub"]()
		nothing.mu.Unlock()
		for range 3 {
			time.Sleep(time.Second)
			nothing.mu.Lock()
			nothing.cut["sub"]()
			nothing.mu.Unlock()
		}
		time.Sleep(time.Hour)
		equal(t, "times a member was asked that grants nothing any more", len(nothing.requests("subscriptions/listen")), 2)
		equal(t, "messages", len(out.take()), 1)
		stop()
	})
}
