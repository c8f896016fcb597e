package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// phase is a node's place in the diagram of the package's comment.
type phase int

const (
	down phase = iota
	rising
	up
	suspect
)

// Monitor decides about nodes. Its methods take the time of what they are told,
// which must not go back, and are not safe for concurrent use.
type Monitor struct {
	cfg    Config
	self   string
	nodes  map[string]*node // all but self
	me     NodeState
	voters []string
	leader string // of the meta group, as this node sees it
	split  bool   // a partition was announced
}

type node struct {
	NodeState
	phase    phase
	deadline time.Time // end of the stability window, in suspect and rising
	asked    bool      // rising: the check at the end of the window was asked for
	changed  time.Time // when the phase last changed
	trouble  time.Time // when the first of the checks that failed in a row was begun
	counted  time.Time // when the last of them was
	next     time.Time // when the next check is due
	checking int       // how many are under way
	again    bool      // check again when one has ended
	past     []string  // server ids of processes that were replaced, the latest last
	twin     time.Time // when a replaced process last answered, though asked after that
	replaced time.Time // when the process was last found replaced
}

// NewMonitor returns a monitor for the node called self, at time now.
func NewMonitor(now time.Time, self string, cfg Config) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Monitor{
		cfg: cfg.WithDefaults(), self: self, nodes: map[string]*node{},
		me: NodeState{Name: self, Self: true, State: Up, Health: Healthy, Since: now, LastSeen: now},
	}, nil
}

// Expect makes nodes known by name before they are seen: they are down, and are
// checked. The voters among them are never forgotten; voters replaces what was
// told before.
func (m *Monitor) Expect(now time.Time, voters, others []string) Output {
	m.voters = slices.Clone(voters)
	var out Output
	for _, name := range slices.Concat(voters, others) {
		if name != m.self && m.nodes[name] == nil {
			out.add(m.check(now, m.add(now, name)))
		}
	}
	return out
}

func (m *Monitor) add(now time.Time, name string) *node {
	n := &node{NodeState: NodeState{Name: name, State: Down, Health: Unhealthy, Cause: NeverSeen, Since: now}, changed: now, next: now}
	n.Reasons = []string{"it was never seen"}
	m.nodes[name] = n
	return n
}

// Check is how a check of a node ended.
type Check struct {
	Node    string
	Sent    time.Time
	Failed  string        // why it failed; "" = it succeeded
	Latency time.Duration // there and back
	Skew    time.Duration // see [Skew]
	Report  Report
}

// Checked takes the result of a check.
func (m *Monitor) Checked(now time.Time, c Check) Output {
	n := m.nodes[c.Node]
	if n == nil {
		return Output{}
	}
	var out Output
	n.checking--
	old := c.Report.ServerID != "" && slices.Contains(n.past, c.Report.ServerID)
	if old && c.Sent.After(n.replaced) {
		n.twin = now
	}
	switch {
	case c.Failed != "":
		out = m.failed(now, n, c)
	case old, n.phase == down && c.Sent.Before(n.changed) && n.Cause != NeverSeen:
		// An answer from before the node went down, or from a process that has
		// been replaced since, says nothing about now.
	default:
		out = m.succeeded(now, n, c)
	}
	if n.again {
		n.again = false
		out.add(m.check(now, n))
	}
	return m.conclude(now, out)
}

func (m *Monitor) failed(now time.Time, n *node, c Check) Output {
	if c.Sent.Before(n.changed) && n.phase != suspect {
		return Output{}
	}
	switch n.phase {
	case rising:
		n.to(now, down)
	case up, suspect:
		// Checks that are asked for in between find out sooner that a node is
		// back, not that it is gone: three within a moment are one.
		if n.Failed > 0 && c.Sent.Sub(n.counted) < m.cfg.Interval*9/10 {
			return Output{}
		}
		if n.Failed++; n.Failed == 1 {
			n.trouble = c.Sent
		}
		n.counted = c.Sent
		if n.Failed >= m.cfg.Threshold {
			return m.lost(now, n, Checks, fmt.Sprintf("%d checks in a row failed: %s", n.Failed, c.Failed))
		}
		return m.assess(now, n)
	}
	return Output{}
}

