package raft

import (
	"errors"
	"fmt"
	"time"
)

const (
	minPeerRemove = 5 * time.Minute  // nats-server's own
	maxRoutePing  = 30 * time.Second // nats-server takes no more (server/route.go, defaultRouteMaxPingInterval)
)

// Validate reports every relation between the values that does not hold, and
// what it is for.
func (t Timing) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("timing %q: "+format, append([]any{t.Name}, args...)...))
		}
	}
	for _, v := range t.named() {
		require(v.d > 0, "%s is %s; it must be positive", v.name, v.d)
	}
	require(t.RoutePingsOut >= 1, "RoutePingsOut is %d; a route needs at least one unanswered ping", t.RoutePingsOut)
	require(t.ClientPingsOut >= 1, "ClientPingsOut is %d; a client needs at least one unanswered ping", t.ClientPingsOut)
	if len(errs) > 0 {
		return errors.Join(errs...) // the relations would only repeat them
	}
	require(3*t.Heartbeat < t.ElectionMin, "ElectionMin %s must be more than 3 x Heartbeat (%s), or a late heartbeat starts an election", t.ElectionMin, t.Heartbeat)
	require(t.ElectionMax >= t.ElectionMin*3/2, "ElectionMax %s must be at least 1.5 x ElectionMin (%s), or followers split the vote", t.ElectionMax, t.ElectionMin)
	require(t.CampaignMin < t.CampaignMax, "CampaignMax %s must be more than CampaignMin (%s)", t.CampaignMax, t.CampaignMin)
	require(t.CampaignMax < t.ElectionMin, "CampaignMax %s must be less than ElectionMin (%s), or campaigning is no faster than waiting", t.CampaignMax, t.ElectionMin)
	require(t.LostQuorum >= t.ElectionMin, "LostQuorum %s must be at least ElectionMin (%s), or a leader gives up before its followers would", t.LostQuorum, t.ElectionMin)
	require(t.LostQuorumCheck <= t.LostQuorum, "LostQuorumCheck %s must not be more than LostQuorum (%s)", t.LostQuorumCheck, t.LostQuorum)
	require(t.LostQuorumSignal >= t.LostQuorum, "LostQuorumSignal %s must be at least LostQuorum (%s)", t.LostQuorumSignal, t.LostQuorum)
	require(t.PeerRemove >= minPeerRemove, "PeerRemove %s must be at least %s, or a removed peer that is heard again comes back", t.PeerRemove, minPeerRemove)
	require(t.Rescue >= 10*t.ElectionMax, "Rescue %s must be at least 10 x ElectionMax (%s), or a rescued quorum ends before it elects", t.Rescue, t.ElectionMax)
	require(t.RoutePing <= maxRoutePing, "RoutePing %s must not be more than %s, the most nats-server takes", t.RoutePing, maxRoutePing)
	require(t.RouteSilence() >= t.ElectionMin, "(RoutePingsOut + 1) x RoutePing is %s; it must be at least ElectionMin (%s), or a stall that Raft survives closes the route", t.RouteSilence(), t.ElectionMin)
	require(t.ClientPing >= t.RoutePing, "ClientPing %s must be at least RoutePing (%s)", t.ClientPing, t.RoutePing)
	require(t.CampaignStagger >= t.CampaignMax, "CampaignStagger %s must be at least CampaignMax (%s), or survivors split the vote", t.CampaignStagger, t.CampaignMax)
	return errors.Join(errs...)
}

type namedDuration struct {
	name string
	d    time.Duration
}

func (t Timing) named() []namedDuration {
	return []namedDuration{
		{"Heartbeat", t.Heartbeat}, {"ElectionMin", t.ElectionMin}, {"ElectionMax", t.ElectionMax},
		{"CampaignMin", t.CampaignMin}, {"CampaignMax", t.CampaignMax},
		{"LostQuorum", t.LostQuorum}, {"LostQuorumCheck", t.LostQuorumCheck}, {"LostQuorumSignal", t.LostQuorumSignal},
		{"PeerRemove", t.PeerRemove}, {"Rescue", t.Rescue},
		{"RoutePing", t.RoutePing}, {"ClientPing", t.ClientPing},
		{"CampaignStagger", t.CampaignStagger}, {"Redial", t.Redial},
	}
}
