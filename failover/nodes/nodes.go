// Package nodes watches the nodes of a cluster over NATS and tells the rest of
// the node what became of them. What to make of what it sees is decided by
// package failover.
//
// Subjects, in the account of the fabric; <name> is one token (see
// admin.Token):
//
//	ripstop.v1.node.hello          a node says that it is there: at its start, every check interval, and when it has changed
//	ripstop.v1.node.<name>.hello   the answer to a first hello
//	ripstop.v1.node.bye            a node stops
//	ripstop.v1.node.removed        a node will not come back, says an operator; the body is its name
//	ripstop.v1.node.<name>.status  the check: a request, answered with a NodeReport
//	ripstop.v1.events.<kind>       what this node found: an Event, for whoever wants to know
package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"ripstop/fabric/admin"
	"ripstop/failover"
)

const (
	subjectNode   = "ripstop.v1.node."
	subjectHello  = subjectNode + "hello"
	subjectBye    = subjectNode + "bye"
	subjectGone   = subjectNode + "removed"
	subjectEvents = "ripstop.v1.events."
)

// NodeReport is what a node says of itself.
type NodeReport = failover.Report

// NodeState is a node as this one sees it.
type NodeState = failover.NodeState

// Event is what a node found, as it is published: several nodes find the same.
type Event struct {
	failover.Event
	Observer string `json:"observer"` // the node that found it
	Region   string `json:"region,omitempty"`
}

// Options configure a Runner.
type Options struct {
	Conn *nats.Conn // of the fabric's account; the runner does not close it
	Name string     // of this node

	// Self says what this node knows of itself. It is called for every check
	// of another node, concurrently, so it must answer from memory. Name,
	// Software, Wire and Now are filled in.
	Self func() NodeReport

	Voters []string // nodes that vote, known by name before they are seen
	Peers  []string // others that are known by name

	Config  failover.Config       // zero values have defaults
	Metrics prometheus.Registerer // may be nil
	Logger  *slog.Logger

	Wall func() time.Time // wall clock, of reports only; default time.Now
}

// Runner watches the nodes of a cluster.
type Runner struct {
	opts    Options
	metrics *metrics
	ctx     context.Context // of everything that runs
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	wake    chan struct{} // the monitor has something new to wait for
	news    chan struct{} // there are events to deliver

	mu       sync.Mutex
	m        *failover.Monitor
	subs     []*nats.Subscription
	queue    []failover.Event
	watchers map[int]func(failover.Event)
	lastID   int
	closed   bool
}

// hello is the body of a hello and a bye.
type hello struct {
	Report NodeReport `json:"report"`
	First  bool       `json:"first,omitempty"`   // answer it: the sender knows nobody yet
	Change bool       `json:"changed,omitempty"` // look again: something about the sender has changed
}

// Open starts watching and announces this node.
func Open(opts Options) (*Runner, error) {
	if opts.Wall == nil {
		opts.Wall = time.Now
	}
	opts.Config = opts.Config.WithDefaults()
	m, err := failover.NewMonitor(time.Now(), opts.Name, opts.Config)
	if err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	r := &Runner{opts: opts, m: m, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), watchers: map[int]func(failover.Event){}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.metrics = newMetrics(r)
	if opts.Metrics != nil {
		if err := opts.Metrics.Register(r.metrics); err != nil {
			r.cancel()
			return nil, fmt.Errorf("watch nodes: %w", err)
		}
	}
	r.observe()
	if err := r.subscribe(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch nodes: %w", err), r.Close())
	}
	r.wg.Go(r.run)
	r.wg.Go(r.deliver)
	r.apply(func(now time.Time) failover.Output { return r.m.Expect(now, opts.Voters, opts.Peers) })
	r.say(subjectHello, hello{First: true})
	return r, nil
}

func (r *Runner) subscribe() error {
	for subject, f := range map[string]nats.MsgHandler{
		subjectHello: r.onHello,
		subjectNode + admin.Token(r.opts.Name) + ".hello":  r.onHello,
		subjectNode + admin.Token(r.opts.Name) + ".status": r.onStatus,
		subjectBye:  r.onBye,
		subjectGone: r.onGone,
	} {
		sub, err := r.opts.Conn.Subscribe(subject, f)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", subject, err)
		}
		r.subs = append(r.subs, sub)
	}
	return r.opts.Conn.Flush()
}

// Close says good-bye and stops watching. It is idempotent.
func (r *Runner) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	subs := r.subs
	r.mu.Unlock()
	var errs []error
	if r.opts.Conn.IsConnected() {
		r.say(subjectBye, hello{})
		errs = append(errs, r.opts.Conn.Flush())
		for _, s := range subs {
			if err := s.Unsubscribe(); !errors.Is(err, nats.ErrConnectionClosed) { // the system's may be
				errs = append(errs, err)
			}
		}
	}
	r.cancel()
	r.wg.Wait()
	if r.opts.Metrics != nil {
		r.opts.Metrics.Unregister(r.metrics)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop watching nodes: %w", err)
	}
	return nil
}

// View returns every known node, this one among them, sorted by name.
func (r *Runner) View() []NodeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m.View()
}

// Partition returns what speaks for a cut in the network.
func (r *Runner) Partition() failover.Partition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m.Partition(time.Now())
}