func (m *Monitor) succeeded(now time.Time, n *node, c Check) Output {
	restarted := n.Report.ServerID != "" && c.Report.ServerID != n.Report.ServerID
	caughtUp := c.Report.Ready && !n.Report.Ready && !restarted && n.State == Up
	if restarted {
		n.past = append(n.past[max(0, len(n.past)-7):], n.Report.ServerID)
		n.replaced = now
	}
	n.LastSeen, n.Failed, n.Report, n.Skew = now, 0, c.Report, c.Skew
	n.Latency = c.Latency
	if n.Mean == 0 || restarted {
		n.Mean = c.Latency
	} else {
		n.Mean += (c.Latency - n.Mean) * 3 / 10 // the last three checks make two thirds of it
	}
	var out Output
	switch {
	case n.phase == down && n.Cause == NeverSeen, n.phase == rising && !now.Before(n.deadline):
		return m.found(now, n)
	case n.phase == down:
		n.to(now, rising)
		n.deadline, n.asked = now.Add(m.cfg.Stability), false
	case n.phase == suspect && !c.Sent.Before(n.changed):
		out.add(n.blip(now))
	}
	if restarted && n.State == Up {
		out.Events = append(out.Events, n.event(now, NodeRestarted, fmt.Sprintf("it answers as incarnation %d: what the process before held is gone", c.Report.Incarnation)))
	}
	if caughtUp {
		out.Events = append(out.Events, n.event(now, NodeReady, "it has caught up"))
	}
	out.add(n.draining(now, c.Report.Draining))
	out.add(m.assess(now, n))
	return out
}

// RouteUp says that there is a route to a node.
func (m *Monitor) RouteUp(now time.Time, name string) Output {
	n := m.nodes[name]
	switch {
	case name == m.self:
		return Output{}
	case n == nil:
		return m.check(now, m.add(now, name))
	case n.phase == suspect:
		out := n.blip(now)
		out.add(m.check(now, n))
		return m.conclude(now, out)
	case n.phase == down:
		return m.check(now, n)
	}
	return Output{}
}

// RouteDown says that the last route to a node has ended. dead means that its
// process is known to be gone: every route was reset, and a redial refused.
func (m *Monitor) RouteDown(now time.Time, name string, dead bool) Output {
	n := m.nodes[name]
	if n == nil {
		return Output{}
	}
	switch {
	case n.phase == rising:
		n.to(now, down)
		fallthrough
	case n.phase == down:
		if dead && n.Cause != NeverSeen && n.Cause != Stopped {
			n.Cause = Dead // no partition after all
			n.Reasons = []string{"down: its process is dead"}
		}
	case dead:
		return m.conclude(now, m.lost(now, n, Dead, "its process is dead: its connections were reset and its port is closed"))
	case n.phase == up:
		n.to(now, suspect)
		n.Suspect, n.deadline = true, now.Add(m.cfg.Stability)
		return m.check(now, n)
	}
	return m.conclude(now, Output{})
}

// Stopping says that a node has announced its end. serverID is the process that
// ends; "" = whichever is known.
func (m *Monitor) Stopping(now time.Time, name, serverID string) Output {
	n := m.nodes[name]
	if n == nil || serverID != "" && n.Report.ServerID != "" && serverID != n.Report.ServerID {
		return Output{}
	}
	if n.phase == down || n.phase == rising {
		n.to(now, down)
		if n.Cause != NeverSeen {
			n.Cause, n.Reasons = Stopped, []string{"down: it was stopped"}
		}
		return m.conclude(now, Output{})
	}
	return m.conclude(now, m.lost(now, n, Stopped, "it was shut down in order"))
}

// LameDuck says that a node takes no new work.
func (m *Monitor) LameDuck(now time.Time, name string) Output {
	n := m.nodes[name]
	if n == nil || n.State == Down {
		return Output{}
	}
	out := n.draining(now, true)
	out.add(m.assess(now, n))
	return out
}

