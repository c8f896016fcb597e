package agent

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// table holds the calls that came over NATS: to cancel them, to tell their
// callers that work goes on, and to give up those whose caller is gone. A call
// with a stream id is only let go then: the session layer goes on with it.
type table struct {
	a *Agent

	mu    sync.Mutex
	calls map[*flight]struct{}
	named map[string]*flight
	plain int           // calls that can be neither cancelled nor told anything
	armed bool          // the sweep timer is running
	empty chan struct{} // closed when no call is left, while someone drains
}

// flight is one call.
type flight struct {
	token  string
	to     string // reply subject
	frames bool
	stream bool // ends only when one side ends it
	lasts  bool // goes on without its caller, in the session layer
	cancel context.CancelFunc
	said   time.Time // the last "alive", or the start
	kept   time.Time // the last "keep", or the start
}

// sweepEvery is how often long calls are looked after. Calls shorter than this
// cost nothing.
const sweepEvery = time.Second

func (t *table) init(a *Agent) {
	t.a = a
	t.calls = map[*flight]struct{}{}
	t.named = map[string]*flight{}
}

// enter registers a call; done must be called when it is over.
func (t *table) enter(in *wire.Inbound, to string) (ctx context.Context, done func()) {
	if in.Token == "" && !in.Frames { // a plain request: what it costs beyond the call itself is a count
		t.mu.Lock()
		t.plain++
		t.mu.Unlock()
		return t.a.ctx, t.leavePlain
	}
	ctx, cancel := context.WithCancel(t.a.ctx)
	now := time.Now()
	f := &flight{token: in.Token, to: to, frames: in.Frames, stream: in.Op == router.OpListen || in.Method() == "subscriptions/listen", lasts: in.StreamID != "", cancel: cancel, said: now, kept: now}
	t.mu.Lock()
	t.calls[f] = struct{}{}
	if f.token != "" {
		t.named[f.token] = f
	}
	if !t.armed {
		t.armed = true
		time.AfterFunc(sweepEvery, t.sweep)
	}
	t.mu.Unlock()
	return ctx, func() {
		cancel()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.calls, f)
		if t.named[f.token] == f {
			delete(t.named, f.token)
		}
		t.left()
	}
}

func (t *table) leavePlain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.plain--
	t.left()
}

// left tells who drains when no call is left. The lock is held.
func (t *table) left() {
	if len(t.calls)+t.plain == 0 && t.empty != nil {
		close(t.empty)
		t.empty = nil
	}
}

func (t *table) onControl(msg *nats.Msg) {
	token, what := wire.DecodeControl(msg)
	switch mine := t.control(token, what); {
	case mine && what == wire.ControlProbe:
		t.a.sayAlive(msg.Reply)
	case !mine && what == wire.ControlCancel && t.a.layer.Paused(): // it may have overtaken the request, in what came all at once
		time.AfterFunc(settleFor/2, func() { t.control(token, what) })
	}
}

// control does what is asked of a call. It reports whether it is this instance's
// and not over.
func (t *table) control(token string, what wire.Control) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.named[token]
	if f == nil {
		return false
	}
	switch what {
	case wire.ControlCancel:
		f.cancel()
	case wire.ControlKeep:
		f.kept = time.Now()
	}
	return true
}

// sayAlive answers a probe.
func (a *Agent) sayAlive(to string) {
	if to == "" {
		return
	}
	if err := a.out.publish(wire.AliveMsg(to, a.opts.Instance, "")); err != nil {
		a.log.Debug("alive not sent", "err", err)
	}
}

// sweep says "alive" for the calls that take frames, and cancels those whose
// caller has stopped saying "keep". It runs only while there are calls.
func (t *table) sweep() {
	now := time.Now()
	var alive []string
	t.mu.Lock()
	for f := range t.calls {
		if !f.frames {
			continue
		}
		if f.token != "" && now.Sub(f.kept) > wire.LeaseFor {
			t.a.log.Info("the caller of a call is gone", "silent", now.Sub(f.kept).Round(time.Second), "cancelled", !f.lasts)
			f.cancel()
			continue
		}
		if now.Sub(f.said) >= wire.AliveEvery || f.said.Equal(f.kept) && now.Sub(f.said) >= sweepEvery/2 {
			f.said = now
			alive = append(alive, f.to)
		}
	}
	t.armed = len(t.calls) > 0 && t.a.ctx.Err() == nil
	if t.armed {
		time.AfterFunc(sweepEvery, t.sweep)
	}
	t.mu.Unlock()
	for _, to := range alive {
		t.a.sayAlive(to)
	}
}

// drain ends the streams and waits until the calls in flight are over, or ctx
// ends.
func (t *table) drain(ctx context.Context) {
	t.mu.Lock()
	for f := range t.calls {
		if f.stream {
			f.cancel()
		}
	}
	if len(t.calls)+t.plain == 0 {
		t.mu.Unlock()
		return
	}
	if t.empty == nil {
		t.empty = make(chan struct{})
	}
	empty := t.empty
	t.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// replyID reads the id of a response, for the error that takes its place.
func replyID(body []byte) []byte {
	m, err := jsonrpc.Parse(body)
	if err != nil {
		return nil
	}
	return m.ID
}