// OnChange calls f for every event, one at a time and in order, until stop is
// called. f may use the runner, but what it takes delays other events.
func (r *Runner) OnChange(f func(failover.Event)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastID++
	id := r.lastID
	r.watchers[id] = f
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// RouteUp says that there is a route to a node.
func (r *Runner) RouteUp(name string) {
	r.apply(func(now time.Time) failover.Output { return r.m.RouteUp(now, name) })
}

// RouteDown says that the last route to a node has ended. dead means that its
// process is known to be gone.
func (r *Runner) RouteDown(name string, dead bool) {
	r.apply(func(now time.Time) failover.Output { return r.m.RouteDown(now, name, dead) })
}

// SetVoters replaces who votes.
func (r *Runner) SetVoters(voters []string) {
	r.apply(func(now time.Time) failover.Output { return r.m.Expect(now, voters, nil) })
}

// Forget has every node forget one that will not come back. One that is heard of
// again is known again.
func (r *Runner) Forget(name string) {
	r.apply(func(now time.Time) failover.Output { return r.m.Forget(now, name) })
	if err := r.opts.Conn.Publish(subjectGone, []byte(name)); err != nil {
		r.opts.Logger.Warn("removal not announced", "node", name, "err", err)
	}
}

// Changed says that what Self reports has changed in a way that others should
// know before their next check: the node drains, is ready, its gate moved.
func (r *Runner) Changed() {
	r.observe()
	r.say(subjectHello, hello{Change: true})
}

// Refresh checks every node now, and returns when they have answered or ctx has
// ended.
func (r *Runner) Refresh(ctx context.Context) {
	r.observe()
	var asked []chan struct{}
	for _, n := range r.View() {
		if n.Self {
			continue
		}
		r.mu.Lock()
		if out := r.m.Ask(time.Now(), n.Name); len(out.Checks) > 0 && !r.closed {
			done := make(chan struct{})
			asked = append(asked, done)
			r.wg.Go(func() {
				defer close(done)
				r.check(n.Name)
			})
		}
		r.mu.Unlock()
	}
	for _, done := range asked {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// WatchSystem also learns from the server: sys is a connection to its system
// account. A server that shuts down or enters lame duck mode says so there.
func (r *Runner) WatchSystem(sys *nats.Conn) error {
	for verb, f := range map[string]func(now time.Time, name, id string) failover.Output{
		"SHUTDOWN": func(now time.Time, name, id string) failover.Output { return r.m.Stopping(now, name, id) },
		"LAMEDUCK": func(now time.Time, name, _ string) failover.Output { return r.m.LameDuck(now, name) },
	} {
		sub, err := sys.Subscribe("$SYS.SERVER.*."+verb, func(m *nats.Msg) {
			var e struct {
				Name string `json:"name"`
				ID   string `json:"id"`
			}
			if err := json.Unmarshal(m.Data, &e); err != nil {
				r.opts.Logger.Warn("server event does not decode", "subject", m.Subject, "err", err)
				return
			}
			r.apply(func(now time.Time) failover.Output { return f(now, e.Name, e.ID) })
		})
		if err != nil {
			return fmt.Errorf("watch server events: %w", err)
		}
		r.mu.Lock()
		r.subs = append(r.subs, sub)
		r.mu.Unlock()
	}
	return sys.Flush()
}

// report is what this node says of itself.
func (r *Runner) report() NodeReport {
	rep := r.opts.Self()
	rep.Name, rep.Software, rep.Wire, rep.Now = r.opts.Name, r.opts.Config.Software, r.opts.Config.Wire, r.opts.Wall()
	return rep
}

func (r *Runner) observe() {
	rep := r.report()
	r.apply(func(now time.Time) failover.Output { return r.m.Self(now, rep) })
}

// say publishes what concerns all nodes. That it can't be sent is no reason to
// stop: checks find out what announcements did not tell.
func (r *Runner) say(subject string, h hello) {
	h.Report = r.report()
	data, err := json.Marshal(h)
	if err == nil {
		err = r.opts.Conn.Publish(subject, data)
	}
	if err != nil && r.ctx.Err() == nil {
		r.opts.Logger.Warn("node not announced", "subject", subject, "err", err)
	}
}

// apply tells the monitor something, and sets about what follows.
func (r *Runner) apply(f func(now time.Time) failover.Output) {
	r.mu.Lock()
	out := f(time.Now())
	r.queue = append(r.queue, out.Events...)
	if !r.closed {
		for _, name := range out.Checks {
			r.wg.Go(func() { r.check(name) })
		}
	}
	r.mu.Unlock()
	if len(out.Events) > 0 {
		poke(r.news)
	}
	poke(r.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run wakes the monitor when it wants to be, and announces this node.
func (r *Runner) run() {
	announce := time.NewTicker(r.opts.Config.Interval)
	defer announce.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		r.mu.Lock()
		at, ok := r.m.Wake()
		r.mu.Unlock()
		if ok {
			timer.Reset(max(0, time.Until(at)))
		} else {
			timer.Stop()
		}
		select {
		case <-r.ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
			r.apply(func(now time.Time) failover.Output { return r.m.Tick(now) })
		case <-announce.C:
			r.observe()
			r.say(subjectHello, hello{})
		}
	}
}
