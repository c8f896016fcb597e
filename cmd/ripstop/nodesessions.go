package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"ripstop/fabric/raft"
	"ripstop/failover"
	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router/session/keep"
	"ripstop/router/wire"
)

// openSessions opens the records of sessions and what keeps them. The router
// they are moved by comes later.
func (n *node) openSessions() error {
	f := n.fabric
	var err error
	n.sessions, err = sessions.Open(sessions.Options{
		Fabric: f.Fabric(), Region: f.Region(), Replicas: f.Votes(), Node: f.Name(), Incarnation: f.Incarnation(),
		File: filepath.Join(n.settings.DataDir, "sessions.db"), Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.events, err = sessions.OpenEventLog(sessions.EventOptions{
		Fabric: f.Fabric(), Region: f.Region(), Replicas: f.Votes(), Durability: n.settings.EventDurability, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.keep = keep.New(keep.Options{
		Store: n.sessions, Registry: n.registry, Region: f.Region(), Node: f.Name(),
		Pick:      func(server, avoid string) *kv.Instance { return n.router.Pick(server, avoid) },
		Clustered: f.Clustered(),
		Silent: func(ctx context.Context, server, instance string, ask bool) bool {
			within := locateHung
			if !ask {
				within = 0
			}
			return !n.hosts(instance) && n.client.Silent(ctx, server, instance, within)
		},
		Writable: func() bool { state, _ := n.gate(); return state == failover.GateWritable },
		NodeUp:   n.nodeUp,
		Tell:     n.tellOfSession,
		Logger:   n.log,
	})
	n.metrics.MustRegister(n.keep.Collector())
	n.awaitSessions()
	return nil
}

// settleTimeout is how long what a node of a cluster hosts waits for the node to
// know the cluster's sessions: one that can't may be alone, and serves then.
const settleTimeout = 3 * time.Second

// awaitSessions closes n.settled once the sessions are known. What is hosted here takes
// no request of another instance's session before: it could not say where it is.
func (n *node) awaitSessions() {
	n.settled = make(chan struct{})
	if !n.fabric.Clustered() {
		close(n.settled)
		return
	}
	n.wg.Go(func() {
		defer close(n.settled)
		end := time.NewTimer(settleTimeout)
		defer end.Stop()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n.sessions.Stale() {
			select {
			case <-tick.C:
			case <-end.C:
				return
			case <-n.ctx.Done():
				return
			}
		}
	})
}

// serveSessions answers agents in other processes, and cleans up.
func (n *node) serveSessions() error {
	var err error
	n.keeping, err = n.keep.Serve(n.fabric.MCP(), n.fabric.Server().ID(), n.events)
	if err != nil {
		return err
	}
	n.keepsSessions.Store(true)
	n.wg.Go(func() {
		n.keep.Clean(n.ctx, keep.CleanOptions{Every: n.settings.SessionCleanup, Idle: n.settings.SessionIdle, Leads: n.leads})
	})
	return nil
}

// subjectEvents is where nodes say what happened; see failover/nodes.
const subjectEvents = "ripstop.v1.events."

func (n *node) tellOfSession(e keep.Event) {
	data, err := json.Marshal(e)
	if err == nil {
		err = n.fabric.Fabric().Publish(subjectEvents+e.Kind, data)
	}
	if err != nil && n.ctx.Err() == nil {
		n.log.Warn("event not published", "kind", e.Kind, "err", err)
	}
}

// leads reports whether this node does what one node of the cluster should do.
func (n *node) leads() bool {
	return !n.fabric.Clustered() || n.fabric.Voter() && raft.MetaLeader(n.fabric.Server()) == n.fabric.Name()
}

// nodeUp reports whether a node is up, as far as this one knows.
func (n *node) nodeUp(name string) bool {
	if name == n.fabric.Name() {
		return true
	}
	w := n.nodes.Load()
	if w == nil {
		return false
	}
	for _, s := range w.View() {
		if s.Name == name {
			return s.State == failover.Up
		}
	}
	return false
}

// onRegistry follows what comes and goes.
func (n *node) onRegistry(c kv.Change) {
	if !c.Gone {
		return
	}
	i := &c.Instance
	n.router.Forget(i.Server)
	n.client.Lost(i.Server, i.Instance)
	data, err := json.Marshal(wire.Gone{Server: i.Server, Instance: i.Instance})
	if err == nil {
		err = n.fabric.MCP().Publish(wire.SubjectGone, data)
	}
	if err != nil && n.ctx.Err() == nil {
		n.log.Debug("callers not told of an instance that is gone", "err", err)
	}
}

// closeSessions undoes openSessions and serveSessions.
func (n *node) closeSessions() []error {
	n.keepsSessions.Store(false)
	var errs []error
	if n.keeping != nil {
		n.keeping.Close()
	}
	if n.keep != nil {
		n.keep.Close()
	}
	if n.events != nil {
		errs = append(errs, n.events.Close())
	}
	if n.sessions != nil {
		errs = append(errs, n.sessions.Close())
	}
	return errs
}
