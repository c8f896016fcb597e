package aggregate

import (
	"context"
	"math"
	"net/http"
	"strings"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// modernCaller is a modern client's way to the members, for one request.
type modernCaller struct {
	b   *Backend
	req *router.Request
}

var _ caller = modernCaller{}

func (modernCaller) era() router.Era { return router.EraModern }

// ask implements caller.
func (c modernCaller) ask(ctx context.Context, server string, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	m := c.b.member(server)
	f, err := m.discover(ctx)
	if err != nil {
		return nil, err
	}
	if !f.modern {
		a, done := m.borrow(c.req.Principal)
		defer done()
		return a.ask(ctx, c.req, msg, out)
	}
	reply, err := c.b.handler.Serve(ctx, c.request(server, msg), &relay{b: c.b, server: server, out: out})
	return stateless(server, reply, err)
}

func (c modernCaller) request(server string, msg *jsonrpc.Message) *router.Request {
	return &router.Request{
		Server: server, Era: router.EraModern, Version: c.req.Version,
		Message: msg, Params: c.req.Params, Principal: c.req.Principal,
	}
}

// serveModern answers a message of the modern era.
func (b *Backend) serveModern(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	if m.Kind != jsonrpc.Request {
		// A stateless server has nothing to be notified of: a request is
		// cancelled by its context.
		return &router.Reply{}, nil
	}
	if err := checkTriple(m); err != nil {
		return nil, err
	}
	c := modernCaller{b, req}
	switch m.Method {
	case "server/discover":
		return b.discover(ctx, m)
	case "subscriptions/listen":
		return b.subscriptionsListen(ctx, c, out)
	case "resources/subscribe", "resources/unsubscribe": // of the legacy era only
		return nil, noMethod(router.EraModern, m.Method)
	}
	return b.route(ctx, c, m, out)
}

// checkTriple checks the metadata every modern request carries. Members check
// theirs too, but a list that all of them refuse would only look empty.
func checkTriple(m *jsonrpc.Message) error {
	missing := func(key string) error {
		e := invalidParams("missing or invalid _meta field %q", key)
		e.Status = http.StatusBadRequest
		return e
	}
	if !m.HasVersion || m.Version == "" {
		return missing(jsonrpc.MetaVersion)
	}
	if m.Version != router.Version20260728 {
		return router.UnsupportedVersion(m.Version, versions())
	}
	e := edit(m.Params)
	meta := e.field(e.root(), "_meta")
	if !e.is(e.field(meta, metaCapabilities), '{') {
		return missing(metaCapabilities)
	}
	if info := e.field(meta, metaClientInfo); info.some() && !e.is(info, '{') {
		return missing(metaClientInfo)
	}
	return nil
}

// discover answers server/discover: the capabilities are the aggregate's, the
// instructions those of all members, and it holds as long as the shortest-lived
// of theirs.
func (b *Backend) discover(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	servers := b.opts.Servers()
	known := make([]*facts, len(servers))
	within, cancel := context.WithTimeout(ctx, b.opts.ListTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() {
			if f, err := b.member(server).discover(within); err == nil {
				known[i] = f
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fresh := freshness{math.MaxInt64, true}
	for _, f := range known {
		if f == nil {
			f = &facts{}
		}
		fresh.merge(freshness{f.ttl, f.public})
	}
	fields := []byte(`"supportedVersions":["` + strings.Join(versions(), `","`) + `"],"capabilities":` + capabilities +
		`,"instructions":` + jsonrpc.Quote(b.instructions()))
	return b.merged(router.EraModern, m.ID, fields, fresh), nil
}

// instructions tells a model how things are called, and what the members told
// the aggregate.
func (b *Backend) instructions() string {
	var out strings.Builder
	out.WriteString("Several MCP servers as one. Tools and prompts are called <server>" + nameSeparator +
		"<name>, resources " + uriScheme + "<server>/<uri>.")
	for _, server := range b.opts.Servers() {
		b.mu.Lock()
		m := b.members[server]
		b.mu.Unlock()
		if m == nil {
			continue
		}
		m.mu.Lock()
		text := m.instructions
		m.mu.Unlock()
		if text != "" {
			out.WriteString("\n\nServer " + server + ": " + text)
		}
	}
	return out.String()
}
