package kv

import (
	"encoding/json"
	"slices"
	"time"
)

// Instance is a registry record: one running backend that answers for a server.
// It is what `nats kv get registry <server>.<instance>` shows.
type Instance struct {
	Server    string    `json:"server"`
	Instance  string    `json:"instance"`
	Node      string    `json:"node"`            // the node that registered it
	Agent     string    `json:"agent"`           // who attached it, for people: host/pid
	Transport string    `json:"transport"`       // stdio, http or go
	Eras      []string  `json:"eras,omitempty"`  // legacy, modern; empty until probed
	Kinds     []string  `json:"kinds,omitempty"` // tools, resources, prompts; empty until probed
	Info      Info      `json:"info"`
	Software  string    `json:"software"` // version of ripstop the agent runs
	Wire      int       `json:"wire"`     // wire version it speaks
	Started   time.Time `json:"started"`
	Problem   string    `json:"problem,omitempty"` // why its server could not be asked what it is
	Conn      Conn      `json:"conn"`
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

// Key is the record's key in the bucket.
func (i Instance) Key() string { return i.Server + "." + i.Instance }

// Has reports whether the instance offers kind (tools, resources, prompts), or
// true for "" and for "all". What was not probed yet offers nothing.
func (i Instance) Has(kind string) bool {
	return kind == "" || kind == "all" || slices.Contains(i.Kinds, kind)
}
