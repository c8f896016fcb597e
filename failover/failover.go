// Package failover decides: which nodes of the cluster are up, and how well they
// are. It does no I/O and has no clock: what was seen, and when, is passed in,
// and what follows from it is returned. What watches and acts is in
// failover/nodes.
//
// # The states of a node
//
// A [Monitor] keeps each node in one of four phases. Two of them are seen from
// outside as "up", two as "down":
//
//	            route lost silently
//	+--------+ ---------------------> +---------+
//	|   up   |                        | suspect |   still up
//	+--------+ <--------------------- +---------+
//	 ^   |      route back, or a check   |
//	 |   |      begun since succeeds     | the stability window ends
//	 |   |                               v
//	 |   | process dead; shut down;   +--------+
//	 |   +--------------------------> |  down  |
//	 |     threshold of failed checks +--------+
//	 |                                 |    ^
//	 | a check succeeds after          |    | a check fails,
//	 | the stability window            v    | a route is lost
//	 |                            +----------+
//	 +--------------------------- |  rising  |   still down
//	                              +----------+
//
// up: the node is used. Ways out: a route that ended because the process is
// dead, and a shutdown it announced, lead to down at once; a route that went
// silent leads to suspect; [Config.Threshold] checks that fail in a row lead to
// down.
//
// suspect: the last route is gone and nobody knows why. The node still counts as
// up, and nothing is told to anyone: a blip shorter than [Config.Stability] must
// cause nothing. Ways out: the route is back, or a check that was begun after
// the loss succeeds (up); the window ends, the process turns out to be dead, or
// says that it stops (down).
//
// down: the node is not used. Ways out: a check that was begun after the node
// went down succeeds (rising). A node that was never seen before goes to up
// without a detour: it has no past of flapping. One that votes stays known for
// ever; another is forgotten after [Config.ForgetAfter].
//
// rising: the node answers again, and must go on doing so for [Config.Stability]
// before it is used. Ways out: a check at the end of the window succeeds (up); a
// check fails or the route is lost (down, told to nobody).
//
// Besides, a node that is up is healthy, degraded (works, but something should be
// looked at) or unhealthy (must not be relied on); a node that is down is
// unhealthy. [NodeState.Reasons] says why.
package failover

import (
	"fmt"
	"time"
)

// State says whether a node is used.
type State string

// The states.
const (
	Up   State = "up"
	Down State = "down"
)

// Health says how well a node does.
type Health string

// The healths, from best to worst.
const (
	Healthy   Health = "healthy"
	Degraded  Health = "degraded"  // works; something should be looked at
	Unhealthy Health = "unhealthy" // must not be relied on
)

// Role is what a node is in its region's JetStream cluster.
type Role string

// The roles.
const (
	Voter Role = "voter"
	Relay Role = "relay"
)

// States of a node's write gate, as it reports them. The empty string counts as
// GateWritable.
const (
	GateWritable   = "writable"
	GateReadOnly   = "read_only"
	GateFenced     = "fenced"
	GateStandalone = "standalone"
)

// Cause is why a node is down.
type Cause string

// The causes. Only Silent and Checks may be a partition: in the others the
// process is known to be gone, or was never there.
const (
	NeverSeen Cause = "never seen"
	Stopped   Cause = "stopped"       // it said so
	Dead      Cause = "process dead"  // its routes were reset and a redial refused
	Silent    Cause = "route lost"    // and not back within the stability window
	Checks    Cause = "checks failed" // as many in a row as the threshold
)

// Report is what a node says of itself: the reply to a check.
type Report struct {
	Name        string    `json:"name"`
	Region      string    `json:"region"`
	Role        Role      `json:"role"`
	Software    string    `json:"software"` // version of the binary
	Wire        []int     `json:"wire"`     // wire versions it speaks
	ServerID    string    `json:"server_id"`
	Incarnation uint64    `json:"incarnation"` // counts the starts of this node; 0 = unknown
	Started     time.Time `json:"started"`
	Now         time.Time `json:"now"` // its wall clock when it answered
	Ready       bool      `json:"ready"`
	Draining    bool      `json:"draining,omitempty"`
	MetaLeader  string    `json:"meta_leader,omitempty"`      // as it sees it; "" = none
	Leads       []string  `json:"leads,omitempty"`            // streams it leads
	Routes      []string  `json:"routes,omitempty"`           // nodes it has a route to
	Clients     int       `json:"clients"`                    // client connections
	Instances   int       `json:"instances"`                  // MCP instances it holds for its clients
	Pending     int       `json:"sessions_pending,omitempty"` // records of sessions that it could not store yet
	Gate        string    `json:"gate,omitempty"`             // state of its write gate
	Problems    []string  `json:"problems,omitempty"`         // what it finds wrong with itself
}

