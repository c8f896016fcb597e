package session_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/session"
)

// Sessions that move between three instances while these crash, are paused and
// released: every call is served, and none twice.
func TestMovesUnderLoad(t *testing.T) {
	f := setup(t, nil)
	names := []string{here, there, "cccccccccc"}
	layers := map[string]*session.Layer{here: f.l}
	backends := []*backend{f.b}
	for _, name := range names[1:] {
		b := newBackend()
		b.name = name[:1]
		backends = append(backends, b)
		layers[name] = f.another(b, func(o *session.Options) { o.Instance = name })
	}
	var executed sync.Map
	for _, b := range backends {
		b.work = func(_ context.Context, _ *backendSession, m *jsonrpc.Message, _ router.Stream) ([]byte, error) {
			if _, again := executed.LoadOrStore(string(m.ID), true); again {
				t.Errorf("call %s was executed twice", m.ID)
			}
			return []byte("{}"), nil
		}
	}
	var ids []string
	for range 5 {
		id := f.open()
		f.say(f.l, id, initialized)
		ids = append(ids, id)
	}
	var calls, followed atomic.Int64
	// send is what a router does.
	send := func(req *router.Request, out router.Stream) error {
		deadline := time.Now().Add(10 * time.Second)
		for time.Now().Before(deadline) {
			rec, ok := f.k.record(req.Session)
			if !ok {
				return fmt.Errorf("the record of %s is gone", req.Session)
			}
			to := *req
			to.Epoch = rec.Epoch
			if rand.IntN(8) == 0 { // it has not heard of the last move
				to.Epoch, rec.Instance = 0, names[rand.IntN(3)]
			}
			_, err := layers[rec.Instance].Serve(t.Context(), &to, out)
			if err == nil || !errors.Is(err, router.ErrMoved) && !errors.Is(err, router.ErrUnavailable) {
				return err
			}
			followed.Add(1)
		}
		return errors.New("no instance served the call in time")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	every := func(d time.Duration, f func()) {
		wg.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					f()
				case <-stop:
					return
				}
			}
		})
	}
	pick := func() string { return ids[rand.IntN(len(ids))] }
	every(3*time.Millisecond, func() { f.k.move(pick(), names[rand.IntN(3)]) })
	every(17*time.Millisecond, func() {
		b := backends[rand.IntN(3)]
		for _, id := range b.live() {
			b.forget(id)
		}
	})
	every(23*time.Millisecond, func() { layers[names[rand.IntN(3)]].StandStill() })
	every(11*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		id := pick()
		if rec, _ := f.k.record(id); layers[rec.Instance].Release(ctx, id) == nil {
			f.k.move(id, names[rand.IntN(3)])
		}
	})
	for _, id := range ids { // a client's stream, which follows its session
		wg.Go(func() {
			out := newStream()
			for {
				select {
				case <-stop:
					return
				case <-out.got:
				default:
				}
				rec, _ := f.k.record(id)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				_, _ = layers[rec.Instance].Serve(ctx, &router.Request{Op: router.OpListen, Server: server, Session: id, LastEventID: out.last(), Epoch: rec.Epoch}, out)
				cancel()
				for len(out.got) > 0 {
					<-out.got
				}
			}
		})
	}
	for i := range 6 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				req := request(t, pick(), fmt.Sprintf(`{"jsonrpc":"2.0","id":"%d-%d","method":"tools/call","params":{"name":"x"}}`, i, n))
				if i%2 == 0 {
					req.StreamID = fmt.Sprintf("stream-%d-%d", i, n)
				}
				if err := send(req, router.Discard); err != nil {
					t.Errorf("call %d-%d: %v", i, n, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	time.Sleep(2 * time.Second)
	close(stop)
	wg.Wait()
	for name, l := range layers {
		for _, s := range l.Sessions() {
			if s.InFlight != 0 {
				t.Errorf("instance %s: session %s has %d calls in flight", name, s.ID, s.InFlight)
			}
		}
	}
	for _, id := range ids {
		if err := send(request(t, id, list), router.Discard); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
	t.Logf("%d calls, followed %d times", calls.Load(), followed.Load())
}
