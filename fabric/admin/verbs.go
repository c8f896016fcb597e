package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// Status is the cluster as this node sees it.
func (s *Service) Status(ctx context.Context) Status {
	check, cancel := context.WithTimeout(ctx, checkFor)
	defer cancel()
	st := Status{Region: s.opts.Region, Mode: "standalone", Answered: s.opts.Node, At: now(), Groups: []Group{}}
	if s.opts.Clustered {
		st.Mode = "clustered"
	}
	st.Nodes = s.opts.Nodes.AdminNodes(check)
	if s.opts.Sessions != nil {
		st.Sessions = s.opts.Sessions.Count()
	}
	for _, n := range st.Nodes {
		st.Pending += n.Pending
	}
	up := 0 // servers that should answer
	for _, n := range st.Nodes {
		if n.State == "up" && n.ServerID != "" {
			up++
		}
	}
	groups, err := s.sys.groups(ctx, max(up, 1))
	if err == nil {
		st.Groups = groups
	}
	st = assess(st)
	if err != nil {
		st.problem(Degraded, s.opts.Node, "look at the log of "+s.opts.Node, "the state of JetStream is not known: %v", err)
		if st.Health == Healthy {
			st.Health = Degraded
		}
	}
	return st
}

func (s *Service) onStatus(ctx context.Context, _ request, _ micro.Request) (any, error) {
	return s.Status(ctx), nil
}

// onStepDown moves the leader of one group, or of all that a node leads.
func (s *Service) onStepDown(ctx context.Context, r request, _ micro.Request) (any, error) {
	st := s.Status(ctx)
	if !s.opts.Clustered {
		return nil, errorf(CodeRefused, "ripstop status", "%s is not part of a cluster: there is nobody to hand over to", s.opts.Node)
	}
	if r.To != "" {
		if n, ok := st.node(r.To); !ok || n.State != "up" {
			return nil, errorf(CodeNotFound, "ripstop ls nodes", "no node that is up is called %q", r.To)
		}
	}
	var groups []Group
	switch {
	case r.Node != "":
		if _, ok := st.node(r.Node); !ok {
			return nil, errorf(CodeNotFound, "ripstop ls nodes", "no node is called %q", r.Node)
		}
		for _, g := range st.Groups {
			if g.Leader == r.Node {
				groups = append(groups, g)
			}
		}
		if len(groups) == 0 {
			return Result{Done: []string{r.Node + " leads nothing"}}, nil
		}
	default:
		name := r.Group
		if name == "" {
			name = MetaGroup
		}
		g, ok := st.group(name)
		if !ok {
			return nil, errorf(CodeNotFound, "ripstop status -o json", "no group is called %q", name)
		}
		groups = append(groups, g)
	}
	done := Result{Watch: "ripstop status"}
	for _, g := range slices.Backward(groups) { // the meta group last: while it elects, the others can't hand over
		if err := s.sys.stepDown(ctx, g.Name, r.To); err != nil {
			return nil, fmt.Errorf("step down leader of %s: %w", g.Name, err)
		}
		s.opts.Logger.Info("leader stepped down", "group", g.Name, "was", g.Leader, "to", r.To)
		done.Done = append(done.Done, fmt.Sprintf("%s no longer leads %s", g.Leader, g.Name))
	}
	return done, nil
}

// onPlanned answers with a plan, or carries out the one that was confirmed.
func (s *Service) onPlanned(verb string) handler {
	return func(ctx context.Context, r request, _ micro.Request) (any, error) {
		st := s.Status(ctx)
		p, err := plan(st, verb, r.Node)
		if err != nil {
			return nil, err
		}
		if verb == VerbRemove && s.opts.Roster != nil {
			more, err := s.opts.Roster.PlanRemove(ctx, r.Node)
			if err != nil {
				return nil, fmt.Errorf("plan the removal of %s: %w", r.Node, err)
			}
			p.Effects = append(p.Effects, more...)
			p = p.seal()
		}
		switch r.Confirm {
		case "":
			return p, nil
		case p.Confirm:
			s.opts.Logger.Info("admin command confirmed", "verb", verb, "node", r.Node)
			return s.carryOut(ctx, st, p)
		}
		return nil, errorf(CodeRefused, "ripstop admin "+verb+" "+r.Node, "the plan has changed since it was confirmed, or the token is not this plan's: look at it again")
	}
}

func (s *Service) carryOut(ctx context.Context, st Status, p Plan) (any, error) {
	switch p.Verb {
	case VerbDrain:
		return s.drain(ctx, p.Target)
	case VerbEvacuate:
		if err := s.sys.evacuate(ctx, peerID(st, p.Target)); err != nil {
			return nil, fmt.Errorf("evacuate %s: %w", p.Target, err)
		}
		return Result{Done: []string{"replicas on " + p.Target + " move to other voters"}, Watch: "ripstop status --watch"}, nil
	}
	return s.remove(ctx, st, p.Target)
}

func (s *Service) remove(ctx context.Context, st Status, node string) (any, error) {
	var res Result
	if s.opts.Roster != nil {
		done, err := s.opts.Roster.Removing(ctx, node)
		res.Done = append(res.Done, done...)
		if err != nil {
			return nil, fmt.Errorf("remove %s: %w", node, err)
		}
	}
	if r, ok := st.peer(node); ok {
		if err := s.sys.removePeer(ctx, r.Peer); err != nil {
			return nil, fmt.Errorf("remove %s: %w", node, err)
		}
		res.Done = append(res.Done, fmt.Sprintf("%s (peer %s) no longer votes", node, r.Peer))
	}
	if s.opts.Roster != nil {
		done, err := s.opts.Roster.Removed(ctx, node)
		res.Done = append(res.Done, done...)
		if err != nil {
			return nil, fmt.Errorf("%s no longer votes, but was not forgotten: %w; repeat the command", node, err)
		}
	}
	s.opts.Nodes.Forget(node)
	res.Done = append(res.Done, node+" is removed")
	res.Watch = "ripstop status"
	return res, nil
}

// drain passes the command on to the node it is about.
func (s *Service) drain(ctx context.Context, node string) (any, error) {
	m, err := s.opts.Conn.RequestWithContext(ctx, drainSubject(node), nil)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, errorf(CodeNotFound, "ripstop status", "%s does not answer: nothing was done", node)
	case err != nil:
		return nil, errorf(CodeUnknown, "ripstop status", "%s did not answer: it may drain, or may not (%v)", node, err)
	case len(m.Data) > 0:
		return nil, errorf(CodeFailed, "", "%s does not drain: %s", node, m.Data)
	}
	return Result{Done: []string{node + " drains, and then stops"}, Watch: "ripstop status --watch"}, nil
}

// onDrain answers with nothing, or with why this node does not drain.
func (s *Service) onDrain(m *nats.Msg) {
	err := errors.New("it has no way to")
	if s.opts.Drain != nil {
		err = s.opts.Drain("an operator asked for it")
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err := m.Respond([]byte(text)); err != nil {
		s.opts.Logger.Warn("drain not answered", "err", err)
	}
}
