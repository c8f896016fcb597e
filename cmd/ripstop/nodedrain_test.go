package main

import (
	"testing"

	"ripstop/failover"
)

func TestWorkingNodes(t *testing.T) {
	var w workingNodes
	if !w.Healthy("n1") {
		t.Error("before anything is known every node takes work")
	}
	w.learn([]failover.NodeState{
		{Name: "me", Self: true, State: failover.Up, Health: failover.Unhealthy},
		{Name: "fine", State: failover.Up, Health: failover.Healthy},
		{Name: "slow", State: failover.Up, Health: failover.Degraded},
		{Name: "cut", State: failover.Up, Health: failover.Unhealthy},
		{Name: "leaving", State: failover.Up, Health: failover.Degraded, Draining: true},
		{Name: "dead", State: failover.Down, Health: failover.Unhealthy, Cause: failover.Dead},
		{Name: "new", State: failover.Down, Health: failover.Unhealthy, Cause: failover.NeverSeen},
	})
	for name, want := range map[string]bool{"me": true, "fine": true, "slow": true, "cut": false, "leaving": false, "dead": false, "new": true, "unknown": true} {
		if got := w.Healthy(name); got != want {
			t.Errorf("Healthy(%q) = %v, want %v", name, got, want)
		}
	}
	w.learn([]failover.NodeState{{Name: "me", Self: true, State: failover.Up, Draining: true}, {Name: "dead", State: failover.Up, Health: failover.Healthy}})
	if w.Healthy("me") || !w.Healthy("dead") {
		t.Error("a node that drains has no work of its own either; one that is back has")
	}
}
