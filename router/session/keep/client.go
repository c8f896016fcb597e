package keep

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/session"
)

// Client asks the node that an agent is connected to. It is a session.Keeper and
// a session.EventLog.
type Client struct {
	Server string            // the agent's
	Conn   func() *nats.Conn // its connection now
}

var (
	_ session.Keeper   = Client{}
	_ session.EventLog = Client{}
)

func (c Client) subject(verb, server string) (*nats.Conn, string, error) {
	nc := c.Conn()
	id := nc.ConnectedServerId()
	if id == "" {
		return nil, "", router.Errorf(router.ErrUnavailable, "the agent of %q is not connected to a node now; nothing was executed", server)
	}
	return nc, subjectPrefix + id + "." + verb + "." + server, nil
}

func (c Client) ask(ctx context.Context, verb, server string, q question) (answer, error) {
	var a answer
	data, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	msg, err := c.request(ctx, verb, server, data)
	for errors.Is(err, errLost) && (verb == verbFind || verb == verbLocate) && c.connected(ctx) { // which change nothing twice
		msg, err = c.request(ctx, verb, server, data)
	}
	var known *router.Error
	if errors.As(err, &known) {
		return a, err
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return a, errNobody(server)
	}
	if err != nil {
		return a, router.Errorf(router.ErrUnavailable, "the node does not answer about sessions of %q: %v", server, err)
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, err
	}
	if a.Record != nil {
		a.Record.Rev = a.Rev
	}
	return a, errorOf(&a)
}

// errLost: the connection was lost while the node was asked.
var errLost = errors.New("the connection to the node was lost")

// request asks once. It does not wait for an answer on a connection that has none
// any more: a process that stood still finds that out when it asks.
func (c Client) request(ctx context.Context, verb, server string, data []byte) (*nats.Msg, error) {
	nc, subject, err := c.subject(verb, server)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lost := nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-lost:
			cancel(errLost)
		case <-ctx.Done():
		}
	}()
	msg, err := nc.RequestWithContext(ctx, subject, data)
	if err != nil && errors.Is(context.Cause(ctx), errLost) {
		err = errLost
	}
	nc.RemoveStatusListener(lost)
	<-done
	return msg, err
}

// reconnectPoll is how often a connection that is being made again is looked at.
const reconnectPoll = 10 * time.Millisecond

// connected waits until there is a connection, and reports whether there is.
func (c Client) connected(ctx context.Context) bool {
	tick := time.NewTicker(reconnectPoll)
	defer tick.Stop()
	for c.Conn().ConnectedServerId() == "" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func errNobody(server string) error {
	e := router.Errorf(router.ErrUnavailable, "the node keeps no sessions of %q: it stops, or is of an older version", server)
	e.Unreached = true
	return e
}

func (a *answer) record() sessions.Record {
	if a.Record == nil {
		return sessions.Record{}
	}
	return *a.Record
}

// Open implements [session.Keeper]. With a node that keeps no sessions the
// session lives as long as its instance.
func (c Client) Open(ctx context.Context, r sessions.Record) (sessions.Record, error) {
	a, err := c.ask(ctx, verbOpen, r.Server, question{Record: &r})
	var e *router.Error
	if errors.As(err, &e) && e.Unreached {
		r.Epoch, r.RegionEpoch = 1, 1
		return r, nil
	}
	return a.record(), err
}

// Find implements [session.Keeper].
func (c Client) Find(ctx context.Context, server, id string) (sessions.Record, error) {
	a, err := c.ask(ctx, verbFind, server, question{ID: id})
	return a.record(), err
}

// Change implements [session.Keeper].
func (c Client) Change(ctx context.Context, ch session.Change) (sessions.Record, error) {
	a, err := c.ask(ctx, verbChange, ch.Server, question{Change: &ch})
	return a.record(), err
}

// Locate implements [session.Keeper].
func (c Client) Locate(ctx context.Context, server, id, avoid string, epoch uint64) (sessions.Record, error) {
	a, err := c.ask(ctx, verbLocate, server, question{ID: id, Avoid: avoid, Epoch: epoch})
	return a.record(), err
}

// End implements [session.Keeper].
func (c Client) End(ctx context.Context, server, id string, epoch uint64) error {
	_, err := c.ask(ctx, verbEnd, server, question{ID: id, Epoch: epoch})
	return err
}

// Append implements [session.EventLog].
func (c Client) Append(id, stream string, n uint64, msg []byte) {
	nc, subject, err := c.subject(verbAppend, c.Server)
	if err != nil {
		return // as good as lost
	}
	_ = nc.PublishMsg(&nats.Msg{Subject: subject, Data: msg, Header: nats.Header{
		hdrSession: {id}, hdrStream: {stream}, hdrNumber: {strconv.FormatUint(n, 10)},
	}})
}

// Load implements [session.EventLog].
func (c Client) Load(ctx context.Context, id, stream string, after uint64, f func(n uint64, msg []byte) error) error {
	for {
		a, err := c.ask(ctx, verbLoad, c.Server, question{ID: id, Stream: stream, After: after})
		if err != nil {
			return err
		}
		for _, e := range a.Events {
			if err := f(e.N, e.Msg); err != nil {
				return err
			}
			after = e.N
		}
		if !a.More || len(a.Events) == 0 {
			return nil
		}
	}
}

// Forget implements [session.EventLog].
func (c Client) Forget(id string) {
	nc, subject, err := c.subject(verbForget, c.Server)
	if err != nil {
		return
	}
	_ = nc.PublishMsg(&nats.Msg{Subject: subject, Header: nats.Header{hdrSession: {id}}})
}
