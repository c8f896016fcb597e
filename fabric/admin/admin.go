// Package admin is how an operator looks after a cluster: a NATS micro service
// of every node, in the FABRIC account, and the client of it.
//
// Each verb is a request on ripstop.v1.admin.<verb>, answered by any node, or on
// ripstop.v1.admin.<node>.<verb>, answered by that one; <node> is written by
// [Token]. Bodies are JSON. An error comes as a micro service error: headers
// Nats-Service-Error-Code (see [Code]) and Nats-Service-Error.
//
// What can't be taken back takes two requests. The first names only the target
// and is answered by a [Plan]: what will happen, and a token. The second repeats
// it with the token as confirmation. The token is a fingerprint of the plan, so
// that any node can check it, and so that a cluster that has changed meanwhile
// answers with "the plan has changed" and not with a surprise.
//
//	get-cluster-status   {}                               -> Status
//	step-down            {"group","to"} | {"node"}        -> Result
//	drain                {"node","confirm"}               -> Plan | Result
//	remove-node          {"node","confirm"}               -> Plan | Result
//	evacuate             {"node","confirm"}               -> Plan | Result
//	export               {}                               -> Transfer; then export-read
//	import-begin         {}                               -> Transfer; then import-write
//	import               {"transfer","confirm"}           -> Plan | Result
//	list-sessions        {"sessions":SessionRequest}      -> SessionPage
//	show-session         {"sessions":{"id"}}              -> SessionDetail
//	move-session         {"sessions":{"id","to","wait"}}  -> Session
//	end-session          {"sessions":{"id"}}              -> Session
//	validate-sessions    {"sessions":{"repair"}}          -> Validation
package admin

import (
	"fmt"
	"strings"
	"time"
)

// Prefix is the subject prefix of the service.
const Prefix = "ripstop.v1.admin"

// Token writes a node's name as one subject token: what is neither letter, digit,
// "-" nor "_" is %XX.
func Token(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Node is a node of the cluster, as the node that was asked sees it.
type Node struct {
	Name     string   `json:"name"`
	Region   string   `json:"region,omitempty"`
	Role     string   `json:"role,omitempty"` // voter or relay
	State    string   `json:"state"`          // up or down
	Health   string   `json:"health"`         // healthy, degraded or unhealthy
	Reasons  []string `json:"reasons,omitempty"`
	Leader   bool     `json:"leader,omitempty"` // it leads the meta group
	Leads    []string `json:"leads,omitempty"`  // streams it leads
	Draining bool     `json:"draining,omitempty"`
	Ready    bool     `json:"ready"`
	Gate     string   `json:"gate,omitempty"` // state of its write gate

	Software    string    `json:"software,omitempty"`
	Wire        []int     `json:"wire,omitempty"`
	ServerID    string    `json:"server_id,omitempty"`
	Incarnation uint64    `json:"incarnation,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Since       time.Time `json:"since,omitzero"` // of State
	LastSeen    time.Time `json:"last_seen,omitzero"`
	Latency     float64   `json:"latency_seconds"` // mean, there and back
	ClockSkew   float64   `json:"clock_skew_seconds,omitempty"`
	Lag         uint64    `json:"lag"`     // operations its replicas are behind, the worst
	Clients     int       `json:"clients"` // NATS connections
	Instances   int       `json:"instances"`
	Pending     int       `json:"sessions_pending,omitempty"` // records of sessions that it could not store yet
}

// Group is a Raft group: the meta group, or a stream's.
type Group struct {
	Name     string    `json:"name"` // MetaGroup, or the stream's name
	Account  string    `json:"account,omitempty"`
	Leader   string    `json:"leader,omitempty"` // "" = none is known
	Since    time.Time `json:"leader_since,omitzero"`
	Replicas []Replica `json:"replicas,omitempty"` // the leader among them
	Messages uint64    `json:"messages,omitempty"`
	Bytes    uint64    `json:"bytes,omitempty"`
}

// Replica is a member of a group, as the leader sees it.
type Replica struct {
	Node    string  `json:"node"`
	Peer    string  `json:"peer,omitempty"` // peer id
	Current bool    `json:"current"`
	Offline bool    `json:"offline,omitempty"`
	Lag     uint64  `json:"lag"`                   // operations behind
	Seen    float64 `json:"seen_seconds,omitzero"` // since the leader heard of it
}

// MetaGroup is the name of the group that decides what streams there are.
const MetaGroup = "meta"

// Problem is something that is wrong, and what to do about it.
type Problem struct {
	Severity string `json:"severity"` // Degraded or Unhealthy
	About    string `json:"about"`    // a node, a group, or "cluster"
	What     string `json:"what"`
	Do       string `json:"do,omitempty"`
}

// Healths of a cluster and of its nodes.
const (
	Healthy   = "healthy"
	Degraded  = "degraded"  // everything is served; something should be looked at
	Unhealthy = "unhealthy" // something is not served, or the next failure will end it
)

// Status is the cluster at a glance.
type Status struct {
	Region     string    `json:"region"`
	Mode       string    `json:"mode"`     // standalone or clustered
	Answered   string    `json:"answered"` // the node that says so
	At         time.Time `json:"at"`
	Health     string    `json:"health"`
	MetaLeader string    `json:"meta_leader,omitempty"`
	Quorum     bool      `json:"quorum"` // a meta leader is known: buckets can be written
	Voters     int       `json:"voters"`
	VotersUp   int       `json:"voters_up"`
	Nodes      []Node    `json:"nodes"`
	Groups     []Group   `json:"groups"`
	Sessions   int       `json:"sessions"`         // that the node which answers knows
	Pending    int       `json:"sessions_pending"` // whose records nodes could not store yet
	Problems   []Problem `json:"problems"`         // worst first
}

// Plan is what a command would do.
type Plan struct {
	Verb     string   `json:"verb"`
	Target   string   `json:"target"`
	Effects  []string `json:"effects"`            // what will happen, in order
	Warnings []string `json:"warnings,omitempty"` // what might be lost or weakened
	Confirm  string   `json:"confirm"`            // the token that confirms it
}

// Result is what a command did.
type Result struct {
	Done  []string `json:"done"`
	Watch string   `json:"watch,omitempty"` // what goes on, and how to follow it
}

// Code is the class of an error, as in HTTP.
type Code string

// The codes.
const (
	CodeUsage    Code = "400" // the request is wrong
	CodeNotFound Code = "404" // no such node, group or transfer
	CodeRefused  Code = "409" // it would do harm, or the plan has changed
	CodeFailed   Code = "500"
	CodeNoQuorum Code = "503" // no leader: nothing was done; try again, or restore nodes
	CodeUnknown  Code = "504" // it was asked for, and no answer came: it may have happened
)

// Error is why a command was not done. Text names the thing and the reason, Try
// the next command.
type Error struct {
	Code Code
	Text string
	Try  string

	api uint16 // JetStream's error code; 0 = none
}

func (e *Error) Error() string { return e.Text }

func errorf(code Code, try, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Try: try}
}