// NodeState is a node as this one sees it.
type NodeState struct {
	Name     string   `json:"name"`
	Self     bool     `json:"self,omitempty"`
	State    State    `json:"state"`
	Health   Health   `json:"health"`
	Reasons  []string `json:"reasons,omitempty"` // why it is not healthy
	Cause    Cause    `json:"cause,omitempty"`   // why it is down
	Suspect  bool     `json:"suspect,omitempty"` // up, with its route lost: the stability window runs
	Draining bool     `json:"draining,omitempty"`
	Leader   bool     `json:"leader,omitempty"` // it leads the meta group, as this node sees it

	Since    time.Time     `json:"since"`              // of State
	LastSeen time.Time     `json:"last_seen,omitzero"` // when it last answered
	Latency  time.Duration `json:"latency"`            // of the last check, in ns, there and back
	Mean     time.Duration `json:"latency_mean"`       // weighted mean of the checks, in ns
	Skew     time.Duration `json:"clock_skew"`         // its wall clock minus ours, in ns
	Failed   int           `json:"failed_checks,omitempty"`

	Report Report `json:"report"` // its last
}

// EventKind is what happened, as the last token of an event's subject.
type EventKind string

// The kinds of events. Restarted says that the process that was known is gone,
// with everything it held, though the node was never found down.
const (
	NodeUp            EventKind = "node_up"
	NodeDown          EventKind = "node_down"
	NodeRestarted     EventKind = "node_restarted"
	NodeHealthy       EventKind = "node_healthy"
	NodeDegraded      EventKind = "node_degraded"
	NodeUnhealthy     EventKind = "node_unhealthy"
	NodeDraining      EventKind = "node_draining"
	NodeReady         EventKind = "node_ready" // caught up
	NodeForgotten     EventKind = "node_forgotten"
	BlipIgnored       EventKind = "blip_ignored"
	LeaderChanged     EventKind = "leader_changed" // Node is the new one, "" if none is known
	PartitionDetected EventKind = "partition_detected"
	PartitionHealed   EventKind = "partition_healed"
)

// Event is something the monitor found.
type Event struct {
	Kind   EventKind     `json:"kind"`
	Node   string        `json:"node"`
	At     time.Time     `json:"at"`
	Cause  Cause         `json:"cause,omitempty"`
	Reason string        `json:"reason,omitempty"` // for people
	Server string        `json:"server,omitempty"` // node_down: id of the NATS server that is gone; "" = not known
	Took   time.Duration `json:"took,omitempty"`   // node_down: since the first sign of its loss, in ns
}

// Output is what follows from an input: what happened, and which nodes to check
// now.
type Output struct {
	Events []Event
	Checks []string
}

func (o *Output) add(more Output) {
	o.Events = append(o.Events, more.Events...)
	o.Checks = append(o.Checks, more.Checks...)
}

// Config are the monitor's times. Defaults apply to zero values.
type Config struct {
	// Interval is the time between checks of a node that nothing happens to;
	// default 5 s. Routes that end are seen by events, at once, so that checks
	// find only what hangs.
	Interval time.Duration

	// Timeout is how long a check may take; default 2 s, less than Interval.
	Timeout time.Duration

	// Threshold is how many checks in a row must fail before a node with no
	// other sign of trouble is down; default 3. Of checks closer than Interval
	// one counts. The worst case is Threshold x Interval + Timeout.
	Threshold int

	// Stability is how long a silent loss must last before it counts, and how
	// long a return must; default 1.5 s. It should be above the time a route
	// takes to be made again, and below the time clients are ready to wait.
	Stability time.Duration

	// MaxSkew is how far a wall clock may be off; default 5 s. What is known no
	// better than half the round trip is given the benefit of the doubt.
	MaxSkew time.Duration

	// Slow is the mean latency above which a node is degraded; default a quarter
	// of Timeout.
	Slow time.Duration

	// ForgetAfter is when a relay that is down is no longer shown; default 1 h.
	ForgetAfter time.Duration

	// Software and Wire are this node's versions.
	Software string
	Wire     []int
}

// WithDefaults returns c with its zero values replaced.
func (c Config) WithDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Interval, 5*time.Second)
	def(&c.Timeout, 2*time.Second)
	def(&c.Stability, 1500*time.Millisecond)
	def(&c.MaxSkew, 5*time.Second)
	def(&c.Slow, c.Timeout/4)
	def(&c.ForgetAfter, time.Hour)
	if c.Threshold == 0 {
		c.Threshold = 3
	}
	return c
}

// Validate names what can't be meant.
func (c Config) Validate() error {
	c = c.WithDefaults()
	switch {
	case c.Interval < 0 || c.Timeout < 0 || c.Stability < 0 || c.MaxSkew < 0 || c.Slow < 0 || c.ForgetAfter < 0:
		return fmt.Errorf("a time of the node monitor is negative: %+v", c)
	case c.Timeout >= c.Interval:
		return fmt.Errorf("health check timeout %s is not below the node check interval %s: a check must end before the next begins", c.Timeout, c.Interval)
	case c.Threshold < 1:
		return fmt.Errorf("failover threshold %d: at least one check must fail before a node is down", c.Threshold)
	}
	return nil
}
