package wire

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/nats-io/nats.go"

	"ripstop/router"
)

// Operations that are no MCP method, as they stand in subjects.
const (
	OpResponse = tokenResponse
	OpListen   = tokenListen
	OpEnd      = tokenEnd
)

// OperationSubject is where operation op of a server is requested. Both may
// have NATS wildcards, for permissions.
func OperationSubject(server, op string) string { return prefixRequest + server + "." + op }

// ToolSubject is where a tool of a server is called; "*" stands for any.
func ToolSubject(server, tool string) string {
	if tool != "*" {
		tool = EncodeToken(tool)
	}
	return OperationSubject(server, "tools.call."+tool)
}

// InboxPrefix is what the inboxes of a NATS user of its own begin with: one that
// is no built-in role may subscribe nowhere else (docs/wire.md, "Permissions").
func InboxPrefix(user string) string { return "_INBOX.user." + user }

// Describe names what req asks for, as a person would.
func Describe(req *router.Request) string {
	what := ""
	switch m := req.Message; {
	case req.Op == router.OpListen:
		what = "the session stream"
	case req.Op == router.OpEnd:
		what = "the end of a session"
	case m == nil || m.Method == "":
		what = "an answer"
	case m.Named && m.Method == "tools/call":
		what = fmt.Sprintf("tool %q", clip(m.Name))
	case m.Named && m.Method == "prompts/get":
		what = fmt.Sprintf("prompt %q", clip(m.Name))
	case m.Named && strings.HasPrefix(m.Method, "resources/"):
		what = fmt.Sprintf("resource %q", clip(m.Name))
	default:
		what = fmt.Sprintf("method %q", clip(m.Method))
	}
	return what + " of server " + fmt.Sprintf("%q", req.Server)
}

// watchRefusals makes calls fail at once whose subject the NATS server won't
// take from this user: it says so on the connection, and drops the message.
func (c *Client) watchRefusals() {
	before := c.nc.ErrorHandler()
	c.nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if subject, ok := refusedPublish(err); ok {
			c.refused(subject)
		}
		if before != nil {
			before(nc, sub, err)
		}
	})
}

// refusedPublish returns the subject of a publish permission violation
// (nats-server, server/client.go, pubPermissionViolation).
func refusedPublish(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, ok := strings.Cut(err.Error(), `Publish to "`)
	if !ok {
		return "", false
	}
	subject, _, ok = strings.Cut(rest, `"`)
	return subject, ok
}

// refused fails the calls on subject.
func (c *Client) refused(subject string) {
	c.mu.Lock()
	var hit []*call
	for _, k := range c.pending {
		if k.subject == subject {
			hit = append(hit, k)
		}
	}
	c.mu.Unlock()
	for _, k := range hit {
		err := router.Errorf(router.ErrRefused, "this NATS user may not use %s; nothing was executed", Describe(k.req))
		err.Status = http.StatusForbidden
		k.fail(err)
	}
}
