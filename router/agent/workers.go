package agent

import (
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"ripstop/router/wire"
)

// maxIdle bounds the goroutines an agent keeps for its next requests.
const maxIdle = 64

// workers are the goroutines that answer requests. There are as many as there
// are calls in flight; one that is done takes the next request, since its stack
// has grown to what a call needs, which costs more than all else of a short one.
type workers struct {
	next chan *nats.Msg // unbuffered: only a waiting worker receives
	idle atomic.Int32
}

// onRequest takes a request off the subscription.
func (a *Agent) onRequest(msg *nats.Msg) {
	if msg.Reply == "" {
		a.log.Debug("request without a reply subject ignored", "subject", msg.Subject)
		return
	}
	if is, again := wire.IsProbe(msg); is {
		if again {
			a.layer.Doubt() // others may hold this instance to be hung, and have its sessions
		}
		a.sayAlive(msg.Reply)
		return
	}
	if !a.hire(msg) {
		a.turnAway(msg)
	}
}

// hire gives msg to a worker, unless the agent has stopped.
func (a *Agent) hire(msg *nats.Msg) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return false
	}
	select {
	case a.workers.next <- msg:
	default:
		a.wg.Go(func() { a.work(msg) })
	}
	return true
}

func (a *Agent) work(msg *nats.Msg) {
	for msg != nil {
		a.answer(msg)
		msg = a.await()
	}
}

// await waits for another request; nil means that the worker is not needed.
func (a *Agent) await() *nats.Msg {
	defer a.workers.idle.Add(-1)
	if a.workers.idle.Add(1) > maxIdle {
		return nil
	}
	select {
	case msg := <-a.workers.next:
		return msg
	case <-a.ctx.Done():
		return nil
	}
}
