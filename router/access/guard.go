package access

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// Guard lets users do over HTTP what they may do over NATS. It stands between
// an edge, which says who a caller is (Request.Principal), and the router.
type Guard struct {
	next router.Handler
	now  atomic.Pointer[table]
}

// table is a set of users, as they are looked up.
type table struct {
	byToken map[[sha256.Size]byte]string
	byName  map[string]*grant
}

// grant is what a client may do, for as long as it may do so.
type grant struct {
	user    User
	publish []string
	ctx     context.Context // ends when the user is gone or may do something else
	cancel  context.CancelCauseFunc
}

var _ router.Handler = (*Guard)(nil)

// errRevoked is why a request of a user ended who may no longer do it.
var errRevoked = errors.New("the users file has changed")

// NewGuard returns a guard in front of next that knows these users.
func NewGuard(next router.Handler, users []User) *Guard {
	g := &Guard{next: next}
	g.now.Store(&table{})
	g.Use(users)
	return g
}

// Use replaces the users. Requests of those who are gone, or may do something
// else now, are cancelled, streams among them.
func (g *Guard) Use(users []User) {
	last := g.now.Load()
	t := &table{byToken: map[[sha256.Size]byte]string{}, byName: map[string]*grant{}}
	for _, u := range users {
		if u.Role != Client {
			continue
		}
		t.byToken[fingerprint(u.Token)] = u.Name
		if old := last.byName[u.Name]; old != nil && reflect.DeepEqual(old.publish, u.Publish()) {
			t.byName[u.Name] = old // its requests go on
			continue
		}
		n := &grant{user: u, publish: u.Publish()}
		n.ctx, n.cancel = context.WithCancelCause(context.Background())
		t.byName[u.Name] = n
	}
	g.now.Store(t)
	for name, old := range last.byName {
		if t.byName[name] != old {
			old.cancel(errRevoked)
		}
	}
}

// Close cancels the requests of all users.
func (g *Guard) Close() { g.Use(nil) }

// Authenticate returns the name of the client that a token belongs to.
func (g *Guard) Authenticate(token string) (name string, ok bool) {
	name, ok = g.now.Load().byToken[fingerprint(token)]
	return name, ok
}

// Any reports whether there is a user at all.
func (g *Guard) Any() bool { return len(g.now.Load().byName) > 0 }

// Serve passes on what the caller may do. A principal that is no user's name is
// not limited: it is the edge that let it in.
func (g *Guard) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Principal == "" || req.Principal == router.Anybody {
		return g.next.Serve(ctx, req, out)
	}
	n := g.now.Load().byName[req.Principal]
	if n == nil {
		return nil, forbidden("user %q is not in the users file any more", req.Principal)
	}
	if err := n.check(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.ctx, func() { cancel(errRevoked) })()
	reply, err := g.next.Serve(ctx, req, out)
	if err != nil && context.Cause(ctx) == errRevoked {
		return nil, forbidden("user %q may no longer use %s: the users file has changed", req.Principal, wire.Describe(req))
	}
	if err == nil && req.Method() == "tools/list" {
		reply = n.hide(req.Server, reply)
	}
	return reply, err
}

// check says what a request lacks the right to, or nil.
func (n *grant) check(req *router.Request) error {
	anywhere := *req
	anywhere.Instance = ""
	subject, err := wire.RequestSubject(&anywhere)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(n.publish, func(p string) bool { return match(p, subject) }) {
		return nil
	}
	return forbidden("user %q may not use %s; it may use %s", n.user.Name, wire.Describe(req), n.may())
}

// may lists what a user may use, as its entry says it.
func (n *grant) may() string {
	const enough = 20
	list := slices.Clone(n.user.Tools)
	for _, s := range n.user.Servers {
		list = append(list, "all of "+s)
	}
	if len(list) > enough {
		list = append(list[:enough], "and more")
	}
	return strings.Join(list, ", ")
}

// hide leaves out of a list the tools that the user may not call.
func (n *grant) hide(server string, reply *router.Reply) *router.Reply {
	all := slices.ContainsFunc(n.publish, func(p string) bool { return match(p, wire.ToolSubject(server, "*")) })
	if all || reply == nil {
		return reply
	}
	m, err := jsonrpc.Parse(reply.Body)
	if err != nil || m.Result == nil {
		return reply
	}
	var result map[string]json.RawMessage
	var tools []json.RawMessage
	if json.Unmarshal(m.Result, &result) != nil || json.Unmarshal(result["tools"], &tools) != nil {
		return reply
	}
	tools = slices.DeleteFunc(tools, func(raw json.RawMessage) bool {
		var tool struct {
			Name string `json:"name"`
		}
		_ = json.Unmarshal(raw, &tool) // one that does not decode can't be called
		subject := wire.ToolSubject(server, tool.Name)
		return !slices.ContainsFunc(n.publish, func(p string) bool { return match(p, subject) })
	})
	list, err := json.Marshal(tools)
	if err != nil {
		return reply
	}
	result["tools"] = list
	if _, modern := result["cacheScope"]; modern { // it is this user's list, not for a shared cache
		result["cacheScope"] = json.RawMessage(`"private"`)
	}
	body, err := json.Marshal(result)
	if err != nil {
		return reply
	}
	shorter := *reply
	shorter.Body = jsonrpc.NewResult(m.ID, body)
	return &shorter
}

func forbidden(format string, args ...any) error {
	err := router.Errorf(router.ErrRefused, format, args...)
	err.Status = http.StatusForbidden
	return err
}
