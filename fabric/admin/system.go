package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/fabric/raft"
)

// stateFor bounds how long servers are asked for their state: one that hangs
// must not hold up the rest.
const stateFor = time.Second

// system asks the servers of the cluster, through the system account, so that
// any node can, one without JetStream too.
type system struct {
	sys    *nats.Conn
	fabric *nats.Conn
}

// groups returns the Raft groups as their leaders see them, the meta group
// first; a group whose leader does not answer is returned as others see it.
// expect is how many servers should answer.
func (s *system) groups(ctx context.Context, expect int) ([]Group, error) {
	found, heard := map[string]Group{}, map[string]bool{}
	err := s.ask(ctx, "$SYS.REQ.SERVER.PING.JSZ", server.JSzOptions{Accounts: true, Streams: true}, func(data []byte) (enough bool, err error) {
		var z struct {
			Server server.ServerInfo `json:"server"`
			Data   *server.JSInfo    `json:"data"`
		}
		if err := json.Unmarshal(data, &z); err != nil {
			return false, fmt.Errorf("read a server's state: %w", err)
		}
		heard[z.Server.Name] = true
		if z.Data != nil {
			merge(found, z.Server.Name, z.Data)
		}
		for _, g := range found { // what a leader says is worth waiting for
			if g.Leader != "" && !heard[g.Leader] {
				return false, nil
			}
		}
		return len(heard) >= expect, nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask the servers for their state: %w", err)
	}
	list := slices.Collect(maps.Values(found))
	slices.SortFunc(list, func(a, b Group) int {
		if a.Name == MetaGroup || b.Name == MetaGroup {
			return map[bool]int{true: -1, false: 1}[a.Name == MetaGroup]
		}
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// merge adds what the server called name says. Of a group that several tell of,
// what its leader says counts.
func merge(found map[string]Group, name string, z *server.JSInfo) {
	put := func(g Group) {
		key := g.Account + " " + g.Name
		if old, ok := found[key]; !ok || g.Leader == name || old.Leader == "" {
			found[key] = g
		}
	}
	if m := z.Meta; m != nil && m.Size > 0 {
		put(newGroup(MetaGroup, "", name, m.Leader, m.Replicas))
	}
	for _, a := range z.AccountDetails {
		for _, st := range a.Streams {
			leader, replicas := name, []*server.PeerInfo(nil) // not clustered
			var since time.Time
			if c := st.Cluster; c != nil && (c.RaftGroup != "" || len(c.Replicas) > 0 || c.Leader == "") {
				leader, replicas = c.Leader, c.Replicas
				if c.LeaderSince != nil {
					since = *c.LeaderSince
				}
			}
			g := newGroup(st.Name, a.Name, name, leader, replicas)
			g.Since, g.Messages, g.Bytes = since, st.State.Msgs, st.State.Bytes
			put(g)
		}
	}
}

// newGroup is a group as the server called teller sees it, which does not list
// itself among the peers.
func newGroup(name, account, teller, leader string, peers []*server.PeerInfo) Group {
	g := Group{Name: name, Account: account, Leader: leader}
	if leader != "" {
		g.Replicas = append(g.Replicas, Replica{Node: leader, Peer: raft.PeerID(leader), Current: true})
	}
	if teller != leader {
		g.Replicas = append(g.Replicas, Replica{Node: teller, Peer: raft.PeerID(teller), Current: leader != ""})
	}
	for _, p := range peers {
		if p.Name == leader && leader != "" || p.Name == teller {
			continue // a follower lists its leader among the others
		}
		g.Replicas = append(g.Replicas, Replica{Node: p.Name, Peer: p.Peer, Current: p.Current, Offline: p.Offline, Lag: p.Lag, Seen: p.Active.Seconds()})
	}
	slices.SortFunc(g.Replicas, func(a, b Replica) int { return cmp.Compare(a.Node, b.Node) })
	return g
}

// ask sends one request to all servers and hands their answers on until they are
// enough, or time is up. That none came is an error.
func (s *system) ask(ctx context.Context, subject string, body any, take func(data []byte) (enough bool, err error)) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stateFor)
	defer cancel()
	inbox := s.sys.NewInbox()
	sub, err := s.sys.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection has ended
	if err := s.sys.PublishRequest(subject, inbox, data); err != nil {
		return err
	}
	for some := false; ; some = true {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case err != nil && some:
			return nil
		case err != nil:
			return err
		}
		if enough, err := take(m.Data); enough || err != nil {
			return err
		}
	}
}

// api sends a request to JetStream. What it refuses is an *Error; an answer that
// does not come leaves the outcome open.
func (s *system) api(ctx context.Context, nc *nats.Conn, subject string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	m, err := nc.RequestWithContext(ctx, subject, data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return errorf(CodeNoQuorum, "ripstop status", "no server of the cluster runs JetStream")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return errorf(CodeUnknown, "ripstop status", "no leader answered %s in time: it may have happened, or may not", subject)
	case err != nil:
		return fmt.Errorf("request %s: %w", subject, err)
	}
	var resp struct {
		Error *server.ApiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &resp); err != nil {
		return fmt.Errorf("read the answer of %s: %w", subject, err)
	}
	if resp.Error == nil {
		return nil
	}
	code := CodeFailed
	switch resp.Error.Code {
	case 404:
		code = CodeNotFound
	case 503:
		code = CodeNoQuorum
	case 400:
		code = CodeRefused
	}
	refused := errorf(code, "ripstop status", "JetStream refused %s: %s (%d)", subject, resp.Error.Description, resp.Error.ErrCode)
	refused.api = resp.Error.ErrCode
	return refused
}

// removePeer takes a server out of the meta group, by its peer id: after a cold
// start the leader does not know the names of servers it has not heard from.
//
// One member changes at a time: while another comes in, this waits.
func (s *system) removePeer(ctx context.Context, peer string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := s.api(ctx, s.sys, server.JSApiRemoveServer, server.JSApiMetaServerRemoveRequest{Peer: peer})
		var e *Error
		if !errors.As(err, &e) || e.api != memberChangeUnderWay {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// memberChangeUnderWay is JetStream's error code for it (nats-server,
// errors.json: JSClusterServerMemberChangeInflightErr).
const memberChangeUnderWay = 10202

// evacuate moves the replicas of a server to others.
func (s *system) evacuate(ctx context.Context, peer string) error {
	return s.api(ctx, s.sys, server.JSApiEvacuateServer, server.JSApiMetaServerEvacuateRequest{Peer: peer})
}

// stepDown asks a group's leader to hand over, to the node called to if that is
// not "". While the meta group or the group itself elects, it waits.
func (s *system) stepDown(ctx context.Context, group, to string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		err := s.stepDownOnce(ctx, group, to)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeNoQuorum {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *system) stepDownOnce(ctx context.Context, group, to string) error {
	req := server.JSApiLeaderStepdownRequest{}
	if to != "" {
		req.Placement = &server.Placement{Preferred: to}
	}
	if group == MetaGroup {
		return s.api(ctx, s.sys, server.JSApiLeaderStepDown, req)
	}
	return s.api(ctx, s.fabric, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, group), req)
}
