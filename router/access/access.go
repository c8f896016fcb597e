// Package access says which user may do what. Users come from a file; what one
// may do is a set of NATS subjects, so that a node refuses over HTTP exactly
// what the NATS server refuses over NATS.
package access

import (
	"crypto/sha256"
	"slices"
	"strings"

	"ripstop/router/wire"
)

// Role is what a user does.
type Role string

// The roles.
const (
	Client Role = "client" // calls servers, over NATS or HTTP
	Agent  Role = "agent"  // attaches servers, over NATS
)

// User is one entry of a users file.
type User struct {
	Name    string   `yaml:"name"`
	Token   string   `yaml:"token"`
	Role    Role     `yaml:"role"`    // "" = Client
	Tools   []string `yaml:"tools"`   // of a client: "<server>.<tool>" or "<server>.*"
	Servers []string `yaml:"servers"` // of a client: what it may use entirely; of an agent: what it may attach
}

// limited reports whether the user may do less than its role.
func (u User) limited() bool { return len(u.Tools) > 0 || len(u.Servers) > 0 }

// Publish returns the subjects the user may publish to.
func (u User) Publish() []string {
	if u.Role == Agent {
		return u.agentPublish()
	}
	if !u.limited() {
		return []string{wire.ServerSubject("*"), wire.ControlSubject("*", "*"), wire.SubjectSuspect + "*", "ripstop.v1.registry.list", "ripstop.v1.registry.list.*", "$SRV.>"}
	}
	var out []string
	for _, s := range u.Servers {
		out = append(out, wire.ServerSubject(s), wire.ControlSubject(s, "*"), wire.SubjectSuspect+s)
	}
	for _, t := range u.Tools {
		server, tool, _ := strings.Cut(t, ".")
		out = append(out, wire.ToolSubject(server, tool), wire.ControlSubject(server, "*"), wire.SubjectSuspect+server)
		for _, op := range clientOps {
			out = append(out, wire.OperationSubject(server, op))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// clientOps is what a client that may call a tool needs besides: to open a
// session and to end it, to hear what is said in it and to answer, and to read
// what the tool takes. None of it reaches another's session, whose id can't be
// guessed; what it does show is the descriptions of the server's other tools.
var clientOps = []string{
	"initialize", "server.discover", "ping", "tools.list", "logging.setLevel", "notifications.>",
	wire.OpResponse, wire.OpListen, wire.OpEnd,
}

func (u User) agentPublish() []string {
	out := []string{
		"_INBOX.>", // answers
	}
	for _, s := range u.attaches() {
		out = append(out,
			"ripstop.v1.agent.*.put."+s, "ripstop.v1.agent.*.remove."+s, "ripstop.v1.session.*.*."+s,
			wire.InstanceSubject(s, "*"), wire.ControlSubject(s, "*"), wire.SubjectSuspect+s) // to pass on what belongs to a session of another instance
	}
	return out
}

// attaches returns the servers an agent may attach.
func (u User) attaches() []string {
	if len(u.Servers) == 0 {
		return []string{"*"}
	}
	return u.Servers
}

// Subscribe returns the subjects the user may subscribe, besides its inboxes.
func (u User) Subscribe() []string {
	if u.Role != Agent {
		return []string{wire.SubjectGone}
	}
	out := []string{wire.SubjectGone, "ripstop.v1.registry.census"}
	for _, verb := range []string{"$SRV.PING", "$SRV.INFO", "$SRV.STATS"} { // NATS service API, ADR-32
		out = append(out, verb)
		for _, s := range u.attaches() {
			out = append(out, verb+"."+s, verb+"."+s+".*")
		}
	}
	for _, s := range u.attaches() {
		out = append(out, wire.ServerSubject(s), wire.InstanceSubject(s, "*"), wire.ControlSubject(s, "*"))
	}
	return out
}

// match reports whether a pattern with NATS wildcards covers subject.
func match(pattern, subject string) bool {
	for {
		p, patternRest, more := strings.Cut(pattern, ".")
		s, subjectRest, moreSubject := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != s:
			return false
		case !more || !moreSubject:
			return more == moreSubject
		}
		pattern, subject = patternRest, subjectRest
	}
}

// fingerprint stands for a token where tokens are looked up, so that how long
// that takes says nothing about them.
func fingerprint(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }
