// Package raft tunes and watches the Raft groups of nats-server: how fast they
// notice a fault, who leads them, and who takes over when a leader's process dies.
//
//   - [Timing] holds every interval, [LAN], [WAN] and [Stock] are presets;
//     [Timing.Apply] sets them, once, before the first server of the process.
//   - [Watcher] reports which peers a server has routes to, and whether a peer
//     that went is dead or only silent.
//   - [Campaigner] makes the survivors of a dead leader elect another at once.
//   - [Groups], [MetaLeader] and [StepDown] are for status and administration.
package raft

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Timing is how fast a cluster notices faults. It must be the same on every
// node. Raft's part is process-wide ([Timing.Apply]), the pings belong to one
// server ([Timing.Configure]). The formulas are those of [New].
type Timing struct {
	Name string // "lan", "wan", "stock", or a name of your own

	// A leader with nothing to say sends an empty entry this often. Base.
	Heartbeat time.Duration
	// A follower that hears no leader for a random time in between stands for
	// election: 4 and 10 x Heartbeat. Wide, so that two followers seldom choose
	// the same moment and split the vote.
	ElectionMin, ElectionMax time.Duration
	// A follower told to campaign does so after a random time in between: a base
	// (a round trip between voters), and 4 x that.
	CampaignMin, CampaignMax time.Duration
	// A leader that has not heard from a quorum for LostQuorum steps down, checked
	// every LostQuorumCheck: 7.5 and 2.5 x Heartbeat. The sum is how long a leader
	// that is cut off goes on believing that it leads.
	LostQuorum, LostQuorumCheck time.Duration
	// A candidate that finds no quorum tells JetStream this often: 20 x Heartbeat.
	LostQuorumSignal time.Duration
	// A removed peer that is heard again after this long is taken back. Never
	// shorter than nats-server's 5 minutes: a witness that was removed and
	// restarted would make the number of votes even.
	PeerRemove time.Duration
	// How long a quorum lowered by META.RESCUE stays lowered: 5 minutes.
	Rescue time.Duration

	// A route is closed after (RoutePingsOut + 1) x RoutePing without an answer:
	// 2.5 x Heartbeat and 2, so together LostQuorum.
	RoutePing     time.Duration
	RoutePingsOut int
	// The same for clients and leaf nodes: a base and 2.
	ClientPing     time.Duration
	ClientPingsOut int

	// How long each survivor of a dead leader waits for the one before it to be
	// elected: 15 x CampaignMin, which holds CampaignMax and a vote that waits for
	// its fsync.
	CampaignStagger time.Duration
	// How long a peer whose routes ended may take to answer a redial before it
	// counts as silent: 3 x Heartbeat.
	Redial time.Duration
}

// Base is what a Timing is derived from.
type Base struct {
	Heartbeat  time.Duration // above the usual round trip between voters plus an fsync; stalls of 3 x this are survived
	Campaign   time.Duration // above the usual round trip between voters
	ClientPing time.Duration // clients and leaf nodes that hang are dropped after 3 x this
}

// Presets are the names that [ByName] knows.
var Presets = []string{"lan", "wan", "stock"}

// LAN is for voters within a few milliseconds of each other: a dead leader is
// replaced in under 0.1 s with a [Campaigner], a silent one in about 1 s.
func LAN() Timing {
	return New("lan", Base{Heartbeat: 100 * time.Millisecond, Campaign: 10 * time.Millisecond, ClientPing: 5 * time.Second})
}

// WAN is for voters up to 0.2 s apart, or on machines that stall for a second.
func WAN() Timing {
	return New("wan", Base{Heartbeat: 500 * time.Millisecond, Campaign: 50 * time.Millisecond, ClientPing: 10 * time.Second})
}

// Stock is what nats-server does when nobody interferes, and applying it touches
// nothing: a silent leader is replaced in 5 to 9 s, a route to a machine that
// vanished closes after 90 s.
func Stock() Timing {
	return Timing{
		Name:      "stock",
		Heartbeat: time.Second, ElectionMin: 4 * time.Second, ElectionMax: 9 * time.Second,
		CampaignMin: 100 * time.Millisecond, CampaignMax: 800 * time.Millisecond,
		LostQuorum: 10 * time.Second, LostQuorumCheck: 10 * time.Second, LostQuorumSignal: 20 * time.Second,
		PeerRemove: minPeerRemove, Rescue: 5 * time.Minute,
		RoutePing: maxRoutePing, RoutePingsOut: 2,
		ClientPing: 2 * time.Minute, ClientPingsOut: 2,
		CampaignStagger: 1500 * time.Millisecond, Redial: 3 * time.Second,
	}
}

// New derives a Timing from b.
func New(name string, b Base) Timing {
	h := b.Heartbeat
	return Timing{
		Name:      name,
		Heartbeat: h, ElectionMin: 4 * h, ElectionMax: 10 * h,
		CampaignMin: b.Campaign, CampaignMax: 4 * b.Campaign,
		LostQuorum: 15 * h / 2, LostQuorumCheck: 5 * h / 2, LostQuorumSignal: 20 * h,
		PeerRemove: minPeerRemove, Rescue: 5 * time.Minute,
		RoutePing: 5 * h / 2, RoutePingsOut: 2,
		ClientPing: b.ClientPing, ClientPingsOut: 2,
		CampaignStagger: 15 * b.Campaign, Redial: 3 * h,
	}
}

// ByName returns a preset; "" is "lan".
func ByName(name string) (Timing, error) {
	switch name {
	case "", "lan":
		return LAN(), nil
	case "wan":
		return WAN(), nil
	case "stock":
		return Stock(), nil
	}
	return Timing{}, fmt.Errorf("timing %q is unknown; choose one of %s", name, strings.Join(Presets, ", "))
}

// Scale returns t with every interval f times as long, for machines that starve:
// a race detector, a loaded CI runner. PeerRemove and Rescue, which wait for
// people, stay. Validate the result: f may be too large or too small.
func (t Timing) Scale(f float64) Timing {
	t.Name = fmt.Sprintf("%s*%g", t.Name, f)
	for _, d := range []*time.Duration{
		&t.Heartbeat, &t.ElectionMin, &t.ElectionMax, &t.CampaignMin, &t.CampaignMax,
		&t.LostQuorum, &t.LostQuorumCheck, &t.LostQuorumSignal,
		&t.RoutePing, &t.ClientPing, &t.CampaignStagger, &t.Redial,
	} {
		*d = time.Duration(float64(*d) * f)
	}
	return t
}

// Configure sets the ping intervals in o, for [server.NewServer]. Stock leaves o
// as it is.
func (t Timing) Configure(o *server.Options) {
	if t == Stock() {
		return
	}
	o.Cluster.PingInterval, o.Cluster.MaxPingsOut = t.RoutePing, t.RoutePingsOut
	o.PingInterval, o.MaxPingsOut = t.ClientPing, t.ClientPingsOut
}

// RouteSilence is how long a route without an answer stays open.
func (t Timing) RouteSilence() time.Duration {
	return time.Duration(t.RoutePingsOut+1) * t.RoutePing
}
