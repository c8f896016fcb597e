package wire

import (
	"strings"
	"time"
)

// What a node asks of an instance itself, on the instance's subject: "about" a
// session it may hold, or to "release" one. Clients may not publish there.
const (
	ErrandAbout   = "_about"
	ErrandRelease = "_release"
)

// Errand is the body of such a request.
type Errand struct {
	Session string `json:"session"`
	Timeout int64  `json:"timeout_ms,omitempty"` // ErrandRelease: how long calls in flight may take
}

// ErrandReply is the answer.
type ErrandReply struct {
	Held      bool      `json:"held"` // the session is, or was until now, with this instance
	Epoch     uint64    `json:"epoch,omitempty"`
	Used      time.Time `json:"used,omitzero"` // when it last had something to do
	InFlight  int       `json:"in_flight,omitempty"`
	Listening bool      `json:"listening,omitempty"` // a client has the session's own stream
	Error     string    `json:"error,omitempty"`     // why it was not released
}

// ErrandSubject is where an instance is asked.
func ErrandSubject(server, instance, errand string) string {
	return prefixInstance + server + "." + instance + "." + errand
}

// ErrandOf returns what a message to an instance asks of the instance itself; "":
// it is a request of MCP.
func ErrandOf(subject string) string {
	rest, mine := strings.CutPrefix(subject, prefixInstance)
	if !mine || strings.Count(rest, ".") != 2 {
		return ""
	}
	errand := rest[strings.LastIndexByte(rest, '.')+1:]
	if errand != ErrandAbout && errand != ErrandRelease {
		return ""
	}
	return errand
}
