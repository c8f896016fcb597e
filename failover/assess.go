package failover

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// assess judges the health of a node that is up, and tells when it changed.
func (m *Monitor) assess(now time.Time, n *node) Output {
	if n.State == Down {
		return Output{}
	}
	health, reasons := m.judge(now, n)
	was := n.Health
	n.Health, n.Reasons = health, reasons
	if was == health {
		return Output{}
	}
	kind := map[Health]EventKind{Healthy: NodeHealthy, Degraded: NodeDegraded, Unhealthy: NodeUnhealthy}[health]
	reason := strings.Join(reasons, "; ")
	if health == Healthy {
		reason = "nothing is wrong with it any more"
	}
	return Output{Events: []Event{n.event(now, kind, reason)}}
}

// judge gives the reasons for what is worse than healthy, worst first.
func (m *Monitor) judge(now time.Time, n *node) (Health, []string) {
	var bad, odd []string
	r := n.Report
	switch r.Gate {
	case GateReadOnly:
		bad = append(bad, "it reaches no majority and accepts no writes")
	case GateFenced:
		bad = append(bad, "it is fenced: its region no longer owns its data")
	}
	if r.Name != "" && !n.Self {
		if p := WireProblem(m.cfg.Wire, r.Wire); p != "" {
			bad = append(bad, p)
		}
		if p := SoftwareProblem(m.cfg.Software, r.Software); p != "" {
			odd = append(odd, p)
		}
	}
	if !n.twin.IsZero() && now.Sub(n.twin) < 3*m.cfg.Interval {
		odd = append(odd, "two processes answer for its name: stop one, or give it another --name")
	}
	if n.Failed > 0 {
		odd = append(odd, fmt.Sprintf("%d of %d checks failed that make it down", n.Failed, m.cfg.Threshold))
	}
	if n.Draining {
		odd = append(odd, "it is draining")
	} else if r.Name != "" && !r.Ready {
		odd = append(odd, "it is not ready: it still catches up")
	}
	if abs := max(n.Skew, -n.Skew); abs > m.cfg.MaxSkew {
		way := "ahead of"
		if n.Skew < 0 {
			way = "behind"
		}
		odd = append(odd, fmt.Sprintf("its wall clock is %s %s ours: check time synchronisation (chronyc tracking) on both", abs.Round(100*time.Millisecond), way))
	}
	if n.Mean > m.cfg.Slow {
		odd = append(odd, fmt.Sprintf("checks take %s on average", n.Mean.Round(time.Millisecond)))
	}
	odd = append(odd, r.Problems...)
	switch {
	case len(bad) > 0:
		return Unhealthy, append(bad, odd...)
	case len(odd) > 0:
		return Degraded, odd
	}
	return Healthy, nil
}

// Skew is how far a node's wall clock is ahead of ours. The clock was read
// somewhere between the question, sent by our wall clock at sent, and the answer
// roundTrip later: halfway is the best guess, and half the round trip its error.
// What the error could explain is not skew, so the result is the guess shortened
// by the error.
func Skew(sent time.Time, roundTrip time.Duration, theirs time.Time) time.Duration {
	half := roundTrip / 2
	guess := theirs.Sub(sent.Round(0)) - half // Round(0) drops the monotonic reading, which theirs lacks
	switch {
	case guess > half:
		return guess - half
	case guess < -half:
		return guess + half
	}
	return 0
}

// View returns every node, this one among them, sorted by name.
func (m *Monitor) View() []NodeState {
	list := []NodeState{m.me}
	for _, n := range m.nodes {
		list = append(list, n.NodeState)
	}
	for i := range list {
		list[i].Leader = m.leader != "" && list[i].Name == m.leader
		list[i].Reasons = slices.Clone(list[i].Reasons)
		if list[i].Report.Role == "" && slices.Contains(m.voters, list[i].Name) {
			list[i].Report.Role = Voter
		}
	}
	slices.SortFunc(list, func(a, b NodeState) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Partition is what speaks for a cut in the network. From inside, a machine that
// hangs or lost its power can't be told from one that is cut off: it counts
// until its process is known to be dead.
type Partition struct {
	Lost     []string // nodes that went silent, and are not known to be dead
	Pairs    []string // "n2-n3": both are up here, and have had no route to each other for two checks
	Voters   int      // nodes that vote, as far as known
	Reached  int      // of them, with this one if it votes
	Minority bool     // fewer than half plus one of the voters are reached
}

// Detected reports whether anything speaks for a partition.
func (p Partition) Detected() bool { return len(p.Lost)+len(p.Pairs) > 0 }

func (p Partition) String() string {
	var parts []string
	if len(p.Lost) > 0 {
		parts = append(parts, "not reached: "+strings.Join(p.Lost, ", "))
	}
	if len(p.Pairs) > 0 {
		parts = append(parts, "without a route to each other: "+strings.Join(p.Pairs, ", "))
	}
	if p.Minority {
		parts = append(parts, fmt.Sprintf("this side has %d of %d votes", p.Reached, p.Voters))
	}
	return strings.Join(parts, "; ")
}

// Partition looks for a cut in the network.
func (m *Monitor) Partition(now time.Time) Partition {
	p := Partition{Voters: len(m.voters)}
	names := slices.Sorted(maps.Keys(m.nodes))
	for _, name := range names {
		if n := m.nodes[name]; n.State == Down && (n.Cause == Silent || n.Cause == Checks) {
			p.Lost = append(p.Lost, name)
		}
	}
	// A report is up to an interval old, and a route may take another to be made.
	settled := func(n *node) bool {
		return n.phase == up && now.Sub(n.Since) > 2*m.cfg.Interval && len(n.Report.Routes) > 0 && !n.Draining
	}
	for i, a := range names {
		for _, b := range names[i+1:] {
			na, nb := m.nodes[a], m.nodes[b]
			if settled(na) && settled(nb) && !slices.Contains(na.Report.Routes, b) && !slices.Contains(nb.Report.Routes, a) {
				p.Pairs = append(p.Pairs, a+"-"+b)
			}
		}
	}
	for _, v := range m.voters {
		if n := m.nodes[v]; v == m.self || n != nil && n.State == Up {
			p.Reached++
		}
	}
	p.Minority = p.Voters > 0 && 2*p.Reached <= p.Voters
	return p
}

// conclude adds what several nodes together say.
func (m *Monitor) conclude(now time.Time, out Output) Output {
	p := m.Partition(now)
	if p.Detected() == m.split {
		return out
	}
	m.split = p.Detected()
	e := Event{Kind: PartitionHealed, Node: m.self, At: now, Reason: "nothing speaks for a partition any more"}
	if m.split {
		e.Kind, e.Reason = PartitionDetected, p.String()
	}
	out.Events = append(out.Events, e)
	return out
}
