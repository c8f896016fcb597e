package admin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// assess puts together what nodes and groups say, and what follows for an
// operator. It is pure: nodes and groups are as they were found.
func assess(s Status) Status {
	s.Nodes, s.Groups, s.Problems = slices.Clone(s.Nodes), slices.Clone(s.Groups), []Problem{}
	lags := map[string]uint64{}
	for _, g := range s.Groups {
		for _, r := range g.Replicas {
			lags[r.Node] = max(lags[r.Node], r.Lag)
		}
		if g.Name == MetaGroup {
			s.MetaLeader = g.Leader
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Lag = lags[n.Name]
		if s.MetaLeader != "" {
			n.Leader = n.Name == s.MetaLeader
		}
		if n.Role == "voter" {
			s.Voters++
			if n.State == "up" {
				s.VotersUp++
			}
		}
	}
	s.Quorum = s.MetaLeader != "" && 2*s.VotersUp > s.Voters
	if s.Mode != "clustered" {
		s.Quorum = true
	}
	s.quorum()
	s.nodes()
	s.groups()
	s.versions()
	s.Health = Healthy
	for _, p := range s.Problems {
		if p.Severity == Unhealthy || s.Health == Healthy {
			s.Health = p.Severity
		}
	}
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return -cmp.Compare(a.Severity, b.Severity) }) // "unhealthy" sorts behind "degraded"
	return s
}

func (s *Status) problem(severity, about, do, format string, args ...any) {
	s.Problems = append(s.Problems, Problem{Severity: severity, About: about, What: fmt.Sprintf(format, args...), Do: do})
}

func (s *Status) quorum() {
	if s.Quorum {
		return
	}
	var missing []string
	for _, n := range s.Nodes {
		if n.Role == "voter" && n.State != "up" {
			missing = append(missing, n.Name)
		}
	}
	do := "wait for the election (seconds); if it lasts, look at the logs of the voters"
	if len(missing) > 0 {
		do = "start or reconnect " + strings.Join(missing, ", ")
	}
	s.problem(Unhealthy, "cluster", do, "no quorum: %d of %d voters are up and a leader of the meta group is %s; nothing can be written, calls to servers that are reached go on",
		s.VotersUp, s.Voters, map[bool]string{true: "not known", false: "known"}[s.MetaLeader == ""])
}

func (s *Status) nodes() {
	for _, n := range s.Nodes {
		switch {
		case n.State != "up":
			do := fmt.Sprintf("start it again; if it is gone for good: ripstop admin remove-node %s", n.Name)
			s.problem(Degraded, n.Name, do, "%s", cmp.Or(strings.Join(n.Reasons, "; "), "down"))
		case n.Draining && n.Health != Unhealthy:
			s.problem(Degraded, n.Name, "nothing, if that was meant; it stops when its calls have ended", "it is draining")
		case n.Health != Healthy:
			s.problem(n.Health, n.Name, "", "%s", strings.Join(n.Reasons, "; "))
		}
	}
}

func (s *Status) groups() {
	state := map[string]string{}
	for _, n := range s.Nodes {
		state[n.Name] = n.State
	}
	var leaderless []string
	behind := map[string][]string{} // node -> groups
	for _, g := range s.Groups {
		if g.Leader == "" && g.Name != MetaGroup {
			leaderless = append(leaderless, g.Name)
		}
		for _, r := range g.Replicas {
			if state[r.Node] == "up" && !r.Current {
				what := g.Name
				if r.Lag > 0 {
					what = fmt.Sprintf("%s (%d operations)", g.Name, r.Lag)
				}
				behind[r.Node] = append(behind[r.Node], what)
			}
		}
		if g.Name == MetaGroup {
			s.meta(g, state)
		}
	}
	if len(leaderless) > 0 && s.Quorum {
		s.problem(Unhealthy, "cluster", "wait for the election (seconds); if it lasts, start the nodes that are down", "no leader for %s: they can't be written", strings.Join(leaderless, ", "))
	}
	for _, node := range slices.Sorted(maps.Keys(behind)) {
		s.problem(Degraded, node, "nothing: it catches up by itself; look again with ripstop status --watch", "behind in %s", strings.Join(behind[node], ", "))
	}
}

func (s *Status) meta(g Group, state map[string]string) {
	for _, r := range g.Replicas {
		if _, known := state[r.Node]; !known && (r.Offline || r.Node == "") {
			name := cmp.Or(r.Node, "peer "+r.Peer)
			s.problem(Degraded, name, "start it again; if it is gone for good: ripstop admin remove-node "+cmp.Or(r.Node, r.Peer), "it votes, and nobody has seen it")
		}
	}
	if n := len(g.Replicas); n > 1 && n%2 == 0 {
		s.problem(Degraded, "cluster", "let another node vote, or bring a removed one back under a new name", "%d nodes vote: an even number outlives no more failures than %d would", n, n-1)
	}
}

func (s *Status) versions() {
	by := map[string][]string{}
	for _, n := range s.Nodes {
		if n.State == "up" && n.Software != "" {
			by[n.Software] = append(by[n.Software], n.Name)
		}
	}
	if len(by) < 2 {
		return
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, v+" on "+strings.Join(by[v], ", "))
	}
	s.problem(Degraded, "cluster", "finish the upgrade, one node at a time", "nodes run different versions: %s", strings.Join(parts, "; "))
}

func (s *Status) node(name string) (Node, bool) {
	i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return s.Nodes[i], true
}

func (s *Status) group(name string) (Group, bool) {
	i := slices.IndexFunc(s.Groups, func(g Group) bool { return g.Name == name })
	if i < 0 {
		return Group{}, false
	}
	return s.Groups[i], true
}

// peer returns the member of the meta group that is called name, or has that
// peer id.
func (s *Status) peer(name string) (Replica, bool) {
	meta, _ := s.group(MetaGroup)
	for _, r := range meta.Replicas {
		if r.Node == name || r.Peer == name {
			return r, true
		}
	}
	return Replica{}, false
}

// holds returns the streams that node has a replica of.
func (s *Status) holds(node string) []Group {
	var list []Group
	for _, g := range s.Groups {
		if g.Name != MetaGroup && slices.ContainsFunc(g.Replicas, func(r Replica) bool { return r.Node == node }) {
			list = append(list, g)
		}
	}
	return list
}

func names(groups []Group) string {
	list := make([]string, len(groups))
	for i, g := range groups {
		list[i] = g.Name
	}
	return strings.Join(list, ", ")
}

// now is when a status was taken, without what a reader can't use.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
