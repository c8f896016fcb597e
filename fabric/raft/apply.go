package raft

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// ErrApplied means that another timing is in force in this process already.
var ErrApplied = errors.New("another timing is in force")

// ErrUnknownServer means that nats-server's Raft timing is not what this package
// was checked against; only [Stock] can be applied.
var ErrUnknownServer = errors.New("this nats-server's Raft timing is not the one known")

// variables are the process-wide part of a Timing.
type variables struct {
	hbInterval, minElection, maxElection          time.Duration
	minCampaign, maxCampaign                      time.Duration
	lostQuorum, lostQuorumCheck, lostQuorumSignal time.Duration
	peerRemove, rescue                            time.Duration
}

func (t Timing) variables() variables {
	return variables{
		hbInterval: t.Heartbeat, minElection: t.ElectionMin, maxElection: t.ElectionMax,
		minCampaign: t.CampaignMin, maxCampaign: t.CampaignMax,
		lostQuorum: t.LostQuorum, lostQuorumCheck: t.LostQuorumCheck, lostQuorumSignal: t.LostQuorumSignal,
		peerRemove: t.PeerRemove, rescue: t.Rescue,
	}
}

// String gives the values in the order of Timing.
func (v variables) String() string {
	return fmt.Sprint([]time.Duration{
		v.hbInterval, v.minElection, v.maxElection, v.minCampaign, v.maxCampaign,
		v.lostQuorum, v.lostQuorumCheck, v.lostQuorumSignal, v.peerRemove, v.rescue,
	})
}

var applied struct {
	sync.Mutex
	done   bool
	timing Timing
}

// Apply sets the Raft timing of this process. Call it before the first server
// starts: servers read the values without a lock. A second call with the same
// values does nothing, with others it fails with [ErrApplied]. Stock touches
// nothing, but counts as a call.
func (t Timing) Apply() error {
	if err := t.Validate(); err != nil {
		return err
	}
	applied.Lock()
	defer applied.Unlock()
	v, stock := t.variables(), Stock().variables()
	switch {
	case applied.done && v == applied.timing.variables():
		return nil
	case applied.done:
		return fmt.Errorf("apply timing %q: %w: %q, set at the start of the process; restart it to change the timing", t.Name, ErrApplied, applied.timing.Name)
	case v == stock:
	case atStart != stock:
		return fmt.Errorf("apply timing %q: %w: nats-server %s has %s, known is %s; choose timing %q", t.Name, ErrUnknownServer, server.VERSION, atStart, stock, Stock().Name)
	default:
		v.write()
	}
	applied.done, applied.timing = true, t
	return nil
}
