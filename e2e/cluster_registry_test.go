package e2e

import (
	"context"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/e2e/lab"
)

// claimPrefix begins the keys of exclusive registrations in the bucket.
const claimPrefix = "_exclusive."

// How long a registration lives, in writes of its writer, and how often and
// long a contended one is held.
const (
	lifetime     = 50
	contendEvery = 150 * time.Millisecond
	contendHold  = 100 * time.Millisecond
	contended    = 2 // names
)

// registrant registers instances at one node, as an agent does: exclusive ones,
// whose acknowledgement says that the bucket has them.
type registrant struct {
	l    *load
	name string
	at   int // which of them; part of the instances' ids
	nc   *nats.Conn
	n    atomic.Uint32

	mu   sync.Mutex
	live map[uint32]registration
}

// registration is an instance's record, as far as removing it needs it.
type registration struct {
	server, instance string
	conn             map[string]any
}

// writer starts the registrations at a node: a stream of names of their own,
// each registered once and removed a little later, and a slower one that
// contends with the other nodes' for a few names.
func (l *load) writer(ctx context.Context, m *member, at int) {
	nc, err := dialLoad([]string{"nats://" + m.nats}, nats.Name("load/"+m.name))
	if err != nil {
		l.log("connect %s: %v", m.name, err)
		return
	}
	w := &registrant{l: l, name: m.name, at: at, nc: nc, live: map[uint32]registration{}}
	l.stream(ctx, writeEvery, time.Duration(at)*writeEvery/3, w.write)
	l.stream(ctx, contendEvery, time.Duration(at)*contendEvery/3, w.contend)
	l.closeAfter(ctx, nc)
}

var instanceID = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// next makes a registration for server, never made before.
func (w *registrant) next() (uint32, registration) {
	n := w.n.Add(1)
	raw := binary.BigEndian.AppendUint32([]byte{0, byte(w.at)}, n)
	return n, registration{instance: instanceID.EncodeToString(raw)} // 10 characters, as the registry wants them
}

func (w *registrant) write(ctx context.Context, _ int) {
	n, r := w.next()
	r.server = fmt.Sprintf("load-%s-%d", w.name, n)
	key := claimPrefix + r.server
	end := w.l.h.Begin(kindPut, w.name, key, r.instance)
	o, holder, err := w.ask(ctx, "put", &r)
	end(o, holder, err)
	w.mu.Lock()
	if o != lab.Refused {
		w.live[n] = r
	}
	var due []registration
	for k, old := range w.live { // few
		if k+lifetime <= n {
			due = append(due, old)
			delete(w.live, k)
		}
	}
	w.mu.Unlock()
	for _, old := range due {
		end := w.l.h.Begin(kindRemove, w.name, claimPrefix+old.server, "remove "+old.instance)
		o, _, err := w.ask(ctx, "remove", &old)
		end(o, "", err)
	}
}

// contend takes a name that others want too, and gives it back. Each attempt is
// a client of its own to the checker: it takes the name at most once.
func (w *registrant) contend(ctx context.Context, n int) {
	_, r := w.next()
	r.server = fmt.Sprintf("lock-%d", n%contended)
	key := claimPrefix + r.server
	end := w.l.h.Begin(lab.Acquire, r.instance, key, w.name+" "+r.instance)
	o, holder, err := w.ask(ctx, "put", &r)
	end(o, holder, err)
	if o == lab.Refused {
		return
	}
	select {
	case <-time.After(contendHold):
	case <-ctx.Done():
	}
	end = w.l.h.Begin(lab.Release, r.instance, key, w.name+" release "+r.instance)
	_, _, err = w.ask(ctx, "remove", &r)
	end(lab.Unknown, "", err) // the bucket follows later: the feed tells when
}

