package raft_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"ripstop/fabric/raft"
)

// group builds a group as its member self sees it; voters are names.
func group(name, self, leader, voters string) raft.Group {
	g := raft.Group{Name: name, Leader: leader, Member: true}
	if leader != "" {
		g.LeaderID = raft.PeerID(leader)
	}
	for _, v := range strings.Fields(voters) {
		g.Peers = append(g.Peers, raft.Member{ID: raft.PeerID(v), Name: v, Self: v == self})
	}
	g.Member = slices.ContainsFunc(g.Peers, func(m raft.Member) bool { return m.Self })
	g.Size = len(g.Peers)
	g.QuorumNeeded = g.Size/2 + 1
	return g
}

func TestCandidacies(t *testing.T) {
	change := func(g raft.Group, f func(*raft.Group)) raft.Group { f(&g); return g }
	for _, tc := range []struct {
		name  string
		group raft.Group
		alive string
		want  map[string]int // group -> rank
	}{
		{"lowest survivor", group("g", "n1", "n3", "n1 n2 n3"), "n1 n2", map[string]int{"g": 0}},
		{"second survivor", group("g", "n2", "n3", "n1 n2 n3"), "n1 n2", map[string]int{"g": 1}},
		{"first when the lower one is gone", group("g", "n2", "n3", "n1 n2 n3 n4 n5"), "n2 n4 n5", map[string]int{"g": 0}},
		{"third of five", group("g", "n5", "n3", "n1 n2 n3 n4 n5"), "n1 n2 n5", map[string]int{"g": 2}},
		{"routes to non-members do not count", group("g", "n1", "n3", "n1 n2 n3"), "n1 n4 n5", nil},
		{"someone else leads", group("g", "n1", "n2", "n1 n2 n3"), "n1 n2", nil},
		{"no leader known", group("g", "n1", "", "n1 n2 n3"), "n1 n2", nil},
		{"alone", group("g", "n1", "n3", "n1 n2 n3"), "n1", nil},
		{"minority of five", group("g", "n1", "n3", "n1 n2 n3 n4 n5"), "n1 n2", nil},
		{"not a member", group("g", "n4", "n3", "n1 n2 n3"), "n1 n2 n4", nil},
		{"the dead still listed as alive", group("g", "n1", "n3", "n1 n2 n3"), "n1 n3", nil},
		{"observer", change(group("g", "n1", "n3", "n1 n2 n3"), func(g *raft.Group) { g.Observer = true }), "n1 n2", nil},
		{"catching up", change(group("g", "n1", "n3", "n1 n2 n3"), func(g *raft.Group) { g.CatchingUp = true }), "n1 n2", nil},
		{"log not writable", change(group("g", "n1", "n3", "n1 n2 n3"), func(g *raft.Group) { g.Err = "disk full" }), "n1 n2", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alive := map[string]bool{}
			for _, n := range strings.Fields(tc.alive) {
				alive[n] = true
			}
			got := raft.Candidacies([]raft.Group{tc.group}, raft.PeerID("n3"), alive)
			if !maps.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
