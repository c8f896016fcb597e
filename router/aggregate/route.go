package aggregate

import (
	"context"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// caller is one client's way to the members.
type caller interface {
	era() router.Era
	// ask sends a request, named as the member names things, and returns the
	// member's reply as one of the client's era, which the caller may change.
	ask(ctx context.Context, server string, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error)
}

// capabilities are what the aggregate can carry, in either era. They are not
// taken from the members, since those come and go while a client stays.
const capabilities = `{"tools":{"listChanged":true},"prompts":{"listChanged":true},` +
	`"resources":{"listChanged":true,"subscribe":true},"logging":{},"completions":{}}`

// route serves the requests that are about members' tools, prompts and
// resources.
func (b *Backend) route(ctx context.Context, c caller, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if kind := listed(m.Method); kind != nil {
		return b.list(ctx, c, kind, m, out)
	}
	switch m.Method {
	case "tools/call":
		return b.routeName(ctx, c, "tool", m, out)
	case "prompts/get":
		return b.routeName(ctx, c, "prompt", m, out)
	case "resources/read", "resources/subscribe", "resources/unsubscribe":
		return b.routeURI(ctx, c, m, out)
	case "completion/complete":
		return b.routeRef(ctx, c, m, out)
	}
	return nil, noMethod(c.era(), m.Method)
}

func (b *Backend) routeName(ctx context.Context, c caller, what string, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if !m.Named {
		return nil, invalidParams("%s needs params.name", m.Method)
	}
	server, name, err := b.splitName(what, m.Name)
	if err != nil {
		return nil, err
	}
	return b.forward(ctx, c, server, name, m, out)
}

func (b *Backend) routeURI(ctx context.Context, c caller, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if !m.Named {
		return nil, invalidParams("%s needs params.uri", m.Method)
	}
	server, uri, err := b.splitURI(m.Name, noResource(c.era()))
	if err != nil {
		return nil, err
	}
	return b.forward(ctx, c, server, uri, m, out)
}

func noResource(era router.Era) int {
	if era == router.EraModern {
		return jsonrpc.CodeInvalidParams
	}
	return codeNoResource
}

func (b *Backend) forward(ctx context.Context, c caller, server, name string, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	msg, err := withName(m, name)
	if err != nil {
		return nil, err
	}
	reply, err := c.ask(ctx, server, msg, out)
	if err != nil {
		return nil, err
	}
	if reply.Body, err = rewriteReply(server, m.Method, reply.Body); err != nil {
		return nil, err
	}
	return reply, nil
}

// routeRef serves completion/complete, whose params.ref names a prompt or a
// resource template.
func (b *Backend) routeRef(ctx context.Context, c caller, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	e := edit(m.Raw)
	ref := e.field(e.root(), "params", "ref")
	kind, _ := e.str(e.field(ref, "type"))
	var server, name string
	var at span
	var err error
	switch kind {
	case "ref/prompt":
		at = e.field(ref, "name")
		joined, _ := e.str(at)
		server, name, err = b.splitName("prompt", joined)
	case "ref/resource":
		at = e.field(ref, "uri")
		joined, _ := e.str(at)
		server, name, err = b.splitURI(joined, jsonrpc.CodeInvalidParams)
	default:
		err = invalidParams("completion/complete needs params.ref of type ref/prompt or ref/resource, not %q", clip(kind))
	}
	if err != nil {
		return nil, err
	}
	e.replace(at, []byte(jsonrpc.Quote(name)))
	msg, err := jsonrpc.Parse(e.done())
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, server, msg, out)
}
