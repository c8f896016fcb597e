package raft

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// MetaGroup is the name of the group that places streams and consumers.
const MetaGroup = "_meta_"

// Group is a Raft group that a server is a member of, as that server sees it.
type Group struct {
	Name     string `json:"name"`               // such as "_meta_" or "S-R3F-x8Pd3xQE"
	Account  string `json:"account"`            // of the stream; the system account for the meta group
	Stream   string `json:"stream,omitempty"`   // "" for the meta group, or when this server does not know
	Consumer string `json:"consumer,omitempty"` // "" unless it is a consumer's group

	State    string `json:"state"`               // leader, follower, candidate or closed
	Leader   string `json:"leader,omitempty"`    // server name; the id of a server whose name is not known; "" = no leader
	LeaderID string `json:"leader_id,omitempty"` // peer id
	Leads    bool   `json:"leads"`               // this server does

	Term         uint64 `json:"term"`
	Committed    uint64 `json:"committed"` // index
	Applied      uint64 `json:"applied"`   // index
	Size         int    `json:"size"`      // votes
	QuorumNeeded int    `json:"quorum_needed"`
	// Quorum is, of a leader, that it hears enough followers; of another, that it
	// hears a leader. Heard within Timing.LostQuorum counts.
	Quorum bool `json:"quorum"`

	Member     bool   `json:"member"` // this server has a vote
	Observer   bool   `json:"observer,omitempty"`
	CatchingUp bool   `json:"catching_up,omitempty"`
	Err        string `json:"error,omitempty"` // why its log can't be written

	Peers []Member `json:"peers"` // self included, by name
}

// Member is a voter of a [Group].
type Member struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"` // "" if this server never heard from it
	Self bool   `json:"self,omitempty"`
	// Current: has all that is committed. A follower knows that only of itself, and of
	// the leader that it was heard from lately.
	Current  bool      `json:"current"`
	Lag      uint64    `json:"lag"` // entries; known of self and, by the leader, of all
	LastSeen time.Time `json:"last_seen,omitzero"`
}

// PeerID is the id that Raft gives the server called name (server/events.go, getHash).
func PeerID(name string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(name))
	id := sum[:8]
	for i, b := range id {
		id[i] = digits[int(b)%len(digits)]
	}
	return string(id)
}

// Groups lists the groups of srv, the meta group first, then by account, stream and
// consumer. A server without JetStream has none.
func Groups(srv *server.Server) []Group {
	groups := raftGroups(srv)
	assets := assetsByGroup(srv)
	for i := range groups {
		g := &groups[i]
		a := assets[g.Name]
		g.Stream, g.Consumer = a.stream, a.consumer
		if node := lookupRaftNode(srv, g.Name); node != nil {
			g.inspect(node)
		}
	}
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(
			cmp.Compare(b2i(b.Name == MetaGroup), b2i(a.Name == MetaGroup)),
			cmp.Compare(a.Account, b.Account), cmp.Compare(a.Stream, b.Stream),
			cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Name, b.Name))
	})
	return groups
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// MetaLeader returns the name of the meta group's leader as srv sees it, or "". A
// server without JetStream never knows: ask a voter.
func MetaLeader(srv *server.Server) string {
	z := srv.Raftz(&server.RaftzOptions{GroupFilter: MetaGroup})
	if z == nil {
		return ""
	}
	for _, byName := range *z {
		for name, rg := range byName {
			g := newGroup(srv, "", name, rg)
			return g.Leader
		}
	}
	return ""
}

// raftGroups lists the groups without what is slow to find: the streams' names, and
// how far the peers are.
func raftGroups(srv *server.Server) []Group {
	accounts, err := srv.Accountz(nil)
	if err != nil {
		return nil
	}
	var groups []Group
	for _, account := range accounts.Accounts {
		z := srv.Raftz(&server.RaftzOptions{AccountFilter: account})
		if z == nil {
			continue
		}
		for name, rg := range (*z)[account] {
			groups = append(groups, newGroup(srv, account, name, rg))
		}
	}
	return groups
}

func newGroup(srv *server.Server, account, name string, rg server.RaftzGroup) Group {
	g := Group{
		Name: name, Account: account,
		State: strings.ToLower(rg.State), LeaderID: rg.Leader, Leads: rg.Leader != "" && rg.Leader == rg.ID,
		Term: rg.Term, Committed: rg.Committed, Applied: rg.Applied,
		Size: rg.Size, QuorumNeeded: rg.QuorumNeeded,
		Observer: rg.Observer, CatchingUp: rg.CatchingUp,
	}
	if rg.WALError != nil {
		g.Err = rg.WALError.Error()
	}
	if node := lookupRaftNode(srv, name); node != nil {
		g.Member = slices.Contains(node.PeerNames(), rg.ID) // "names" are ids
	}
	if g.Member {
		g.Peers = append(g.Peers, Member{ID: rg.ID, Name: srv.Name(), Self: true})
	}
	for id, p := range rg.Peers {
		g.Peers = append(g.Peers, Member{ID: id, Name: p.Name})
	}
	slices.SortFunc(g.Peers, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	g.Leader = g.LeaderID
	for _, p := range g.Peers {
		if p.ID == g.LeaderID && p.Name != "" {
			g.Leader = p.Name
		}
	}
	return g
}

// inspect adds how far each peer is, and whether the group has a quorum.
func (g *Group) inspect(node server.RaftNode) {
	leaderHeard := false
	for _, p := range node.Peers() {
		i := slices.IndexFunc(g.Peers, func(m Member) bool { return m.ID == p.ID })
		if i < 0 {
			continue // joined a moment ago
		}
		m := &g.Peers[i]
		m.Current, m.Lag, m.LastSeen = p.Current, p.Lag, p.Last
		if m.Self {
			m.Current, m.LastSeen = node.Current(), time.Time{}
			m.Lag = g.Committed - min(g.Applied, g.Committed)
		}
		if p.ID == g.LeaderID {
			leaderHeard = time.Since(p.Last) < lostQuorumInterval
		}
	}
	if g.Leads {
		g.Quorum = node.Quorum()
	} else {
		g.Quorum = leaderHeard
	}
}

type asset struct{ stream, consumer string }

// assetsByGroup maps the groups of the streams and consumers on this server.
func assetsByGroup(srv *server.Server) map[string]asset {
	assets := map[string]asset{}
	if !srv.JetStreamEnabled() {
		return assets
	}
	z, err := srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, RaftGroups: true})
	if err != nil {
		return assets
	}
	for _, a := range z.AccountDetails {
		for _, s := range a.Streams {
			assets[s.RaftGroup] = asset{stream: s.Name}
			for _, c := range s.ConsumerRaftGroups {
				assets[c.RaftGroup] = asset{stream: s.Name, consumer: c.Name}
			}
		}
	}
	return assets
}
