package raft

import (
	"context"
	"crypto/tls"
	"time"
)

// Variables are nats-server's, in the order of Timing.
type Variables = variables

func AtStart() Variables             { return atStart }
func Now() Variables                 { return readVariables() }
func (t Timing) RaftPart() Variables { return t.variables() }

// Candidacies returns group -> rank.
func Candidacies(groups []Group, dead string, alive map[string]bool) map[string]int {
	m := map[string]int{}
	for _, c := range candidacies(groups, dead, alive) {
		m[c.group] = c.rank
	}
	return m
}

func Redial(ctx context.Context, limit time.Duration, p Peer, conf *tls.Config) (dead bool, reason string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return redial(ctx, p, conf)
}

// RouteSource lets a test play the server.
type RouteSource = routeSource

func NewWatcherOf(srv RouteSource, opts WatchOptions) *Watcher { return newWatcher(srv, opts) }
