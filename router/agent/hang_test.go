package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// stopped is an instance that takes everything and answers nothing, until it is
// told to go on.
func stopped(t testing.TB, l *lab, server, instance string) (goOn func()) {
	t.Helper()
	nc := l.dial(t)
	var runs atomic.Bool
	take := func(msg *nats.Msg) {
		switch is, _ := wire.IsProbe(msg); {
		case !runs.Load():
		case is:
			_ = msg.RespondMsg(wire.AliveMsg("", instance, ""))
		default:
			_ = msg.RespondMsg(wire.ReplyMsg("", instance, &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":{}}`)}, false))
		}
	}
	for _, subject := range []string{wire.InstanceSubject(server, instance), wire.ServerSubject(server)} {
		if _, err := nc.QueueSubscribe(subject, wire.QueueGroup, take); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() { runs.Store(true) }
}

// TestHungInstance: the calls of an instance that answers nothing are given up
// within 3 s, and say what is known; further ones are not sent, until it answers.
func TestHungInstance(t *testing.T) {
	l := newLab(t)
	goOn := stopped(t, l, "hung", "aaaaaaaaaa")
	c := l.client(t)
	found := make(chan string, 1)
	c.OnSilent(func(server, instance string) { found <- server + "/" + instance })
	call := func(instance string) (time.Duration, error) {
		began := time.Now()
		_, err := c.Serve(t.Context(), &router.Request{Server: "hung", Instance: instance, Era: router.EraBare, Message: message(t, callEcho)}, router.Discard)
		return time.Since(began), err
	}
	unaddressed := make(chan error, 1)
	go func() { // by whoever takes it
		took, err := call("")
		if took > 3*time.Second {
			t.Errorf("an unaddressed call took %s", took)
		}
		unaddressed <- err
	}()
	took, err := call("aaaaaaaaaa")
	var e *router.Error
	if !errors.As(err, &e) || e.Code != router.CodeOutcomeUnknown || took > 3*time.Second || took < 2*time.Second {
		t.Fatalf("after %s: %v", took, err)
	}
	var known struct {
		Instance string
		Waited   int64 `json:"waited_ms"`
		Alive    *bool
	}
	if err := json.Unmarshal(e.Data, &known); err != nil || known.Instance != "aaaaaaaaaa" || known.Waited < 2000 || known.Alive == nil || *known.Alive {
		t.Errorf("data %s", e.Data)
	}
	if !strings.Contains(e.Text, "aaaaaaaaaa of hung") || !strings.Contains(e.Text, "never said that it had the call") {
		t.Error(e.Text)
	}
	if got := <-found; got != "hung/aaaaaaaaaa" {
		t.Error(got)
	}
	if err := <-unaddressed; !errors.Is(err, router.ErrOutcomeUnknown) {
		t.Errorf("unaddressed: %v", err)
	}
	if took, err := call("aaaaaaaaaa"); !errors.Is(err, router.ErrUnavailable) || took > time.Second {
		t.Errorf("the next call, after %s: %v", took, err)
	}
	if !c.Silent(t.Context(), "hung", "aaaaaaaaaa", time.Second) {
		t.Error("it is not known to hang")
	}
	goOn()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := call("aaaaaaaaaa")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it answers, and gets no call: %v", err)
		}
	}
	if c.Silent(t.Context(), "hung", "aaaaaaaaaa", time.Second) {
		t.Error("it answers, and is said to hang")
	}
}

// TestNobodyThereIsNotHung: an instance that nobody knows the way to yet, as when
// its node has just come back, is not said to hang; nor is its session moved.
func TestNobodyThereIsNotHung(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	began := time.Now()
	if c.Silent(t.Context(), "none", "cccccccccc", 2*time.Second) {
		t.Error("an instance that is not there is said to hang")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("told after %s", took)
	}
	if c.Silent(t.Context(), "none", "cccccccccc", 0) {
		t.Error("later it is said to hang")
	}
}

// TestHangsInACall: an instance that has said that it is at work, and hangs then,
// is found as soon.
func TestHangsInACall(t *testing.T) {
	l := newLab(t)
	nc := l.dial(t)
	const id = "bbbbbbbbbb"
	var last atomic.Int64
	if _, err := nc.Subscribe(wire.InstanceSubject("dies", id), func(msg *nats.Msg) {
		if is, _ := wire.IsProbe(msg); is {
			return
		}
		time.AfterFunc(time.Second, func() {
			last.Store(time.Now().UnixNano())
			_ = msg.RespondMsg(wire.AliveMsg("", id, ""))
		})
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	_, err := l.client(t).Serve(t.Context(), &router.Request{Server: "dies", Instance: id, Era: router.EraBare, Message: message(t, callEcho)}, router.Discard)
	took := time.Since(time.Unix(0, last.Load()))
	var e *router.Error
	if !errors.As(err, &e) || e.Code != router.CodeOutcomeUnknown || took > 3*time.Second || took < 2*time.Second {
		t.Fatalf("%s after it was last heard of: %v", took, err)
	}
	if !strings.Contains(string(e.Data), `"alive":true`) || !strings.Contains(e.Text, "it had the call") {
		t.Errorf("%s %s", e.Text, e.Data)
	}
}

// TestSlowIsNotHung: a server that takes its time is not given up, whether it was
// addressed or not; nor is an instance that knows nothing of probes.
func TestSlowIsNotHung(t *testing.T) {
	l := newLab(t)
	a := l.attach(t, "slow", func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Method() == "tools/call" {
			select {
			case <-time.After(6500 * time.Millisecond): // "alive" comes every 5 s
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return echo(ctx, req, nil)
	})
	old := l.dial(t)
	if _, err := old.QueueSubscribe(wire.ServerSubject("old"), wire.QueueGroup, func(msg *nats.Msg) {
		time.AfterFunc(1400*time.Millisecond, func() { _ = msg.RespondMsg(wire.AliveMsg("", "oldoldoldo", "")) })
		time.AfterFunc(6300*time.Millisecond, func() {
			_ = msg.RespondMsg(wire.ReplyMsg("", "oldoldoldo", &router.Reply{Body: jsonrpc.NewResult([]byte("1"), []byte(`{}`))}, false))
		})
	}); err != nil {
		t.Fatal(err)
	}
	if err := old.Flush(); err != nil {
		t.Fatal(err)
	}
	c := l.client(t)
	c.OnSilent(func(server, instance string) { t.Errorf("%s of %s is said to hang", instance, server) })
	end := make(chan error)
	calls := []*router.Request{{Server: "slow", Instance: a.Instance()}, {Server: "slow"}, {Server: "old"}}
	for _, req := range calls {
		go func() {
			req.Era, req.Message = router.EraBare, message(t, callEcho)
			_, err := c.Serve(t.Context(), req, router.Discard)
			end <- err
		}()
	}
	for range calls {
		if err := <-end; err != nil {
			t.Error(err)
		}
	}
}

// TestHungLinkRepeats: a caller outside a node sends what may be executed twice
// again by itself.
func TestHungLinkRepeats(t *testing.T) {
	l := newLab(t)
	goOn := stopped(t, l, "hung", "aaaaaaaaaa")
	link, err := linkTo(t, l)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(2*time.Second, goOn)
	read := message(t, `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"a:b"}}`)
	began := time.Now()
	if _, err := link.Serve(t.Context(), &router.Request{Server: "hung", Era: router.EraBare, Message: read}, router.Discard); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func linkTo(t testing.TB, l *lab) (*agent.Link, error) {
	t.Helper()
	link, err := agent.Connection{URLs: l.node.ClientURL(), Name: "test", Logger: quiet()}.Link(false)
	if err == nil {
		t.Cleanup(link.Close)
	}
	return link, err
}
