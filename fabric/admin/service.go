package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// ServiceName is the name of the micro service.
const ServiceName = "ripstop-admin"

// answerFor bounds one request, but for a drain, which only begins.
const answerFor = 15 * time.Second

// checkFor bounds how long nodes are waited for before a status is given
// without them.
const checkFor = time.Second

// Nodes knows the nodes of the cluster.
type Nodes interface {
	// AdminNodes looks at every node now, bounded by ctx, and returns all that
	// are known, sorted by name.
	AdminNodes(ctx context.Context) []Node

	// Forget has every node of the cluster forget one that was removed.
	Forget(node string)
}

// Roster is the committed list of voters.
type Roster interface {
	// PlanRemove says what else removing a node entails, such as the relay that
	// will vote in its place. The texts must not change without reason: they are
	// part of what is confirmed.
	PlanRemove(ctx context.Context, node string) (effects []string, err error)

	// Removed is called when a node has left the meta group, and says what was
	// done.
	Removed(ctx context.Context, node string) (done []string, err error)
}

// Options configure a Service.
type Options struct {
	Conn      *nats.Conn // of the FABRIC account
	System    *nats.Conn // of the system account
	Node      string     // this one
	Region    string
	Clustered bool
	Version   string // of the software
	Nodes     Nodes
	Roster    Roster // nil = nobody keeps one

	// Drain begins to drain this node and returns at once; nil = it can't.
	Drain func(reason string) error

	// Export writes what lasts in the buckets; nil = it can't.
	Export func(ctx context.Context, w io.Writer) error

	// Import adds to the buckets what a file of Export holds, and says what
	// became of it; nil = it can't.
	Import func(ctx context.Context, r io.ReadSeeker) (done []string, err error)

	// SpoolDir is where an import is kept until it is complete; "" = the
	// system's directory for temporary files.
	SpoolDir string

	Logger *slog.Logger
}

// Service answers an operator.
type Service struct {
	opts      Options
	sys       *system
	svc       micro.Service
	own       *nats.Subscription
	transfers *transfers
	ctx       context.Context // of all requests
	cancel    context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// request is the body of every request.
type request struct {
	Node     string `json:"node,omitempty"`
	Group    string `json:"group,omitempty"`
	To       string `json:"to,omitempty"`
	Confirm  string `json:"confirm,omitempty"`
	Transfer string `json:"transfer,omitempty"`
}

// handler answers with a *nats.Msg, or with what becomes JSON.
type handler func(ctx context.Context, r request, m micro.Request) (any, error)

var semver = regexp.MustCompile(`^\d+\.\d+\.\d+$`)

// Open starts to answer.
func Open(opts Options) (*Service, error) {
	s := &Service{opts: opts, sys: &system{sys: opts.System, fabric: opts.Conn}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.transfers = newTransfers(s.ctx, opts)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("start admin service: %w", err), s.Close())
	}
	return s, nil
}

func (s *Service) open() (err error) {
	version := "0.0.0" // micro wants the version to be a semantic one
	if v := s.opts.Version; len(v) > 1 && semver.MatchString(v[1:]) {
		version = v[1:]
	}
	s.svc, err = micro.AddService(s.opts.Conn, micro.Config{
		Name: ServiceName, Version: version, Description: "looks after the nodes of a Ripstop cluster",
		Metadata: map[string]string{"node": s.opts.Node, "region": s.opts.Region, "software": s.opts.Version},
		ErrorHandler: func(_ micro.Service, err *micro.NATSError) {
			s.opts.Logger.Warn("admin service", "subject", err.Subject, "err", err.Description)
		},
	})
	if err != nil {
		return err
	}
	verbs := map[string]handler{
		VerbStatus: s.onStatus, VerbStepDown: s.onStepDown, VerbDrain: s.onPlanned(VerbDrain), VerbRemove: s.onPlanned(VerbRemove), VerbEvacuate: s.onPlanned(VerbEvacuate),
		VerbExport: s.transfers.onExport, verbRead: s.transfers.onRead, verbBegin: s.transfers.onBegin, verbWrite: s.transfers.onWrite, VerbImport: s.transfers.onImport,
	}
	anyone, mine := s.svc.AddGroup(Prefix), s.svc.AddGroup(Prefix+"."+Token(s.opts.Node))
	for verb, h := range verbs {
		if err := anyone.AddEndpoint(verb, s.handle(h)); err != nil {
			return err
		}
		if err := mine.AddEndpoint("node-"+verb, s.handle(h), micro.WithEndpointSubject(verb)); err != nil {
			return err
		}
	}
	// Another node passes a drain on: an operator may ask any.
	if s.own, err = s.opts.Conn.Subscribe(drainSubject(s.opts.Node), s.onDrain); err != nil {
		return err
	}
	return s.opts.Conn.Flush()
}

