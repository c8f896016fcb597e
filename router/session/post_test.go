package session_test

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
)

// work makes calls send numbered progress until finish.
func (f *fixture) work() (step chan int, finish chan struct{}) {
	step, finish = make(chan int), make(chan struct{})
	f.b.set(func() {
		f.b.work = func(ctx context.Context, _ *backendSession, _ *jsonrpc.Message, out router.Stream) ([]byte, error) {
			for {
				select {
				case n := <-step:
					if err := out.Send(ctx, note(n)); err != nil {
						return nil, err
					}
				case <-finish:
					return []byte(`{"finished":true}`), nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}
	})
	return step, finish
}

func (f *fixture) start(ctx context.Context, id, streamID string) (*stream, chan error, *router.Reply) {
	req := request(f.t, id, call)
	req.StreamID = streamID
	out, done, reply := newStream(), make(chan error, 1), new(router.Reply)
	go func() {
		r, err := f.l.Serve(ctx, req, out)
		if r != nil {
			*reply = *r
		}
		done <- err
	}()
	return out, done, reply
}

const post = "abcdefghij"

func TestCallOutlivesItsCaller(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	step, finish := f.work()
	ctx, cancel := context.WithCancel(t.Context())
	out, done, _ := f.start(ctx, id, post)
	step <- 1
	out.wait(t)
	if out.last() != post+".1" {
		t.Errorf("event id %s", out.last())
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	step <- 2
	g := f.listen(f.l, id, post+".1")
	if prime := g.opened(t); prime != post+".1" {
		t.Errorf("prime event %s", prime)
	}
	if m := g.wait(t); m != string(note(2)) {
		t.Errorf("got %s", m)
	}
	step <- 3
	if m := g.wait(t); m != string(note(3)) {
		t.Errorf("got %s", m)
	}
	g.leave(t)
	close(finish)
	g = f.listen(f.l, id, post+".3")
	contains(t, g.wait(t), `"id":7`, `"finished":true`)
	if err := g.end(t); err != nil {
		t.Errorf("after the response: %v", err)
	}
	g = f.listen(f.l, id, post+".0") // all of it again
	for _, want := range []string{string(note(1)), string(note(2)), string(note(3)), "finished"} {
		contains(t, g.wait(t), want)
	}
}

func TestReplyHasEventID(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	step, finish := f.work()
	out, done, reply := f.start(t.Context(), id, post)
	step <- 1
	out.wait(t)
	close(finish)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if reply.EventID != post+".2" {
		t.Errorf("event id of the reply: %q", reply.EventID)
	}
	_, done, reply = f.start(t.Context(), id, "klmnopqrst")
	if err := <-done; err != nil || reply.EventID != "" {
		t.Errorf("a reply at once: event id %q, %v; nobody can ask for it", reply.EventID, err)
	}
}

// The new owner has what the log has, and makes up nothing.
func TestCallStreamAfterMove(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	step, finish := f.work()
	out, done, _ := f.start(t.Context(), id, post)
	step <- 1
	out.wait(t)
	step <- 2
	out.wait(t)
	close(finish)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l2 := f.another(newBackend(), func(o *session.Options) { o.Instance = there })
	f.k.move(id, there)
	g := f.listen(l2, id, post+".1")
	if m := g.wait(t); m != string(note(2)) {
		t.Errorf("got %s", m)
	}
	contains(t, g.wait(t), "finished")
	if err := g.end(t); err != nil {
		t.Error(err)
	}
	g = f.listen(l2, id, "unheardof1.4")
	if err := g.end(t); err != nil || len(g.messages()) != 0 {
		t.Errorf("unknown stream: %v, %q", err, g.messages())
	}
}

// A client that comes back for an answer which is nowhere must not wait for it.
func TestLostCallIsAnswered(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	step, finish := f.work()
	answered, lost := "abcdefghijkl-"+b64("7"), "klmnopqrstuv-"+b64(`"seven"`)
	for _, name := range []string{answered, lost} {
		out, done, _ := f.start(t.Context(), id, name)
		step <- 1
		out.wait(t)
		if name == answered {
			finish <- struct{}{}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
	l2 := f.another(newBackend(), func(o *session.Options) { o.Instance = there })
	f.k.move(id, there)
	for _, tt := range []struct{ last, want, id string }{
		{answered + ".0", "finished", ".2"},
		{answered + ".1", "finished", ".2"},
		{lost + ".0", `"id":"seven","error":{"code":-32013`, ".2"},
		{lost + ".1", `"id":"seven","error":{"code":-32013`, ".2"},
		{"never1234567-" + b64("9") + ".0", `"id":9,"error":{"code":-32013`, ".1"},
		{"never1234567-" + b64(`9,"x":1`) + ".0", "", ".0"},
		{"never1234567-%.0", "", ".0"},
	} {
		g := f.listen(l2, id, tt.last)
		if err := g.end(t); err != nil || g.reply.Status != 200 {
			t.Errorf("%s: %v", tt.last, err)
		}
		if all := strings.Join(g.messages(), ""); !strings.Contains(all, tt.want) || tt.want == "" && all != "" || !strings.HasSuffix(g.last(), tt.id) {
			t.Errorf("%s: got %s, the last %s; want %s", tt.last, all, g.last(), tt.want)
		}
	}
}

func b64(id string) string { return base64.RawURLEncoding.EncodeToString([]byte(id)) }

// Without a session there is nothing to come back to, but the call is not
// cancelled.
func TestCallWithoutSessionOutlives(t *testing.T) {
	b := &workshop{backend: newBackend(), step: make(chan []byte), ended: make(chan error, 1)}
	f := setup(t, nil)
	f.l = f.another(b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	out, done, _ := f.start(ctx, "", post)
	b.step <- note(1)
	if m := out.wait(t); m != string(note(1)) {
		t.Errorf("got %s", m)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.step <- note(2) // as if the caller was there
	b.step <- nil
	if err := <-b.ended; err != nil {
		t.Error(err)
	}
	_, done, reply := f.start(t.Context(), "", post)
	b.step <- nil
	if err := <-done; err != nil || string(reply.Body) != "{}" {
		t.Fatalf("%s, %v", reply.Body, err)
	}
	<-b.ended
	ctx, cancel = context.WithCancel(t.Context())
	_, done, _ = f.start(ctx, "", post)
	b.step <- note(3)
	cancel()
	<-done
	if err := f.l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-b.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("after Close: %v", err)
	}
}

// workshop is a backend whose calls send what step gives, up to nil.
type workshop struct {
	*backend
	step  chan []byte
	ended chan error
}

func (w *workshop) Serve(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
	for {
		select {
		case msg := <-w.step:
			if msg == nil {
				w.ended <- nil
				return &router.Reply{Body: []byte("{}")}, nil
			}
			if err := out.Send(ctx, msg); err != nil {
				w.ended <- err
				return nil, err
			}
		case <-ctx.Done():
			w.ended <- ctx.Err()
			return nil, ctx.Err()
		}
	}
}

func TestMalformedEventID(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	for _, last := range []string{"x", ".1", "g1.", "g1.x", "g1.-1"} {
		g := f.listen(f.l, id, last)
		var e *router.Error
		if err := g.end(t); !errors.As(err, &e) || e.Status != 400 {
			t.Errorf("%s: %v", last, err)
		}
	}
}

func TestEndCutsCalls(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.work()
	_, done, _ := f.start(t.Context(), id, post)
	eventually(t, "the call runs", func() bool { return slices.Contains(f.b.heard(), "b1 tools/call") })
	if _, err := f.l.Serve(t.Context(), &router.Request{Op: router.OpEnd, Server: server, Session: id}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, router.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestCloseCutsDetachedCalls(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.work()
	ctx, cancel := context.WithCancel(t.Context())
	_, done, _ := f.start(ctx, id, post)
	eventually(t, "the call runs", func() bool { return slices.Contains(f.b.heard(), "b1 tools/call") })
	cancel()
	<-done
	if err := f.l.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeptForAWhile(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	step, finish := f.work()
	out, done, _ := f.start(t.Context(), id, post)
	step <- 1
	out.wait(t)
	close(finish)
	<-done
	g := f.listen(f.l, id, "")
	g.opened(t)
	g.leave(t)
	f.b.get("b1").out <- note(5)
	eventually(t, "it is kept", func() bool { n, _ := f.l.Kept(); return n > len(note(5)) })
	f.l.Later(session.KeepFor / 2)
	if n, _ := f.l.Kept(); n == 0 {
		t.Error("gone too soon")
	}

	f.work()
	ctx, cancel := context.WithCancel(t.Context())
	_, gone, _ := f.start(ctx, id, "klmnopqrst")
	eventually(t, "the call runs", func() bool { return strings.Count(strings.Join(f.b.heard(), "\n"), "tools/call") == 2 })
	cancel()
	<-gone
	f.l.Later(2 * session.KeepFor)
	eventually(t, "the call that nobody waits for is cancelled", func() bool { return f.l.Sessions()[0].InFlight == 0 })
	f.l.Later(4 * session.KeepFor)
	eventually(t, "nothing is kept", func() bool { n, m := f.l.Kept(); return n == 0 && m == 0 })
}
