package stdio_test

import (
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/stdio"
)

func sharedOptions(q quirks) stdio.Options {
	o := fakeOptions(q)
	o.Shared = true
	return o
}

func TestShared(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	if one.session == two.session {
		t.Error("the sessions have one id")
	}
	pid := one.mustText("pid", "")
	if got := two.mustText("pid", ""); got != pid {
		t.Errorf("children %s and %s, want one", pid, got)
	}
	if got := onceText(t, b, router.EraBare, toolCall("1", "pid", "{}")); got != pid {
		t.Errorf("a bare request went to child %s, want %s", got, pid)
	}
	if body := string(two.reply.Body); !strings.Contains(body, `"protocolVersion":"2025-06-18"`) || !strings.Contains(body, `"name":"fake"`) || !strings.Contains(body, `"id":"init"`) {
		t.Errorf("initialize = %s, want the server's result in the version asked for", body)
	}
	bare := &client{b: b}
	if reply, err := bare.serve(t.Context(), `{"jsonrpc":"2.0","id":1,"method":"initialize"}`, nil); err != nil || !strings.Contains(string(reply.Body), `"protocolVersion":"2025-11-25"`) {
		t.Errorf("initialize without params = %+v, %v", reply, err)
	}
	if got := one.mustText("history", ""); strings.Count(got, "initialize") != 2 { // and notifications/initialized
		t.Errorf("server saw %s, want one handshake", got)
	}
	one.end(t)
	if got := two.mustText("pid", ""); got != pid {
		t.Errorf("child %s after the end of a session, want %s", got, pid)
	}
}

func TestSharedQuestions(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	saved := initParams
	mute := &client{b: b}
	reply, err := mute.serve(t.Context(), `{"jsonrpc":"2.0","id":1,"method":"initialize","params":`+strings.Replace(saved, `"elicitation":{}`, "", 1)+`}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	mute.session = reply.Session
	if got := mute.mustText("ask", ""); !strings.Contains(got, "-32601") {
		t.Errorf("a client without elicitation was asked: %s", got)
	}
	withdrawn := newStream()
	if _, err := one.serve(t.Context(), toolCall("1", "withdraw", `{}`), withdrawn); err != nil {
		t.Fatal(err)
	}
	q, w := withdrawn.next(t), withdrawn.next(t)
	if w.Method != "notifications/cancelled" || string(w.Params) != `{"requestId":`+string(q.ID)+`}` {
		t.Errorf("got %s %s after question %s, want it cancelled", w.Method, w.Params, q.ID)
	}
	outs := []*stream{newStream(), newStream()}
	var waits []*pending
	var ids []string
	for i, c := range []*client{one, two} {
		waits = append(waits, c.background(t.Context(), toolCall("1", "ask", `{}`), outs[i]))
		ids = append(ids, string(outs[i].next(t).ID))
	}
	// The id of one session's question means nothing in another.
	if _, err := one.serve(t.Context(), `{"jsonrpc":"2.0","id":77,"result":{}}`, nil); err != nil {
		t.Fatal(err)
	}
	for i, c := range []*client{two, one} {
		i = 1 - i
		if _, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":`+ids[i]+`,"result":{"from":`+string(rune('0'+i))+`}}`, nil); err != nil {
			t.Fatal(err)
		}
		reply, err := waits[i].wait(t)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := textOf(reply.Body); got != `{"from":`+string(rune('0'+i))+`}` {
			t.Errorf("session %d's question was answered %s", i, got)
		}
	}
}

func TestSharedNotifications(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	outs := []*stream{newStream(), newStream()}
	one.listen(t.Context(), outs[0])
	two.listen(t.Context(), outs[1])
	subscribe := func(c *client, method string) {
		t.Helper()
		reply, err := c.serve(t.Context(), `{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{"uri":"file:///a"}}`, nil)
		if err != nil || !strings.Contains(string(reply.Body), `"result":{}`) {
			t.Fatalf("%s: %v %s", method, err, reply.Body)
		}
	}
	subscribe(one, "resources/subscribe")
	subscribe(two, "resources/subscribe")
	one.mustText("changed", "")
	for _, out := range outs {
		if m := out.next(t); m.Method != "notifications/tools/list_changed" {
			t.Errorf("got %+v", m)
		}
	}
	updated := func(c *client) {
		t.Helper()
		if _, err := c.serve(t.Context(), toolCall("1", "changed", `{"uri":"file:///a"}`), nil); err != nil {
			t.Fatal(err)
		}
	}
	subscribe(one, "resources/unsubscribe")
	updated(two)
	if m := outs[1].next(t); m.Method != "notifications/resources/updated" {
		t.Errorf("the subscriber got %+v", m)
	}
	outs[0].empty(t)
	if got := two.mustText("history", ""); strings.Contains(got, "unsubscribe") {
		t.Error("the server was told to unsubscribe while a session is subscribed")
	}
	two.end(t)
	if got := one.mustText("history", ""); !strings.Contains(got, "unsubscribe") {
		t.Error("the server was not told that the last subscriber left")
	}
}

func TestSharedCrash(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	if _, err := one.serve(t.Context(), `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"file:///a"}}`, nil); err != nil {
		t.Fatal(err)
	}
	out := newStream()
	p := one.background(t.Context(), toolCall("1", "wait", "{}"), out)
	out.next(t)
	_, err := two.text("crash", "")
	wantError(t, err, router.ErrOutcomeUnknown, "boom")
	_, err = p.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, "boom")
	for _, c := range []*client{one, two} {
		for i, marked := range []bool{true, false} {
			reply, err := c.serve(t.Context(), toolCall("1", "history", "{}"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(reply.Body), "ripstop/reinitialized") != marked {
				t.Errorf("result %d after the crash: %s", i, reply.Body)
			}
			if !strings.Contains(string(reply.Body), "resources/subscribe") {
				t.Errorf("the subscription was not replayed: %s", reply.Body)
			}
		}
	}
}

func TestSharedModern(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{Modern: true}))
	modern := onceText(t, b, router.EraModern, modernCall("1", "pid", "{}"))
	one, two := mustDial(t, b), mustDial(t, b)
	legacy := one.mustText("pid", "")
	if legacy == modern || two.mustText("pid", "") != legacy {
		t.Errorf("legacy sessions use %s, modern requests %s; want one child for each era", legacy, modern)
	}
}

func TestSharedEnd(t *testing.T) {
	t.Parallel()
	b, _ := start(t, sharedOptions(quirks{}))
	one, two := mustDial(t, b), mustDial(t, b)
	out := newStream()
	p := one.background(t.Context(), toolCall("1", "wait", "{}"), out)
	out.next(t)
	one.end(t)
	_, err := p.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, "session ended")
	eventually(t, deadline, "its request is cancelled", func() bool { return two.mustText("cancelled", "") != "" })
}
