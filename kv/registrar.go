package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Subjects on which agents, which may not write buckets, ask a node to keep the
// registry for them.
const (
	// Agents register with the node whose NATS server they are connected to:
	// it alone knows whether they still are.
	// The MCP server's name at the end is what a user may be limited to.
	subjectAgent = "ripstop.v1.agent." // + server id + ".put" or ".remove" [+ "." + server]
	// subjectList is answered by any node, and with a server's id behind it by
	// that node, which knows its local instances too.
	subjectList = "ripstop.v1.registry.list"
	// subjectCensus asks agents to register again: all of them, those
	// connected to one server, or one instance.
	subjectCensus = "ripstop.v1.registry.census"
)

const registrarQueue = "ripstop"

// requestTimeout bounds one request to a registrar.
const requestTimeout = 5 * time.Second

// sweepEvery is how often instances are compared with the connections that are
// open, besides the events that say so at once.
const sweepEvery = 5 * time.Second

// answer is what a registrar replies.
type answer struct {
	Node      string     `json:"node,omitempty"`
	Stored    bool       `json:"stored,omitempty"` // the bucket has the record too
	Error     string     `json:"error,omitempty"`
	Held      *HeldError `json:"held,omitempty"`
	Instances []Instance `json:"instances,omitempty"`
	AsOf      *time.Time `json:"as_of,omitempty"`
	Stale     bool       `json:"stale,omitempty"`
}

// census is the body of a census; what it leaves out means everyone.
type census struct {
	ServerID string `json:"server_id,omitempty"`
	Instance string `json:"instance,omitempty"`
}

// RegistrarOptions say whom a registrar serves.
type RegistrarOptions struct {
	Agents      *nats.Conn      // where agents are
	ServerID    string          // id of this node's NATS server
	Incarnation uint64          // counts this node's starts, for mutation ids
	Open        func(Conn) bool // whether the server still has a connection; true when that can't be known
	SweepEvery  time.Duration   // 0 = 5 s

	// Speaks says why an instance can't be spoken with, as when it speaks
	// another wire version; it is refused then. nil = all can.
	Speaks func(*Instance) error
	Logger *slog.Logger
}

// Registrar keeps the registry's records of the instances attached to this
// node. They count on this node as soon as their agent has registered; the
// bucket is made to follow, for as long as that takes.
type Registrar struct {
	reg     *Registry
	opts    RegistrarOptions
	log     *slog.Logger
	subs    []*nats.Subscription
	unwatch func()
	q       *queue
	n       atomic.Uint64 // mutations

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Under reg.change.
	conns    map[Conn]map[string]bool // keys of own instances, by connection
	claiming map[string]string        // instance that tries to hold a server, by server

	mu      sync.Mutex                 // a leaf
	written map[string]written         // what is known to stand in the bucket under own keys
	waiting map[string]map[string]bool // instances that were refused, by server
	failing bool                       // the last write did not work
	work    int                        // keys that are being looked at
}

// written is what this node last wrote under a key.
type written struct {
	id      Mutation
	rev     uint64
	doubted bool // the index has heard otherwise since
}

// NewRegistrar serves agents and makes the bucket follow reg, whose Node must
// be set. Records left by an earlier run of this node go: their agents register
// again.
func NewRegistrar(reg *Registry, opts RegistrarOptions) (*Registrar, error) {
	if opts.SweepEvery == 0 {
		opts.SweepEvery = sweepEvery
	}
	r := &Registrar{
		reg: reg, opts: opts, log: opts.Logger, q: newQueue(),
		conns: map[Conn]map[string]bool{}, claiming: map[string]string{},
		written: map[string]written{}, waiting: map[string]map[string]bool{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	reg.attach(r)
	err := errors.Join(
		r.serve(subjectAgent+opts.ServerID+".put", "", r.put),
		r.serve(subjectAgent+opts.ServerID+".remove", "", r.remove),
		r.serve(subjectAgent+opts.ServerID+".put.*", "", r.ofServer(r.put)),
		r.serve(subjectAgent+opts.ServerID+".remove.*", "", r.ofServer(r.remove)),
		r.serve(subjectList+"."+opts.ServerID, "", r.list),
		r.serve(subjectList, registrarQueue, r.list),
	)
	r.wg.Go(r.converge)
	r.wg.Go(r.sweep)
	if err == nil {
		err = r.census(census{ServerID: opts.ServerID})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve the registry: %w", err), r.Close())
	}
	return r, nil
}

func (r *Registrar) serve(subject, group string, f func(msg *nats.Msg)) error {
	sub, err := r.opts.Agents.QueueSubscribe(subject, group, f)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subject, err)
	}
	r.subs = append(r.subs, sub)
	return nil
}

func (r *Registrar) respond(msg *nats.Msg, a answer) {
	a.Node = r.reg.opts.Node
	data, err := json.Marshal(a)
	if err != nil {
		data = fmt.Appendf(nil, `{"error":%q}`, err)
	}
	if err := msg.Respond(data); err != nil && r.ctx.Err() == nil {
		r.log.Warn("registrar can't answer", "subject", msg.Subject, "err", err)
	}
}

func (r *Registrar) census(c census) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return r.opts.Agents.Publish(subjectCensus, data)
}

// Pending returns how many keys of the bucket may differ from what this node
// wants them to be.
func (r *Registrar) Pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.q.len() + r.work
}

// closeTimeout bounds how long Close tries to clear the bucket.
const closeTimeout = time.Second

// Close stops serving agents and takes this node's instances out of the
// registry, of the bucket too if it can be written now.
func (r *Registrar) Close() error {
	var errs []error
	for _, s := range r.subs {
		if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, err)
		}
	}
	r.reg.change.Lock()
	var all []Instance
	for _, i := range r.reg.own {
		all = append(all, *i)
	}
	r.reg.change.Unlock()
	for _, i := range all {
		r.drop(i, "its node stops")
	}
	end := time.Now().Add(closeTimeout)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for r.Pending() > 0 && time.Now().Before(end) {
		r.mu.Lock()
		failing := r.failing
		r.mu.Unlock()
		if failing {
			break
		}
		<-tick.C
	}
	r.cancel()
	r.wg.Wait()
	r.unwatch()
	return errors.Join(errs...)
}
