package agent

import (
	"encoding/json"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"ripstop/router"
	"ripstop/router/wire"
)

// stats counts what the instance did, for `nats micro stats`.
type stats struct {
	mu      sync.Mutex
	calls   int
	errors  int
	last    string
	elapsed time.Duration
}

func (s *stats) add(req *router.Request, took time.Duration, err error) {
	if req.Op == router.OpListen {
		return // a stream's length is no processing time
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.elapsed += took
	if err != nil {
		s.errors++
		s.last = err.Error()
	}
}

// subscribeMicro answers the NATS service API (ADR-32) for the instance. It
// uses the library's types but not its Service, which times a request by how
// long its callback takes: ours returns at once, and the work goes on.
func (a *Agent) subscribeMicro(nc *nats.Conn, add func(*nats.Subscription, error) error) error {
	for verb, value := range map[micro.Verb]func() any{
		micro.PingVerb:  func() any { return micro.Ping{ServiceIdentity: a.identity(), Type: micro.PingResponseType} },
		micro.InfoVerb:  a.microInfo,
		micro.StatsVerb: a.microStats,
	} {
		answer := func(msg *nats.Msg) {
			data, err := json.Marshal(value())
			if err == nil {
				err = msg.Respond(data)
			}
			if err != nil {
				a.log.Debug("micro request not answered", "err", err)
			}
		}
		for _, to := range [][2]string{{}, {a.opts.Server}, {a.opts.Server, a.opts.Instance}} {
			subject, err := micro.ControlSubject(verb, to[0], to[1])
			if err != nil {
				return err
			}
			if err := add(nc.Subscribe(subject, answer)); err != nil {
				return err
			}
		}
	}
	return nil
}

var semver = regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func (a *Agent) identity() micro.ServiceIdentity {
	a.mu.Lock()
	defer a.mu.Unlock()
	version := a.record.Info.Version
	if !semver.MatchString(version) {
		version = "0.0.0" // the service API demands one; MCP servers may say anything
	}
	return micro.ServiceIdentity{
		Name: a.opts.Server, ID: a.opts.Instance, Version: version,
		Metadata: map[string]string{"mcp": a.record.Info.Name, "mcp_version": a.record.Info.Version, "agent": a.record.Agent, "transport": a.record.Transport},
	}
}

const endpointName = "mcp"

func (a *Agent) microInfo() any {
	return micro.Info{
		ServiceIdentity: a.identity(), Type: micro.InfoResponseType,
		Description: "MCP server " + a.opts.Server,
		Endpoints:   []micro.EndpointInfo{{Name: endpointName, Subject: wire.ServerSubject(a.opts.Server), QueueGroup: wire.QueueGroup}},
	}
}

func (a *Agent) microStats() any {
	id := a.identity()
	s := &a.stats
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &micro.EndpointStats{
		Name: endpointName, Subject: wire.ServerSubject(a.opts.Server), QueueGroup: wire.QueueGroup,
		NumRequests: s.calls, NumErrors: s.errors, LastError: s.last, ProcessingTime: s.elapsed,
	}
	if s.calls > 0 {
		e.AverageProcessingTime = s.elapsed / time.Duration(s.calls)
	}
	return micro.Stats{ServiceIdentity: id, Type: micro.StatsResponseType, Started: a.record.Started, Endpoints: []*micro.EndpointStats{e}}
}
