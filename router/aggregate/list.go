package aggregate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// maxPages bounds how many pages of a list are asked of a member, which could
// go on for ever.
const maxPages = 200

// listKind says how one of the lists is merged.
type listKind struct {
	items  string                     // the key of the result that holds the list
	key    string                     // the key of an element that names it
	prefix func(server string) string // what goes in front of a member's name
}

func namePrefix(server string) string { return server + nameSeparator }

// listed returns how the list that method asks for is merged, or nil if it asks
// for none.
func listed(method string) *listKind {
	switch method {
	case "tools/list":
		return &toolList
	case "prompts/list":
		return &promptList
	case "resources/list":
		return &resourceList
	case "resources/templates/list":
		return &templateList
	}
	return nil
}

var (
	toolList     = listKind{"tools", "name", namePrefix}
	promptList   = listKind{"prompts", "name", namePrefix}
	resourceList = listKind{"resources", "uri", uriPrefix}
	templateList = listKind{"resourceTemplates", "uriTemplate", uriPrefix}
)

// freshness is how long a modern result holds (MCP 2026-07-28, "Caching").
type freshness struct {
	ttl    int64 // milliseconds
	public bool
}

// unlimited is what others are merged into.
var unlimited = freshness{math.MaxInt64, true}

func (f *freshness) merge(g freshness) {
	f.ttl = min(f.ttl, g.ttl)
	f.public = f.public && g.public
}

// fields returns ttlMs and cacheScope as raw members.
func (f freshness) fields() []byte {
	scope := "private"
	if f.public {
		scope = "public"
	}
	if f.ttl == math.MaxInt64 {
		f.ttl = 0 // nobody said anything
	}
	return []byte(`"ttlMs":` + strconv.FormatInt(f.ttl, 10) + `,"cacheScope":"` + scope + `"`)
}

// part is one member's share of a list.
type part struct {
	items [][]byte // raw elements, a page each, joined by commas
	fresh freshness
}

// list asks all members for a list and merges the answers in the order of their
// names. A member that fails or takes longer than ListTimeout is left out.
func (b *Backend) list(ctx context.Context, c caller, kind *listKind, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	e := edit(m.Raw)
	if cursor := e.field(e.root(), "params", "cursor"); cursor.some() && !e.is(cursor, 'n') {
		return nil, invalidParams("unknown cursor: %s comes in one piece here", m.Method)
	}
	servers := b.opts.Servers()
	parts := make([]*part, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { parts[i] = b.listMember(ctx, c, kind, server, m, out) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list %s: %w", kind.items, err)
	}
	var items [][]byte
	fresh := unlimited
	for _, p := range parts {
		if p == nil {
			fresh.merge(freshness{}) // ask again soon, it may be back
			continue
		}
		items = append(items, p.items...)
		fresh.merge(p.fresh)
	}
	result := []byte(`"` + kind.items + `":[` + string(join(items...)) + `]`)
	return b.merged(c.era(), m.ID, result, fresh), nil
}

// merged returns a result of the aggregate's own in the era's form. fields are
// its raw members.
func (b *Backend) merged(era router.Era, id, fields []byte, fresh freshness) *router.Reply {
	if era == router.EraModern {
		fields = join([]byte(`"resultType":"complete"`), fields, fresh.fields(),
			[]byte(`"_meta":{"`+metaServerInfo+`":`+string(b.info)+`}`))
	}
	return &router.Reply{Body: jsonrpc.NewResult(id, append(append([]byte("{"), fields...), '}'))}
}

// listMember returns one member's share, or nil if it can't be had now.
func (b *Backend) listMember(ctx context.Context, c caller, kind *listKind, server string, m *jsonrpc.Message, out router.Stream) *part {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, b.opts.ListTimeout)
	defer cancel()
	p, err := b.pages(ctx, c, kind, server, m, out)
	if whole.Err() != nil {
		return nil // the client went, which says nothing about the member
	}
	if codeOf(err) == jsonrpc.CodeMethodNotFound {
		p, err = &part{fresh: unlimited}, nil // it has no such list
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in %v", b.opts.ListTimeout)
	}
	b.member(server).note(err)
	if err != nil {
		return nil
	}
	return p
}

func (b *Backend) pages(ctx context.Context, c caller, kind *listKind, server string, m *jsonrpc.Message, out router.Stream) (*part, error) {
	p := &part{fresh: unlimited}
	cursor := ""
	for range maxPages {
		reply, err := c.ask(ctx, server, m, out)
		response, err := answer(server, reply, err)
		if err != nil {
			return nil, err
		}
		next, err := p.addPage(kind, server, response.Result)
		if err != nil || next == "" {
			return p, err
		}
		if next == cursor {
			return nil, router.Errorf(router.ErrBackend, "server %s gave the same cursor for two pages", server)
		}
		cursor = next
		if m, err = jsonrpc.Parse(withParam(m, "cursor", []byte(jsonrpc.Quote(cursor)))); err != nil {
			return nil, err
		}
	}
	return nil, router.Errorf(router.ErrBackend, "server %s has more than %d pages of %s", server, maxPages, kind.items)
}

// addPage takes the elements of one page, renamed, and returns the cursor of
// the next, or "".
func (p *part) addPage(kind *listKind, server string, result []byte) (next string, err error) {
	e := edit(result)
	items := e.field(e.root(), kind.items)
	if !e.is(items, '[') {
		return "", router.Errorf(router.ErrBackend, "server %s sent a result without %s", server, kind.items)
	}
	page := edit(e.text(items))
	to := kind.prefix(server)
	page.items(page.root(), func(item span) { page.prefix(page.field(item, kind.key), to) })
	raw := page.done()
	p.items = append(p.items, bytes.TrimSpace(raw[1:len(raw)-1]))
	scope, _ := e.str(e.field(e.root(), "cacheScope"))
	ttl, _ := strconv.ParseInt(string(e.text(e.field(e.root(), "ttlMs"))), 10, 64) // absent: stale at once
	p.fresh.merge(freshness{max(ttl, 0), scope == "public"})
	next, _ = e.str(e.field(e.root(), "nextCursor"))
	return next, nil
}
