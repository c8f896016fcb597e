package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"strings"
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

	// Removing is called before a node leaves the meta group, has another vote in
	// its place, and says what was done. It may be called again after an error.
	Removing(ctx context.Context, node string) (done []string, err error)

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

	// Sessions are those of the region; nil = nobody keeps any.
	Sessions Sessions

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
	Node     string          `json:"node,omitempty"`
	Group    string          `json:"group,omitempty"`
	To       string          `json:"to,omitempty"`
	Confirm  string          `json:"confirm,omitempty"`
	Transfer string          `json:"transfer,omitempty"`
	Sessions *SessionRequest `json:"sessions,omitempty"`
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
	verbs := s.sessionVerbs()
	maps.Copy(verbs, map[string]handler{
		VerbStatus: s.onStatus, VerbStepDown: s.onStepDown, VerbDrain: s.onPlanned(VerbDrain), VerbRemove: s.onPlanned(VerbRemove), VerbEvacuate: s.onPlanned(VerbEvacuate),
		VerbExport: s.transfers.onExport, verbRead: s.transfers.onRead, verbBegin: s.transfers.onBegin, verbWrite: s.transfers.onWrite, VerbImport: s.transfers.onImport,
	})
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
			limit := answerFor
			if strings.HasSuffix(m.Subject(), "."+VerbValidate) || strings.HasSuffix(m.Subject(), "."+VerbMove) {
				limit = validateFor
			}
			ctx, cancel := context.WithTimeout(s.ctx, limit)
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
