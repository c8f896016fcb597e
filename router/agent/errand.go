package agent

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router/wire"
)

// maxRelease bounds how long a session may wait to be released.
const maxRelease = 5 * time.Minute

// errand answers what a node asks of the instance itself.
func (a *Agent) errand(what string, msg *nats.Msg) {
	var q wire.Errand
	var r wire.ErrandReply
	err := json.Unmarshal(msg.Data, &q)
	if err == nil {
		r = a.about(q.Session)
		if what == wire.ErrandRelease && r.Held {
			ctx, cancel := context.WithTimeout(a.ctx, min(time.Duration(q.Timeout)*time.Millisecond, maxRelease))
			err = a.layer.Release(ctx, q.Session)
			cancel()
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = a.publish(a.ctx, &nats.Msg{Subject: msg.Reply, Data: data})
	}
	if err != nil && a.ctx.Err() == nil {
		a.log.Warn("a node was not answered", "errand", what, "err", err)
	}
}

func (a *Agent) about(id string) wire.ErrandReply {
	s, held := a.layer.Session(id)
	return wire.ErrandReply{Held: held, Epoch: s.Epoch, Used: s.Used.UTC(), InFlight: s.InFlight, Listening: s.Listening}
}
