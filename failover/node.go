package failover

import (
	"fmt"
	"time"
)

// found is a node's way up, and lost its way down.
func (m *Monitor) found(now time.Time, n *node) Output {
	reason := "it answers"
	if n.Cause != NeverSeen {
		reason = fmt.Sprintf("it answers again, after %s", now.Sub(n.Since).Round(100*time.Millisecond))
	}
	n.to(now, up)
	n.State, n.Cause, n.Since, n.Health, n.Reasons, n.Draining = Up, "", now, Healthy, nil, false
	out := Output{Events: []Event{n.event(now, NodeUp, reason)}}
	out.add(n.draining(now, n.Report.Draining))
	out.add(m.assess(now, n))
	return out
}

func (m *Monitor) lost(now time.Time, n *node, why Cause, reason string) Output {
	sign := now // of its loss, the first
	if n.phase == suspect {
		sign = n.changed
	}
	if n.Failed > 0 && n.trouble.Before(sign) {
		sign = n.trouble
	}
	n.to(now, down)
	n.State, n.Cause, n.Since, n.Health, n.Draining = Down, why, now, Unhealthy, false
	n.Reasons = []string{"down: " + reason}
	e := n.event(now, NodeDown, reason)
	e.Cause, e.Server, e.Took = why, n.Report.ServerID, now.Sub(sign)
	return Output{Events: []Event{e}}
}

func (n *node) to(now time.Time, p phase) {
	n.phase, n.changed, n.Suspect = p, now, false
}

func (n *node) blip(now time.Time) Output {
	lasted := now.Sub(n.changed)
	n.to(now, up)
	return Output{Events: []Event{n.event(now, BlipIgnored, fmt.Sprintf("its route was lost for %s", lasted.Round(time.Millisecond)))}}
}

func (n *node) draining(now time.Time, is bool) Output {
	was := n.Draining
	n.Draining = is
	if is && !was && n.State == Up {
		return Output{Events: []Event{n.event(now, NodeDraining, "it takes no new work")}}
	}
	return Output{}
}

func (n *node) event(now time.Time, kind EventKind, reason string) Event {
	return Event{Kind: kind, Node: n.Name, At: now, Reason: reason}
}
