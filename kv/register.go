package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ofServer refuses the record of another server than its subject ends in, since
// the subject is what its sender has the right to.
func (r *Registrar) ofServer(f func(msg *nats.Msg)) func(msg *nats.Msg) {
	return func(msg *nats.Msg) {
		var i Instance
		err := json.Unmarshal(msg.Data, &i) // f reports what does not decode
		if name := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]; err == nil && i.Server != name {
			r.respond(msg, answer{Error: fmt.Sprintf("the subject is for server %q, the record is of %q", name, i.Server)})
			return
		}
		f(msg)
	}
}

func (r *Registrar) put(msg *nats.Msg) {
	var i Instance
	if err := json.Unmarshal(msg.Data, &i); err != nil {
		r.respond(msg, answer{Error: "registration does not decode: " + err.Error()})
		return
	}
	if err := r.check(&i); err != nil {
		r.respond(msg, answer{Error: err.Error()})
		return
	}
	if !i.Exclusive {
		r.respond(msg, r.answerTo(i, r.accept(i, false)))
		return
	}
	r.wg.Go(func() { // waits for the bucket
		ctx, cancel := context.WithTimeout(r.ctx, requestTimeout-time.Second)
		defer cancel()
		r.respond(msg, r.answerTo(i, r.acceptExclusive(ctx, i)))
	})
}

func (r *Registrar) answerTo(i Instance, err error) answer {
	var held *HeldError
	if errors.As(err, &held) {
		return answer{Error: err.Error(), Held: held}
	}
	if err != nil {
		return answer{Error: err.Error()}
	}
	r.reg.change.Lock()
	own := r.reg.own[i.Key()]
	r.reg.change.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.written[i.Key()]
	return answer{Stored: ok && own != nil && w.id == own.Mutation}
}

// check completes a registration and refuses one that makes no sense.
func (r *Registrar) check(i *Instance) error {
	switch {
	case !isName(i.Server) || !isName(i.Instance):
		return fmt.Errorf("registration of server %.80q, instance %.80q: each is a name of letters, digits, '-' and '_' that begins with a letter or digit", i.Server, i.Instance)
	case i.Conn.ServerID != r.opts.ServerID:
		return fmt.Errorf("the connection of instance %s is one of NATS server %.60q; register with the node you are connected to", i.Instance, i.Conn.ServerID)
	case i.Scope == "":
		i.Scope = ScopeGlobal
	case i.Scope != ScopeGlobal && i.Scope != ScopeLocal:
		return fmt.Errorf("scope %.40q is neither %s nor %s", i.Scope, ScopeGlobal, ScopeLocal)
	case i.Scope == ScopeLocal && i.Exclusive:
		return errors.New("an exclusive registration concerns the whole cluster; its scope can't be local")
	}
	if i.Standby && !i.Exclusive {
		return errors.New("only an exclusive registration can stand by")
	}
	if r.opts.Speaks != nil {
		if err := r.opts.Speaks(i); err != nil {
			return err
		}
	}
	i.Schema, i.Node = recordSchema, r.reg.opts.Node
	intern(i)
	return nil
}