func drainSubject(node string) string { return "ripstop.v1.node." + Token(node) + ".drain" }

// Close answers what is under way, and stops. It is idempotent.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	var errs []error
	if s.opts.Conn.IsConnected() {
		if s.own != nil {
			errs = append(errs, s.own.Unsubscribe())
		}
		if s.svc != nil {
			errs = append(errs, s.svc.Stop())
		}
	}
	s.cancel()
	s.wg.Wait()
	errs = append(errs, s.transfers.close())
	return errors.Join(errs...)
}

// handle answers each request on a goroutine of its own: a status that waits for
// a node must not hold up the next.
func (s *Service) handle(h handler) micro.HandlerFunc {
	return func(m micro.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, answerFor)
			defer cancel()
			s.answer(ctx, h, m)
		})
	}
}

func (s *Service) answer(ctx context.Context, h handler, m micro.Request) {
	var r request
	var reply any
	var err error
	if len(m.Data()) > 0 && m.Headers().Get(headerTransfer) == "" {
		err = json.Unmarshal(m.Data(), &r)
	}
	if err != nil {
		err = errorf(CodeUsage, "", "the request is no JSON object: %v", err)
	} else {
		reply, err = h(ctx, r, m)
	}
	var e *Error
	out := &nats.Msg{Subject: m.Reply(), Header: nats.Header{}}
	raw, isMsg := reply.(*nats.Msg)
	switch {
	case err == nil && isMsg:
		out.Header, out.Data = raw.Header, raw.Data
	case err == nil:
		out.Data, err = json.Marshal(reply)
	default:
		code := CodeFailed
		if errors.As(err, &e) {
			code, out.Data = e.Code, []byte(e.Try)
		} else {
			s.opts.Logger.Warn("admin request failed", "subject", m.Subject(), "err", err)
		}
		out.Header.Set(micro.ErrorCodeHeader, string(code))
		out.Header.Set(micro.ErrorHeader, err.Error())
		err = nil
	}
	if err == nil && m.Reply() != "" {
		// Not by m's own means, which are not for other goroutines than the
		// subscription's: so the service's statistics count no errors.
		err = s.opts.Conn.PublishMsg(out)
	}
	if err != nil && s.ctx.Err() == nil {
		s.opts.Logger.Warn("admin request not answered", "subject", m.Subject(), "err", err)
	}
}

// Status is the cluster as this node sees it.
func (s *Service) Status(ctx context.Context) Status {
	check, cancel := context.WithTimeout(ctx, checkFor)
	defer cancel()
	st := Status{Region: s.opts.Region, Mode: "standalone", Answered: s.opts.Node, At: now(), Groups: []Group{}}
	if s.opts.Clustered {
		st.Mode = "clustered"
	}
	st.Nodes = s.opts.Nodes.AdminNodes(check)
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
			return nil, fmt.Errorf("%s no longer votes, but the roster was not changed: %w; repeat the command", node, err)
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
