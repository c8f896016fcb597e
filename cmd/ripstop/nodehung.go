package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router/wire"
)

// An agent that hangs (SIGSTOP, a machine that stands still) keeps its connection
// until nats-server's pings tell, after 15 s. Its callers notice within two: then
// its node looks at once, and ends the connection of one that does not answer. All
// else follows from that, as when an agent dies.
const (
	hungWithin = 250 * time.Millisecond // to answer, besides what its caller has waited
	hungPause  = time.Second            // between looks at a server's instances
	hungMost   = 256                    // instances looked at, at once
	locateHung = 300 * time.Millisecond // to answer, when a session is to be moved away
)

// sentry looks at instances that callers find silent.
type sentry struct {
	n    *node
	seen chan wire.Gone

	looked map[wire.Gone]time.Time // when that began
}

// watchHung starts looking. Its loops end with the node.
func (n *node) watchHung() error {
	s := &sentry{n: n, seen: make(chan wire.Gone, hungMost), looked: map[wire.Gone]time.Time{}}
	n.wg.Go(s.run)
	_, err := n.fabric.MCP().Subscribe(wire.SubjectSuspect+"*", s.onSuspect)
	return err
}

func (s *sentry) run() {
	for {
		select {
		case g := <-s.seen:
			own := s.own(g.Server, g.Instance)
			if len(own) == 0 || !s.due(g) {
				continue
			}
			for _, i := range own {
				s.n.wg.Go(func() { s.look(i) })
			}
		case <-s.n.ctx.Done():
			return
		}
	}
}

func (s *sentry) onSuspect(msg *nats.Msg) {
	var g wire.Gone
	if json.Unmarshal(msg.Data, &g) != nil {
		return
	}
	g.Server = strings.TrimPrefix(msg.Subject, wire.SubjectSuspect) // which permissions hang on
	select {
	case s.seen <- g:
	default: // it will be said again
	}
}

// own returns the instances of a server whose agents are connected to this node
// and in no process of its own.
func (s *sentry) own(server, instance string) []*kv.Instance {
	var list []*kv.Instance
	id := s.n.fabric.Server().ID()
	for _, i := range s.n.registry.Instances(server) {
		if i.Conn.ServerID == id && (instance == "" || i.Instance == instance) && !s.n.hosts(i.Instance) && len(list) < hungMost {
			list = append(list, i)
		}
	}
	return list
}

// hosts reports whether an instance is in this process.
func (n *node) hosts(instance string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.agents, func(h *hosted) bool { return h.Instance() == instance })
}

func (s *sentry) due(what wire.Gone) bool {
	now := time.Now()
	if now.Sub(s.looked[what]) < hungPause {
		return false
	}
	for old, at := range s.looked {
		if now.Sub(at) >= hungPause {
			delete(s.looked, old)
		}
	}
	s.looked[what] = now
	return true
}

func (s *sentry) look(i *kv.Instance) {
	ctx, cancel := context.WithTimeout(s.n.ctx, 10*hungWithin)
	defer cancel()
	if !s.n.client.Silent(ctx, i.Server, i.Instance, hungWithin) || s.n.ctx.Err() != nil {
		return
	}
	s.n.log.Warn("an agent hangs: its callers and this node get no answer; its connection is ended", "server", i.Server, "instance", i.Instance, "agent", i.Agent)
	if err := s.n.fabric.Server().DisconnectClientByID(i.Conn.ClientID); err != nil {
		s.n.log.Debug("connection not ended", "instance", i.Instance, "err", err)
	}
}