func isName(s string) bool {
	for n, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (n == 0 || c != '-' && c != '_') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// errSuperseded answers a registration that was overtaken by a newer one.
var errSuperseded = errors.New("a newer registration of this instance is known")

// accept makes i count on this node and has the bucket follow. holds says that
// i has the exclusive right to its server.
func (r *Registrar) accept(i Instance, holds bool) error {
	r.reg.change.Lock()
	err := r.acceptLocked(i, holds)
	r.reg.change.Unlock()
	if err != nil {
		return err
	}
	// The connection may have ended before the record was there to be found.
	if !r.opts.Open(i.Conn) {
		r.drop(i, "its connection ended")
		return fmt.Errorf("connection %d of instance %s has ended", i.Conn.ClientID, i.Instance)
	}
	return nil
}

func (r *Registrar) acceptLocked(i Instance, holds bool) error {
	if !holds {
		if err := r.heldBy(i); err != nil {
			r.remember(i)
			return err
		}
	}
	key := i.Key()
	old := r.reg.own[key]
	known := old != nil
	switch rec := r.reg.records[key]; {
	case known && old.supersedes(&i), rec != nil && rec.supersedes(&i):
		return fmt.Errorf("instance %s: %w", i.Instance, errSuperseded)
	case known && sameRegistration(*old, i):
		return nil
	case known:
		r.unindex(old)
	}
	i.Mutation = Mutation{r.reg.opts.Node, r.opts.Incarnation, r.n.Add(1)}
	r.reg.own[key] = &i
	if r.conns[i.Conn] == nil {
		r.conns[i.Conn] = map[string]bool{}
	}
	r.conns[i.Conn][key] = true
	r.reg.show([]string{key})
	if i.Scope != ScopeLocal || known {
		r.q.add(key)
	}
	if !known {
		r.log.Info("instance registered", "server", i.Server, "instance", i.Instance, "agent", i.Agent, "transport", i.Transport, "scope", i.Scope)
	}
	return nil
}

func sameRegistration(a, b Instance) bool {
	a.Mutation, b.Mutation = Mutation{}, Mutation{}
	return reflect.DeepEqual(a, b)
}

// unindex forgets which connection i lived on. The caller holds reg.change.
func (r *Registrar) unindex(i *Instance) {
	keys := r.conns[i.Conn]
	if delete(keys, i.Key()); len(keys) == 0 {
		delete(r.conns, i.Conn)
	}
}

func (r *Registrar) remove(msg *nats.Msg) {
	var i Instance
	if err := json.Unmarshal(msg.Data, &i); err != nil {
		r.respond(msg, answer{Error: "removal does not decode: " + err.Error()})
		return
	}
	r.reg.change.Lock()
	own := r.reg.own[i.Key()]
	r.reg.change.Unlock()
	if own != nil && !own.supersedes(&i) {
		r.drop(*own, "its agent detached it")
	}
	r.unwait(i.Server, i.Instance)
	r.respond(msg, answer{})
}

func (r *Registrar) list(msg *nats.Msg) {
	a := answer{Instances: r.reg.All(), Stale: r.reg.Stale()}
	if asOf := r.reg.AsOf().UTC(); !asOf.IsZero() {
		a.AsOf = &asOf
	}
	r.respond(msg, a)
}

// drop takes an instance of this node out, if it still is what i says.
func (r *Registrar) drop(i Instance, why string) bool {
	r.reg.change.Lock()
	defer r.reg.change.Unlock()
	key := i.Key()
	own := r.reg.own[key]
	if own == nil || own.Conn != i.Conn || own.Seq != i.Seq || own.Run != i.Run {
		return false
	}
	delete(r.reg.own, key)
	r.unindex(own)
	r.reg.show([]string{key})
	r.q.add(key)
	if own.Exclusive {
		r.q.add(claimPrefix + own.Server)
	}
	r.q.wake(own.Server)
	r.log.Info("instance gone", "server", i.Server, "instance", i.Instance, "agent", i.Agent, "why", why)
	return true
}

// Disconnected removes the instances that lived on a connection that ended.
func (r *Registrar) Disconnected(c Conn) {
	r.reg.change.Lock()
	var gone []Instance
	for key := range r.conns[c] {
		gone = append(gone, *r.reg.own[key])
	}
	r.reg.change.Unlock()
	for _, i := range gone {
		r.drop(i, "its connection ended")
	}
}

// sweep is the safety net under Disconnected, for events that were missed.
func (r *Registrar) sweep() {
	tick := time.NewTicker(r.opts.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		r.reg.change.Lock()
		conns := make([]Conn, 0, len(r.conns))
		for c := range r.conns {
			conns = append(conns, c)
		}
		r.reg.change.Unlock()
		for _, c := range conns {
			if !r.opts.Open(c) {
				r.Disconnected(c)
			}
		}
	}
}
