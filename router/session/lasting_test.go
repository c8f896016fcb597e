package session_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// A process that stood still asks before it serves.
func TestStandStill(t *testing.T) {
	f := setup(t, nil)
	mine, moved := f.open(), f.open()
	finds, _ := f.k.counts()
	f.l.StandStill()
	contains(t, f.say(f.l, mine, call), `"by":"b1"`)
	if n, _ := f.k.counts(); n != finds+1 {
		t.Errorf("%d reads of the record, want 1", n-finds)
	}
	f.say(f.l, mine, call)
	if n, _ := f.k.counts(); n != finds+1 {
		t.Errorf("%d reads of the record, want 1", n-finds)
	}
	g := f.listen(f.l, moved, "")
	g.opened(t)
	f.k.move(moved, there)
	f.say(f.l, moved, call) // who does not know serves on
	f.l.StandStill()
	if err := g.end(t); !errors.Is(err, router.ErrMoved) {
		t.Errorf("the listener heard %v", err)
	}
	f.fails(f.l, moved, call, router.ErrMoved)
	if slices.Contains(f.b.live(), "b2") {
		eventually(t, "the backend session ends", func() bool { return !slices.Contains(f.b.live(), "b2") })
	}
	f.l.StandStill()
	f.k.break_(errors.New("no connection"))
	f.fails(f.l, mine, call, router.ErrUnavailable)
}

func TestToldOfAMove(t *testing.T) {
	f := setup(t, nil)
	id, other := f.open(), f.open()
	g := f.listen(f.l, id, "")
	g.opened(t)
	f.l.Moved(id, 1)
	f.l.Moved("unknown", 2)
	f.say(f.l, id, call)
	epoch := f.k.move(id, there)
	f.l.Moved(id, epoch)
	if err := g.end(t); !errors.Is(err, router.ErrMoved) {
		t.Errorf("the listener heard %v", err)
	}
	eventually(t, "the backend session ends", func() bool { return slices.Equal(f.b.live(), []string{"b2"}) })
	f.k.move(other, there)
	f.say(f.l, other, call) // nobody has said so
	f.l.Doubt()
	f.fails(f.l, other, call, router.ErrMoved)
}

// A panic of a server in this process fails its call, and nothing else.
func TestPanic(t *testing.T) {
	f := setup(t, nil)
	id := f.open()
	f.b.set(func() {
		f.b.work = func(context.Context, *backendSession, *jsonrpc.Message, router.Stream) ([]byte, error) { panic("oops") }
	})
	f.fails(f.l, id, call, router.ErrOutcomeUnknown)
	_, done, _ := f.start(t.Context(), id, post)
	if err := <-done; !errors.Is(err, router.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
	f.say(f.l, id, list)
}

func TestNothingIsLeft(t *testing.T) {
	f := setup(t, nil)
	for n := range 1000 {
		id := f.open()
		f.say(f.l, id, initialized)
		_, done, _ := f.start(t.Context(), id, post)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n%10 == 0 {
			g := f.listen(f.l, id, "")
			g.opened(t)
			f.b.crash()
			f.say(f.l, id, call)
			g.wait(t)
		}
		if _, err := f.l.Serve(t.Context(), &router.Request{Op: router.OpEnd, Server: server, Session: id}, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is gone", func() bool {
		bytes, kept := f.l.Kept()
		return len(f.l.Sessions()) == 0 && len(f.b.live()) == 0 && len(f.k.recs) == 0 && len(f.g.list) == 0 && bytes == 0 && kept == 0
	})
}
