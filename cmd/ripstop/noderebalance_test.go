package main

import (
	"testing"
	"time"

	"ripstop/failover"
)

func TestNextMove(t *testing.T) {
	now := time.Now()
	voter := func(name string, leads ...string) failover.NodeState {
		return failover.NodeState{Name: name, State: failover.Up, Health: failover.Healthy, Since: now.Add(-time.Minute),
			Report: failover.Report{Role: failover.Voter, Ready: true, Leads: leads}}
	}
	with := func(s failover.NodeState, change func(*failover.NodeState)) failover.NodeState {
		change(&s)
		return s
	}
	relay := with(voter("r"), func(s *failover.NodeState) { s.Report.Role = failover.Relay })
	for name, tt := range map[string]struct {
		view       []failover.NodeState
		stream, to string
	}{
		"uneven":       {[]failover.NodeState{voter("a", "s2", "s1"), voter("b", "s3"), voter("c")}, "s1", "c"},
		"even":         {[]failover.NodeState{voter("a", "s1"), voter("b", "s2"), voter("c")}, "", ""},
		"a relay":      {[]failover.NodeState{voter("a", "s1"), voter("b"), relay}, "", ""},
		"one is down":  {[]failover.NodeState{voter("a", "s1", "s2"), voter("b"), with(voter("c"), func(s *failover.NodeState) { s.State = failover.Down })}, "", ""},
		"one is new":   {[]failover.NodeState{voter("a", "s1", "s2"), with(voter("b"), func(s *failover.NodeState) { s.Since = now })}, "", ""},
		"one drains":   {[]failover.NodeState{voter("a", "s1", "s2"), with(voter("b"), func(s *failover.NodeState) { s.Draining = true })}, "", ""},
		"alone":        {[]failover.NodeState{voter("a", "s1", "s2")}, "", ""},
		"one degraded": {[]failover.NodeState{voter("a", "s1", "s2"), with(voter("b"), func(s *failover.NodeState) { s.Health = failover.Degraded })}, "", ""},
	} {
		if stream, to := nextMove(tt.view, now); stream != tt.stream || to != tt.to {
			t.Errorf("%s: move %q to %q, want %q to %q", name, stream, to, tt.stream, tt.to)
		}
	}
}