// ask puts or removes a record. holder names who has the name, when that is why
// it was refused.
func (w *registrant) ask(ctx context.Context, verb string, r *registration) (o lab.Outcome, holder string, err error) {
	if verb == "put" {
		cid, err := w.nc.GetClientID()
		if err != nil || !w.nc.IsConnected() {
			return lab.Refused, "", nats.ErrDisconnected
		}
		r.conn = map[string]any{"server_id": w.nc.ConnectedServerId(), "client_id": cid}
	}
	record, err := json.Marshal(map[string]any{
		"server": r.server, "instance": r.instance, "agent": "e2e", "transport": "go", "software": "e2e", "wire": 1,
		"scope": "global", "exclusive": true, "run": r.instance, "seq": 1, "conn": r.conn,
	})
	if err != nil {
		return lab.Refused, "", err
	}
	msg, err := w.nc.RequestWithContext(ctx, fmt.Sprintf("ripstop.v1.agent.%s.%s", r.conn["server_id"], verb), record)
	if err != nil {
		return outcomeOf(err), "", err
	}
	var answer struct {
		Error string
		Held  *struct{ Instance string }
	}
	switch err := json.Unmarshal(msg.Data, &answer); {
	case err != nil:
		return lab.Unknown, "", err
	case answer.Held != nil:
		return lab.Refused, answer.Held.Instance, fmt.Errorf("held")
	case answer.Error != "":
		return lab.Unknown, "", fmt.Errorf("%s", strings.ReplaceAll(answer.Error, r.server, "NAME"))
	}
	return lab.OK, "", nil
}

// feed notes what the registry's bucket republishes.
type feed struct {
	h    *lab.History
	mu   sync.Mutex
	keys map[string][]change          // of claims, in the order of their arrival
	seqs map[string]map[uint64]string // node → what each sequence number was
}

// change is one of a claim. No instance means that it is gone.
type change struct {
	at       time.Duration
	seq      uint64
	instance string
}

// follow listens at one node, whenever it is there.
func (f *feed) follow(ctx context.Context, l *load, m *member) {
	nc, err := dialLoad([]string{"nats://" + m.nats}, nats.UserInfo("operator", "operator"))
	if err != nil {
		l.log("follow the feed at %s: %v", m.name, err)
		return
	}
	f.seqs[m.name] = map[uint64]string{}
	if _, err := nc.Subscribe("ripstop.feed.>", func(msg *nats.Msg) { f.take(m.name, msg) }); err != nil {
		l.log("follow the feed at %s: %v", m.name, err)
	}
	l.closeAfter(ctx, nc)
}

func (f *feed) take(node string, msg *nats.Msg) {
	parts := strings.SplitN(msg.Subject, ".", 5) // ripstop.feed.<region>.<bucket>.<key>
	seq, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil || len(parts) < 5 || !strings.HasPrefix(parts[3], "registry_") {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seqs[node][seq] = parts[4] + " " + string(msg.Data)
	if !strings.HasPrefix(parts[4], claimPrefix) {
		return
	}
	c := change{at: f.h.Now(), seq: seq}
	if len(msg.Data) > 0 {
		var claim struct{ Instance string }
		if json.Unmarshal(msg.Data, &claim) == nil {
			c.instance = claim.Instance
		}
	}
	f.keys[parts[4]] = append(f.keys[parts[4]], c)
}

// settle puts what the feed tells into operations on contended names: when a
// release took effect, and whether an acquisition did whose outcome is unknown.
// An acquisition that the feed never showed is left out; that can only hide it.
func (f *feed) settle(ops []lab.Op) []lab.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]lab.Op, 0, len(ops))
	for _, op := range ops {
		at, seen := f.took(op)
		switch {
		case op.Outcome != lab.Unknown:
		case seen:
			op.Return, op.Outcome = max(at, op.Return), lab.OK
		case op.Kind == lab.Acquire:
			continue
		}
		out = append(out, op)
	}
	return out
}

// took returns when the feed first showed that op had taken effect.
func (f *feed) took(op lab.Op) (at time.Duration, seen bool) {
	for _, c := range f.keys[op.Target] {
		done := c.instance == op.Client
		if op.Kind == lab.Release {
			done = !done && c.at > op.Call && f.before(op, c.seq)
		}
		if done && (!seen || c.at < at) {
			at, seen = c.at, true
		}
	}
	return at, seen
}

// before reports whether op's client had the name at a sequence number before
// seq.
func (f *feed) before(op lab.Op, seq uint64) bool {
	for _, c := range f.keys[op.Target] {
		if c.instance == op.Client && c.seq < seq {
			return true
		}
	}
	return false
}

// forks compares what nodes heard under each sequence number: committed
// history that was written anew.
func (f *feed) forks() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return lab.Forks(f.seqs)
}
