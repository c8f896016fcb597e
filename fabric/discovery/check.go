package discovery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultCheckTime bounds [CheckBeforeStart].
const DefaultCheckTime = 2 * time.Second

// Check is what [CheckBeforeStart] looks at.
type Check struct {
	Prober   *Prober // its ID is empty: no server runs yet
	Peers    Peers
	Memory   *Memory       // may be nil
	Resolver Resolver      // nil = net.DefaultResolver
	Timeout  time.Duration // in all; 0 = DefaultCheckTime
}

// ErrDuplicate is wrapped by the error of [CheckBeforeStart] when a living node
// has this node's name.
var ErrDuplicate = errors.New("duplicate node name")

// CheckBeforeStart asks every configured and remembered peer, all at once, who
// it is and whether it lets this node in, and refuses a start under the name of a
// node that runs: nats-server would let it join and spoil the cluster's health.
//
// Peers that can't be reached or resolved are no reason not to start, nor are
// another cluster's: they are among the findings, whose Err says what is wrong.
// An Unauthorized finding means that this node will not join while its secret
// differs.
func CheckBeforeStart(ctx context.Context, c Check) ([]Finding, error) {
	if c.Timeout <= 0 {
		c.Timeout = DefaultCheckTime
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	s := &sweep{prober: c.Prober, asked: map[string]bool{}}
	for _, p := range c.Peers {
		s.wg.Go(func() { s.entry(ctx, p, c) })
	}
	if c.Memory != nil {
		for _, seen := range c.Memory.Peers() {
			s.ask(ctx, seen.Addr, seen.Host)
		}
	}
	s.wg.Wait()
	slices.SortFunc(s.findings, func(a, b Finding) int { return strings.Compare(a.Addr, b.Addr) })
	for _, f := range s.findings {
		if f.Outcome == Duplicate {
			return s.findings, &duplicateError{f.Err}
		}
	}
	return s.findings, nil
}

// duplicateError is ErrDuplicate with the text of a finding.
type duplicateError struct{ err error }

func (e *duplicateError) Error() string        { return e.err.Error() }
func (e *duplicateError) Is(target error) bool { return target == ErrDuplicate }

// sweep probes each address once.
type sweep struct {
	prober *Prober
	wg     sync.WaitGroup

	mu       sync.Mutex
	asked    map[string]bool
	findings []Finding
}

func (s *sweep) entry(ctx context.Context, p Peer, c Check) {
	addrs, err := lookup(ctx, resolverOr(c.Resolver), p, c.Timeout)
	if err != nil {
		s.add(Finding{Addr: p.String(), Outcome: Unreachable, At: time.Now(), Err: err})
		return
	}
	for _, addr := range addrs {
		s.ask(ctx, addr, nameOf(p))
	}
}

func (s *sweep) ask(ctx context.Context, addr, serverName string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[addr] {
		return
	}
	s.asked[addr] = true
	s.wg.Go(func() { s.add(s.prober.ask(ctx, addr, serverName, true)) })
}

func (s *sweep) add(f Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.findings = append(s.findings, f)
}

// nameOf is the name a certificate at p should bear; "" = its address.
func nameOf(p Peer) string {
	if p.IsName() {
		return p.Host
	}
	return ""
}