// Heard says that a node announced itself. That it can be reached is for a check
// to find out.
func (m *Monitor) Heard(now time.Time, name, serverID string) Output {
	n := m.nodes[name]
	switch {
	case name == m.self:
		return Output{}
	case n == nil:
		return m.check(now, m.add(now, name))
	case n.phase == down, n.phase == suspect, serverID != n.Report.ServerID && !slices.Contains(n.past, serverID):
		return m.check(now, n)
	}
	return Output{}
}

// Self takes this node's own report.
func (m *Monitor) Self(now time.Time, r Report) Output {
	first := m.me.Report.Name == ""
	caughtUp := r.Ready && !m.me.Report.Ready
	m.me.LastSeen, m.me.Report = now, r
	var out Output
	if m.leader != r.MetaLeader {
		reason := "no leader of the meta group is known"
		if r.MetaLeader != "" {
			reason = r.MetaLeader + " leads the meta group"
		}
		m.leader = r.MetaLeader
		out.Events = append(out.Events, Event{Kind: LeaderChanged, Node: r.MetaLeader, At: now, Reason: reason})
	}
	me := &node{NodeState: m.me, phase: up}
	if caughtUp && !first {
		out.Events = append(out.Events, me.event(now, NodeReady, "it has caught up"))
	}
	out.add(me.draining(now, r.Draining))
	out.add(m.assess(now, me))
	m.me = me.NodeState
	return out
}

// Ask asks for a check of a node, though nothing is known to have happened to it.
func (m *Monitor) Ask(now time.Time, name string) Output {
	if n := m.nodes[name]; n != nil {
		return m.check(now, n)
	}
	return Output{}
}

// Forget removes a node for good: it is no longer expected to come back.
func (m *Monitor) Forget(now time.Time, name string) Output {
	n := m.nodes[name]
	if n == nil {
		return Output{}
	}
	delete(m.nodes, name)
	m.voters = slices.DeleteFunc(m.voters, func(v string) bool { return v == name })
	return m.conclude(now, Output{Events: []Event{n.event(now, NodeForgotten, "it was removed")}})
}

// Tick does what is due: windows that end, checks, nodes to forget. It is to be
// called at [Monitor.Wake], and may be called at any time.
func (m *Monitor) Tick(now time.Time) Output {
	var out Output
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		switch {
		case n.phase == suspect && !now.Before(n.deadline):
			out.add(m.lost(now, n, Silent, fmt.Sprintf("its route is lost, and not back after %s", m.cfg.Stability)))
		case n.phase == rising && !now.Before(n.deadline) && !n.asked:
			n.asked = true
			out.add(m.check(now, n))
		case n.phase == down && !slices.Contains(m.voters, name) && n.Report.Role != Voter && !now.Before(n.Since.Add(m.cfg.ForgetAfter)):
			delete(m.nodes, name)
			out.Events = append(out.Events, n.event(now, NodeForgotten, fmt.Sprintf("it is down for %s and does not vote", m.cfg.ForgetAfter)))
			continue
		}
		if n.checking == 0 && !now.Before(n.next) {
			out.add(m.check(now, n))
		}
	}
	return m.conclude(now, out)
}

// Wake returns when the next Tick is due; ok is false when nothing is.
func (m *Monitor) Wake() (at time.Time, ok bool) {
	sooner := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	for _, n := range m.nodes {
		if n.phase == suspect || n.phase == rising && !n.asked {
			sooner(n.deadline)
		}
		if n.checking == 0 {
			sooner(n.next)
		}
	}
	return at, ok
}

// check asks for a check now. One that is under way does not stand in its way: it
// may hang on the very thing that has just changed. Two do.
func (m *Monitor) check(now time.Time, n *node) Output {
	if n.checking >= 2 {
		n.again = true
		return Output{}
	}
	n.checking++
	n.next = now.Add(m.cfg.Interval)
	return Output{Checks: []string{n.Name}}
}
