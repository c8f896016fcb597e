package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router/wire"
)

// line is a connection and what the agent subscribes on it. There are two while
// the agent moves from one server to another.
type line struct {
	nc     *nats.Conn
	reg    kv.RegistryClient
	subs   []*nats.Subscription // as long as it is attached
	shared []*nats.Subscription // on what any instance of the server may answer; the queue group's first. Guarded by Agent.mu
}

func newLine(nc *nats.Conn) *line {
	return &line{nc: nc, reg: kv.RegistryClient{Conn: nc}}
}

// subscribe takes what is for this instance alone. The group is for two lines of
// the instance: one of them gets a request. And a server of a cluster that has
// lost its member passes a request on to the other's.
func (a *Agent) subscribe(l *line) error {
	server, id := a.opts.Server, a.opts.Instance
	add := func(sub *nats.Subscription, err error) error {
		if err == nil {
			l.subs = append(l.subs, sub)
		}
		return err
	}
	return errors.Join(
		add(l.nc.QueueSubscribe(wire.InstanceSubject(server, id), id, a.onRequest)),
		add(l.nc.Subscribe(wire.ControlSubject(server, "*"), a.table.onControl)),
		add(l.reg.OnCensus(id, a.registerSoon)),
	)
}

// join takes requests that any instance of the server may answer, and shows the
// instance as a micro service. It waits for the registry's consent: another may
// hold the name.
func (a *Agent) join(l *line) error {
	joined, err := a.subscribeShared(l)
	if err != nil || !joined {
		return err
	}
	return l.nc.Flush() // what is registered must be reachable
}

func (a *Agent) subscribeShared(l *line) (joined bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asleep = false
	if len(l.shared) > 0 || a.closed {
		return false, nil
	}
	add := func(sub *nats.Subscription, err error) error {
		if err == nil {
			l.shared = append(l.shared, sub)
		}
		return err
	}
	err = add(l.nc.QueueSubscribe(wire.ServerSubject(a.opts.Server), wire.QueueGroup, a.onRequest))
	if err == nil {
		err = a.subscribeMicro(l.nc, add)
	}
	if err == nil {
		a.joined = true
		return true, nil
	}
	err = errors.Join(err, unsubscribe(l.shared))
	l.shared = nil
	return false, err
}

// leave undoes join: another has the name.
func (a *Agent) leave() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asleep, a.joined = true, false
	var errs []error
	for _, l := range []*line{a.line, a.left} {
		if l != nil {
			errs = append(errs, unsubscribe(l.shared))
			l.shared = nil
		}
	}
	return errors.Join(errs...)
}

// unsubscribe ends all of the line's subscriptions, whose agent must not change
// them meanwhile.
func (l *line) unsubscribe() error {
	return errors.Join(unsubscribe(l.shared), unsubscribe(l.subs))
}

func unsubscribe(subs []*nats.Subscription) error {
	var errs []error
	for _, s := range subs {
		if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// drain ends subs of nc, and returns when what they have received was handed on.
// Without a server there is nothing to wait for.
func drain(ctx context.Context, nc *nats.Conn, subs []*nats.Subscription) {
	if !nc.IsConnected() {
		_ = unsubscribe(subs) // what it would tell the server does not matter
		return
	}
	var closed []<-chan nats.SubStatus
	for _, s := range subs {
		c := s.StatusChanged(nats.SubscriptionClosed)
		if s.Drain() == nil { // else the connection is gone, and the subscription with it
			closed = append(closed, c)
		}
	}
	for _, c := range closed {
		select {
		case <-c:
		case <-ctx.Done():
			return
		}
	}
}

// outlet is where replies go. The connection behind it may change; replies keep
// their order.
type outlet struct {
	mu sync.RWMutex
	nc *nats.Conn
}

func (o *outlet) publish(msg *nats.Msg) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.nc.PublishMsg(msg)
}

// headStart is what replies through the old connection get before the first one
// takes another way through the cluster, so that it does not overtake them.
const headStart = 20 * time.Millisecond

// turn makes replies go through nc from now on.
func (o *outlet) turn(nc *nats.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.nc.FlushTimeout(time.Second) == nil { // all that was published is with the server
		time.Sleep(headStart)
	}
	o.nc = nc
}

// While the connection is made again, replies wait: for replyWait at most,
// trying every replyRetry.
const (
	replyWait  = 5 * time.Second
	replyRetry = 5 * time.Millisecond
)

// publish sends a reply. It waits while there is no connection: a call that was
// executed should not end without an answer.
func (a *Agent) publish(ctx context.Context, msg *nats.Msg) error {
	err := a.out.publish(msg)
	if err == nil || !errors.Is(err, nats.ErrReconnectBufExceeded) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, replyWait)
	defer cancel()
	tick := time.NewTicker(replyRetry)
	defer tick.Stop()
	for errors.Is(err, nats.ErrReconnectBufExceeded) {
		select {
		case <-tick.C:
			err = a.out.publish(msg)
		case <-ctx.Done():
			return err
		}
	}
	return err
}

// A node that stands still has what was sent to its agents before, and passes it
// on when it goes on; by then other nodes may have given the sessions to others.
const (
	nodeEvery = time.Second // between looks
	nodeMost  = time.Second // for an answer
)

// watchNode has sessions confirmed when the node has not answered for a while. A
// connection that is lost tells by itself.
func (a *Agent) watchNode() {
	tick := time.NewTicker(nodeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.ctx.Done():
			return
		}
		if !a.layer.Any() {
			continue
		}
		ctx, cancel := context.WithTimeout(a.ctx, nodeMost)
		err := a.conn().FlushWithContext(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
			a.log.Debug("the node does not answer; sessions are confirmed before they are served")
			a.layer.Doubt()
		}
	}
}
