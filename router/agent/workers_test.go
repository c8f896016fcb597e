package agent_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
)

// TestPanicFailsOneCall: a server in process that panics fails that call, with
// an error that says so, and goes on serving.
func TestPanicFailsOneCall(t *testing.T) {
	l := newLab(t)
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if req.Message.Name == "boom" {
			panic("a bug")
		}
		return echo(ctx, req, out)
	})
	nc := l.dial(t)
	msg, err := nc.Request("mcp.v1.req.demo.tools.call.boom", []byte(strings.ReplaceAll(callEcho, `"echo"`, `"boom"`)), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(msg.Data), `"code":-32013`) || !strings.Contains(string(msg.Data), "panicked") {
		t.Errorf("got %s", msg.Data)
	}
	msg, err = nc.Request("mcp.v1.req.demo.tools.call.echo", []byte(callEcho), 2*time.Second)
	if err != nil || !strings.Contains(string(msg.Data), `"ok":true`) {
		t.Errorf("after the panic: %v, %v", msg, err)
	}
}

// TestCallsDoNotWaitForEachOther: workers that wait for requests must not make
// one call wait for another, however many there are.
func TestCallsDoNotWaitForEachOther(t *testing.T) {
	l := newLab(t)
	const calls = 200 // more than the workers that are kept
	var inside sync.WaitGroup
	inside.Add(calls)
	all := make(chan struct{})
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		inside.Done()
		select {
		case <-all:
		case <-ctx.Done():
		}
		return echo(ctx, req, out)
	})
	nc := l.dial(t)
	for range 3 { // the second and third round find workers that wait
		var wg sync.WaitGroup
		errs := make(chan error, calls)
		for i := range calls {
			wg.Go(func() {
				body := strings.Replace(callEcho, `"id":1`, fmt.Sprintf(`"id":%d`, i), 1)
				msg, err := nc.Request("mcp.v1.req.demo.tools.call.echo", []byte(body), 10*time.Second)
				if err == nil && !strings.Contains(string(msg.Data), fmt.Sprintf(`"id":%d,`, i)) {
					err = fmt.Errorf("call %d got %s", i, msg.Data)
				}
				if err != nil {
					errs <- err
				}
			})
		}
		inside.Wait() // all are in the server at once
		close(all)
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Fatal(err)
		}
		inside.Add(calls)
		all = make(chan struct{})
	}
}
