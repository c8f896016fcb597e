package raft

import (
	"time"
	_ "unsafe" // go:linkname

	"github.com/nats-io/nats-server/v2/server"
)

// This is the only file that reaches into nats-server (server/raft.go, v2.15.2:
// lines 329-342 and 885). No option sets these; nats-server's own tests do it this
// way. A variable that an upgrade removes reads as zero here, one whose default
// changed reads as that: [Timing.Apply] refuses both, and TestGuard fails.

//go:linkname hbInterval github.com/nats-io/nats-server/v2/server.hbInterval
var hbInterval time.Duration

//go:linkname minElectionTimeout github.com/nats-io/nats-server/v2/server.minElectionTimeout
var minElectionTimeout time.Duration

//go:linkname maxElectionTimeout github.com/nats-io/nats-server/v2/server.maxElectionTimeout
var maxElectionTimeout time.Duration

//go:linkname minCampaignTimeout github.com/nats-io/nats-server/v2/server.minCampaignTimeout
var minCampaignTimeout time.Duration

//go:linkname maxCampaignTimeout github.com/nats-io/nats-server/v2/server.maxCampaignTimeout
var maxCampaignTimeout time.Duration

//go:linkname lostQuorumInterval github.com/nats-io/nats-server/v2/server.lostQuorumInterval
var lostQuorumInterval time.Duration

//go:linkname lostQuorumCheck github.com/nats-io/nats-server/v2/server.lostQuorumCheck
var lostQuorumCheck time.Duration

//go:linkname lostQuorumSignal github.com/nats-io/nats-server/v2/server.lostQuorumSignal
var lostQuorumSignal time.Duration

//go:linkname peerRemoveTimeout github.com/nats-io/nats-server/v2/server.peerRemoveTimeout
var peerRemoveTimeout time.Duration

//go:linkname rescueQuorumTimeout github.com/nats-io/nats-server/v2/server.rescueQuorumTimeout
var rescueQuorumTimeout time.Duration

// lookupRaftNode returns the server's member of a Raft group, or nil.
//
//go:linkname lookupRaftNode github.com/nats-io/nats-server/v2/server.(*Server).lookupRaftNode
func lookupRaftNode(s *server.Server, group string) server.RaftNode

// atStart is what nats-server had before anything could change it: package
// variables are initialised after those of the packages they import.
var atStart = readVariables()

func readVariables() variables {
	return variables{
		hbInterval: hbInterval, minElection: minElectionTimeout, maxElection: maxElectionTimeout,
		minCampaign: minCampaignTimeout, maxCampaign: maxCampaignTimeout,
		lostQuorum: lostQuorumInterval, lostQuorumCheck: lostQuorumCheck, lostQuorumSignal: lostQuorumSignal,
		peerRemove: peerRemoveTimeout, rescue: rescueQuorumTimeout,
	}
}

func (v variables) write() {
	hbInterval, minElectionTimeout, maxElectionTimeout = v.hbInterval, v.minElection, v.maxElection
	minCampaignTimeout, maxCampaignTimeout = v.minCampaign, v.maxCampaign
	lostQuorumInterval, lostQuorumCheck, lostQuorumSignal = v.lostQuorum, v.lostQuorumCheck, v.lostQuorumSignal
	peerRemoveTimeout, rescueQuorumTimeout = v.peerRemove, v.rescue
}
