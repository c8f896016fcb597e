package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric/admin"
	"ripstop/failover"
)

// check asks a node for its report, and tells the monitor how that ended.
func (r *Runner) check(name string) {
	c := failover.Check{Node: name, Sent: time.Now()}
	wall := r.opts.Wall()
	ctx, cancel := context.WithTimeout(r.ctx, r.opts.Config.Timeout)
	defer cancel()
	m, err := r.opts.Conn.RequestWithContext(ctx, subjectNode+admin.Token(name)+".status", nil)
	c.Latency = time.Since(c.Sent)
	if err == nil {
		err = json.Unmarshal(m.Data, &c.Report)
	}
	switch {
	case r.ctx.Err() != nil: // closed: it was not the node that failed
		return
	case errors.Is(err, nats.ErrNoResponders):
		c.Failed = "nobody answers for it: there is no route to it, or it does not run"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		c.Failed = fmt.Sprintf("no answer within %s", r.opts.Config.Timeout)
	case err != nil:
		c.Failed = err.Error()
	case c.Report.Name != name:
		c.Failed = fmt.Sprintf("%q answered in its place", c.Report.Name)
	default:
		c.Skew = failover.Skew(wall, c.Latency, c.Report.Now)
	}
	r.metrics.checked(c.Failed == "")
	r.apply(func(now time.Time) failover.Output { return r.m.Checked(now, c) })
}

func (r *Runner) onStatus(m *nats.Msg) {
	if m.Reply == "" {
		return
	}
	data, err := json.Marshal(r.report())
	if err == nil {
		err = m.Respond(data)
	}
	if err != nil && r.ctx.Err() == nil {
		r.opts.Logger.Warn("check not answered", "err", err)
	}
}

func (r *Runner) onHello(m *nats.Msg) {
	h, ok := r.read(m)
	if !ok {
		return
	}
	name, id := h.Report.Name, h.Report.ServerID
	r.apply(func(now time.Time) failover.Output {
		out := r.m.Heard(now, name, id)
		switch {
		case len(out.Checks) > 0:
		case h.Report.Draining: // before the next check: new work must not go there
			out = r.m.LameDuck(now, name)
		case h.Change:
			out = r.m.Ask(now, name)
		}
		return out
	})
	if h.First {
		r.say(subjectNode+admin.Token(name)+".hello", hello{})
	}
}

func (r *Runner) onBye(m *nats.Msg) {
	if h, ok := r.read(m); ok {
		r.apply(func(now time.Time) failover.Output { return r.m.Stopping(now, h.Report.Name, h.Report.ServerID) })
	}
}

func (r *Runner) onGone(m *nats.Msg) {
	name := string(m.Data)
	if name == r.opts.Name {
		r.opts.Logger.Error("an operator has removed this node from the cluster: stop it; it may join again with an empty data directory and a new name")
		return
	}
	r.apply(func(now time.Time) failover.Output { return r.m.Forget(now, name) })
}

// read decodes what another node announces.
func (r *Runner) read(m *nats.Msg) (hello, bool) {
	var h hello
	if err := json.Unmarshal(m.Data, &h); err != nil || h.Report.Name == "" {
		r.opts.Logger.Warn("announcement of a node does not decode", "subject", m.Subject, "err", err)
		return h, false
	}
	if h.Report.Name == r.opts.Name {
		if mine := r.report().ServerID; h.Report.ServerID != mine {
			r.opts.Logger.Error("another process has this node's name: stop it, or give it another --name", "its_server_id", h.Report.ServerID, "server_id", mine)
		}
		return h, false
	}
	return h, true
}
