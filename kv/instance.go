package kv

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// recordSchema is the version of the registry's records. A record of a newer
// one is read as far as this version knows it: members are only ever added, or
// the bucket's name changes.
const recordSchema = 1

// Scopes of an instance.
const (
	ScopeGlobal = "global" // the whole cluster knows it
	ScopeLocal  = "local"  // only the node it is attached to; in no bucket
)

// Instance is a registry record: one running backend that answers for a server.
// It is what `nats kv get registry_local_g1 <server>.<instance>` shows.
type Instance struct {
	Schema    int       `json:"schema"`
	Server    string    `json:"server"`
	Instance  string    `json:"instance"`
	Node      string    `json:"node"`            // the node it is attached to, which owns the record
	Agent     string    `json:"agent"`           // who attached it, for people: host/pid
	Transport string    `json:"transport"`       // stdio, http or go
	Eras      []string  `json:"eras,omitempty"`  // legacy, modern; empty until probed
	Kinds     []string  `json:"kinds,omitempty"` // tools, resources, prompts; empty until probed
	Info      Info      `json:"info"`
	Software  string    `json:"software"`           // version of ripstop the agent runs
	Wire      int       `json:"wire"`               // newest wire version it speaks; 0 = 1
	WireMin   int       `json:"wire_min,omitempty"` // oldest; 0 = Wire
	Started   time.Time `json:"started"`
	Problem   string    `json:"problem,omitempty"` // why its server could not be asked what it is
	Scope     string    `json:"scope"`             // global or local; "" = global
	Exclusive bool      `json:"exclusive,omitempty"`
	Standby   bool      `json:"standby,omitempty"` // waits for the name when another holds it
	Conn      Conn      `json:"conn"`

	// Run tells one run of the agent from another, and Seq counts what it has
	// registered: of two records of a run, that with the higher Seq is the newer,
	// whatever way and clock each came by.
	Run string `json:"run,omitempty"`
	Seq uint64 `json:"seq,omitempty"`

	Mutation Mutation `json:"mutation"` // of the write that made the record
}

// Info is what the server says of itself.
type Info struct {
	Name             string          `json:"name,omitempty"`
	Version          string          `json:"version,omitempty"`
	ProtocolVersions []string        `json:"protocol_versions,omitempty"`
	Capabilities     json.RawMessage `json:"capabilities,omitempty"`
}

// Conn is the NATS connection the instance lives on: when nats-server reports
// it closed, the instance is gone.
type Conn struct {
	ServerID string `json:"server_id"` // nats-server's id
	ClientID uint64 `json:"client_id"` // the connection's id there
}

// Mutation identifies one write: the node that made it, which of its starts, and
// a count within that. Whoever finds it in a value knows that the write was
// applied.
type Mutation struct {
	Node        string `json:"node"`
	Incarnation uint64 `json:"incarnation"`
	N           uint64 `json:"n"`
}

func (m Mutation) String() string { return fmt.Sprintf("%s/%d/%d", m.Node, m.Incarnation, m.N) }

// Key is the record's key in the bucket.
func (i *Instance) Key() string { return i.Server + "." + i.Instance }

// Has reports whether the instance offers kind (tools, resources, prompts), or
// true for "" and for "all". What was not probed yet offers nothing.
func (i *Instance) Has(kind string) bool {
	return kind == "" || kind == "all" || slices.Contains(i.Kinds, kind)
}

// supersedes reports whether i is a newer record of the same run than old.
func (i *Instance) supersedes(old *Instance) bool {
	return i.Run == old.Run && i.Run != "" && i.Seq > old.Seq
}

// claimPrefix begins the keys of claims. No server's name begins with it.
const claimPrefix = "_exclusive."

// Claim is the record of an exclusive registration: the one instance that may
// answer for a server. Its revision is the holder's fencing token.
type Claim struct {
	Schema   int       `json:"schema"`
	Server   string    `json:"server"`
	Instance string    `json:"instance"`
	Run      string    `json:"run,omitempty"`
	Node     string    `json:"node"`
	Agent    string    `json:"agent"`
	Since    time.Time `json:"since"` // by the clock of Node; for people
	Mutation Mutation  `json:"mutation"`
}

// Key is the claim's key in the bucket.
func (c Claim) Key() string { return claimPrefix + c.Server }
