package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
)

// Subjects on which agents, which may not write buckets, ask a node to keep the
// registry for them.
const (
	subjectPut    = "ripstop.v1.registry.put"
	subjectRemove = "ripstop.v1.registry.remove"
	subjectList   = "ripstop.v1.registry.list"
	// subjectCensus is broadcast by a node that has started: whoever is
	// attached registers again.
	subjectCensus = "ripstop.v1.registry.census"
)

const registrarQueue = "ripstop"

// requestTimeout bounds one request to a registrar.
const requestTimeout = 5 * time.Second

// answer is what a registrar replies.
type answer struct {
	Node      string     `json:"node,omitempty"`
	Error     string     `json:"error,omitempty"`
	Instances []Instance `json:"instances,omitempty"`
}

// Registrar writes the registry on behalf of agents, and takes out those whose
// connection has ended.
type Registrar struct {
	reg  *Registry
	nc   *nats.Conn
	node string
	open func(Conn) bool // whether nats-server still has the connection
	log  *slog.Logger
	subs []*nats.Subscription
}

// NewRegistrar serves reg on nc. open tells whether a connection is still
// there; it must answer true when it can't know. Records left by an earlier
// run are removed first: their agents register again when they reconnect.
func NewRegistrar(ctx context.Context, nc *nats.Conn, reg *Registry, node string, open func(Conn) bool, log *slog.Logger) (*Registrar, error) {
	r := &Registrar{reg: reg, nc: nc, node: node, open: open, log: log}
	if err := r.Sweep(ctx); err != nil {
		return nil, err
	}
	for subject, f := range map[string]func(context.Context, []byte) answer{
		subjectPut: r.put, subjectRemove: r.remove, subjectList: r.list,
	} {
		sub, err := nc.QueueSubscribe(subject, registrarQueue, func(m *nats.Msg) {
			ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
			defer cancel()
			a := f(ctx, m.Data)
			a.Node = r.node
			data, err := json.Marshal(a)
			if err != nil {
				data = fmt.Appendf(nil, `{"error":%q}`, err)
			}
			if err := m.Respond(data); err != nil {
				log.Warn("registrar can't answer", "subject", subject, "err", err)
			}
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe %s: %w", subject, err), r.Close())
		}
		r.subs = append(r.subs, sub)
	}
	if err := nc.Publish(subjectCensus, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("publish census: %w", err), r.Close())
	}
	return r, nil
}

// Close stops answering agents.
func (r *Registrar) Close() error {
	var errs []error
	for _, s := range r.subs {
		errs = append(errs, s.Unsubscribe())
	}
	return errors.Join(errs...)
}

func (r *Registrar) put(ctx context.Context, data []byte) answer {
	var i Instance
	if err := json.Unmarshal(data, &i); err != nil {
		return answer{Error: "registration does not decode: " + err.Error()}
	}
	if i.Server == "" || i.Instance == "" {
		return answer{Error: "registration names no server or no instance"}
	}
	i.Node = r.node
	known := false
	for _, old := range r.reg.Instances(i.Server) {
		known = known || old.Instance == i.Instance
	}
	if err := r.reg.Put(ctx, i); err != nil {
		return answer{Error: err.Error()}
	}
	if !known {
		r.log.Info("instance registered", "server", i.Server, "instance", i.Instance, "agent", i.Agent, "transport", i.Transport)
	}
	// The connection may have ended before the record was there to be found.
	if !r.open(i.Conn) {
		r.drop(ctx, i, "its connection ended")
	}
	return answer{}
}

func (r *Registrar) remove(ctx context.Context, data []byte) answer {
	var i Instance
	if err := json.Unmarshal(data, &i); err != nil {
		return answer{Error: "removal does not decode: " + err.Error()}
	}
	for _, old := range r.reg.Instances(i.Server) {
		if old.Instance == i.Instance {
			if err := r.drop(ctx, old, "its agent detached it"); err != nil {
				return answer{Error: err.Error()}
			}
		}
	}
	return answer{}
}

func (r *Registrar) list(context.Context, []byte) answer {
	return answer{Instances: r.reg.All()}
}

func (r *Registrar) drop(ctx context.Context, i Instance, why string) error {
	err := r.reg.Remove(ctx, i.Server, i.Instance)
	if err != nil {
		r.log.Error("instance can't be removed", "server", i.Server, "instance", i.Instance, "err", err)
		return err
	}
	r.log.Info("instance gone", "server", i.Server, "instance", i.Instance, "agent", i.Agent, "why", why)
	return nil
}

// Disconnected removes the instances that lived on a connection that ended.
func (r *Registrar) Disconnected(ctx context.Context, c Conn) {
	for _, i := range r.reg.All() {
		if i.Conn == c {
			_ = r.drop(ctx, i, "its connection ended") // logged there, and swept later
		}
	}
}

// Sweep removes every instance whose connection has ended: the safety net under
// Disconnected, for events that were missed.
func (r *Registrar) Sweep(ctx context.Context) error {
	var errs []error
	for _, i := range r.reg.All() {
		if !r.open(i.Conn) {
			errs = append(errs, r.drop(ctx, i, "its connection ended"))
		}
	}
	return errors.Join(errs...)
}

// RegistryClient asks a node's registrar, over NATS.
type RegistryClient struct{ Conn *nats.Conn }

// Put registers i, or changes its record.
func (c RegistryClient) Put(ctx context.Context, i Instance) error {
	_, err := c.ask(ctx, subjectPut, i)
	return err
}

// Remove takes i out of the registry.
func (c RegistryClient) Remove(ctx context.Context, i Instance) error {
	_, err := c.ask(ctx, subjectRemove, i)
	return err
}

// List returns every instance, sorted by server and id.
func (c RegistryClient) List(ctx context.Context) ([]Instance, error) {
	a, err := c.ask(ctx, subjectList, struct{}{})
	return a.Instances, err
}

// OnCensus calls f whenever a node asks who is attached.
func (c RegistryClient) OnCensus(f func()) (*nats.Subscription, error) {
	return c.Conn.Subscribe(subjectCensus, func(*nats.Msg) { f() })
}

func (c RegistryClient) ask(ctx context.Context, subject string, what any) (answer, error) {
	var a answer
	data, err := json.Marshal(what)
	if err != nil {
		return a, fmt.Errorf("encode for %s: %w", subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg, err := c.Conn.RequestWithContext(ctx, subject, data)
	if err != nil {
		return a, fmt.Errorf("ask %s: %w", subject, err)
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, fmt.Errorf("ask %s: %w", subject, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("ask %s: %s", subject, a.Error)
	}
	return a, nil
}
