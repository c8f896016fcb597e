package admin

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"ripstop/fabric/raft"
)

// Verbs.
const (
	VerbStatus   = "get-cluster-status"
	VerbStepDown = "step-down"
	VerbDrain    = "drain"
	VerbRemove   = "remove-node"
	VerbEvacuate = "evacuate"
	VerbExport   = "export"
	verbRead     = "export-read"
	verbBegin    = "import-begin"
	verbWrite    = "import-write"
	VerbImport   = "import"

	VerbSessions = "list-sessions"
	VerbSession  = "show-session"
	VerbMove     = "move-session"
	VerbEnd      = "end-session"
	VerbValidate = "validate-sessions"
)

// seal makes the token: a fingerprint of everything a person is shown.
func (p Plan) seal() Plan {
	p.Confirm = ""
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(data)
	p.Confirm = strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
	return p
}

// plan says what a verb would do to a node, or refuses it.
func plan(s Status, verb, node string) (Plan, error) {
	if node == "" {
		return Plan{}, errorf(CodeUsage, "", "%s needs the name of a node", verb)
	}
	n, known := s.node(node)
	peer, votes := s.peer(node)
	if !known && !votes {
		return Plan{}, errorf(CodeNotFound, "ripstop ls nodes", "no node is called %q", node)
	}
	p := Plan{Verb: verb, Target: node}
	var err error
	switch verb {
	case VerbDrain:
		err = p.drain(s, n)
	case VerbRemove:
		err = p.remove(s, n, peer, votes)
	case VerbEvacuate:
		err = p.evacuate(s, node, votes)
	}
	if err != nil {
		return Plan{}, err
	}
	return p.seal(), nil
}

func (p *Plan) does(format string, args ...any) {
	p.Effects = append(p.Effects, fmt.Sprintf(format, args...))
}
func (p *Plan) warns(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) drain(s Status, n Node) error {
	if n.State != "up" {
		return errorf(CodeRefused, "ripstop status", "%s is not up: there is nothing to drain", p.Target)
	}
	p.does("%s says that it is not ready, so that load balancers leave it out", n.Name)
	p.does("it takes no new connections and sessions; calls in flight finish, bounded by its --drain-timeout")
	if n.Instances > 0 {
		p.does("the MCP instances that run in it, or are connected to it, end or move to another node")
	}
	if s.Mode == "clustered" {
		p.does("leaders that it holds move to other nodes")
	}
	p.does("its process ends; only starting it again brings it back")
	p.lose(s, n)
	return nil
}

// lose warns of what the loss of a node that is up means.
func (p *Plan) lose(s Status, n Node) {
	left := s.VotersUp - 1
	switch {
	case s.Mode != "clustered":
		p.warns("it is the only node: nothing is served until it runs again")
	case n.Role != "voter":
	case 2*left <= s.Voters:
		p.warns("%d of %d voters would be left: no quorum, nothing could be written until one is back", left, s.Voters)
	case 2*(left-1) <= s.Voters:
		p.warns("%d of %d voters would be left: the next failure ends writes", left, s.Voters)
	}
}

func (p *Plan) remove(s Status, n Node, peer Replica, votes bool) error {
	switch {
	case s.Mode != "clustered":
		return errorf(CodeRefused, "ripstop status", "%s is not part of a cluster", p.Target)
	case n.State == "up":
		return errorf(CodeRefused, "ripstop admin drain "+p.Target, "%s is up, and would join again as long as it runs: stop it first", p.Target)
	case !votes && n.Role == "voter" && !s.Quorum, votes && !s.Quorum:
		return errorf(CodeNoQuorum, "ripstop status", "%s can't be removed without a quorum (%d of %d voters are up): start another voter first", p.Target, s.VotersUp, s.Voters)
	}
	p.does("%s is no longer expected: it leaves the list of nodes", p.Target)
	if !votes {
		return nil
	}
	meta, _ := s.group(MetaGroup)
	before := len(meta.Replicas)
	p.does("peer %s (%s) leaves the meta group: %d nodes vote instead of %d", peer.Peer, p.Target, before-1, before)
	held := s.holds(p.Target)
	if len(held) > 0 {
		p.does("its replicas are given up, and made anew on another voter if there is one: %s", names(held))
	}
	p.does("its data is of no use any more: a node may come back only with an empty --data-dir and a new --name")
	if (before-1)%2 == 0 {
		p.warns("%d voters are an even number: they outlive no more failures than %d would, until another node votes", before-1, before-2)
	}
	for _, g := range held {
		others := slices.DeleteFunc(slices.Clone(g.Replicas), func(r Replica) bool { return r.Node == p.Target || !r.Current })
		if len(others) == 0 {
			p.warns("no other replica of %s is known to be complete: acknowledged writes may be lost", g.Name)
		}
	}
	return nil
}

func (p *Plan) evacuate(s Status, node string, votes bool) error {
	switch {
	case s.Mode != "clustered":
		return errorf(CodeRefused, "ripstop status", "%s is not part of a cluster", node)
	case !s.Quorum:
		return errorf(CodeNoQuorum, "ripstop status", "%s can't be evacuated without a quorum", node)
	case !votes:
		return errorf(CodeRefused, "ripstop ls nodes", "%s does not vote: it holds no replicas", node)
	}
	held := s.holds(node)
	if len(held) == 0 {
		return errorf(CodeRefused, "ripstop status", "%s holds no replicas", node)
	}
	p.does("replicas on %s are made anew on other voters, then given up there: %s", node, names(held))
	p.does("%s goes on voting; to take its vote too: stop it, then ripstop admin remove-node %s", node, node)
	meta, _ := s.group(MetaGroup)
	var stuck []Group
	for _, g := range held {
		if len(g.Replicas) >= len(meta.Replicas) {
			stuck = append(stuck, g)
		}
	}
	if len(stuck) > 0 {
		p.warns("every other voter has a replica already: with one fewer until another voter joins: %s", names(stuck))
	}
	return nil
}

// peerID returns the id of a node in the meta group.
func peerID(s Status, node string) string {
	if r, ok := s.peer(node); ok && r.Peer != "" {
		return r.Peer
	}
	return raft.PeerID(node)
}
