// Package sessions keeps the records of MCP sessions in a bucket: who owns a
// session, and what a new owner's server must be told so that its client need
// not know. Every node holds an index of all records; writes are compare-and-set
// on a record's revision.
//
// A session belongs to the instance that its record names. Moving it is one
// write, which raises the epoch: whoever still serves it under a lower one is
// deposed.
package sessions

import (
	"cmp"
	"encoding/json"
	"errors"
	"time"

	"ripstop/kv"
)

// ErrDeposed: the session has another owner now, or a higher epoch.
var ErrDeposed = errors.New("session has moved")

// recordSchema is the version of the records; see kv.Instance.
const recordSchema = 1

// What happens to a session whose instance is gone.
const (
	OnMoveReinitialize = "reinitialize" // another instance takes it over, with a new session of its server
	OnMoveEnd          = "end"          // it ends: its state was in the instance's process
)

// Record is one session of the legacy era. It is written when the session is
// opened, moves or changes, and never for an ordinary call.
type Record struct {
	Schema      int    `json:"schema"`
	ID          string `json:"id"`
	Server      string `json:"server"`
	Instance    string `json:"instance"`     // the owner
	Node        string `json:"node"`         // the node the owner was attached to when it became that
	Home        string `json:"home"`         // the region whose bucket is the session's
	RegionEpoch uint64 `json:"region_epoch"` // of Home
	Epoch       uint64 `json:"epoch"`        // 1 at first, raised by every move
	Version     string `json:"version"`      // of MCP, as negotiated
	OnMove      string `json:"on_move"`      // OnMoveReinitialize or OnMoveEnd
	Principal   string `json:"principal,omitempty"`

	// What a new backend is told: the params of the client's own messages.
	Initialize    json.RawMessage            `json:"initialize"`
	Initialized   bool                       `json:"initialized"`
	LogLevel      json.RawMessage            `json:"log_level,omitempty"`     // logging/setLevel
	Subscriptions map[string]json.RawMessage `json:"subscriptions,omitempty"` // resources/subscribe, by URI

	Cause   string    `json:"cause,omitempty"` // of the last move
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"` // by the clock of the node that wrote it; for people

	Mutation kv.Mutation `json:"mutation"`
	Rev      uint64      `json:"-"` // revision in the bucket; 0 = not stored there yet
}

// Key is the record's key in the bucket.
func (r *Record) Key() string { return r.ID }

// Token is a fencing token: of two claims to a session the higher one holds.
type Token struct{ RegionEpoch, Epoch, Rev uint64 }

// Token returns the record's.
func (r *Record) Token() Token { return Token{r.RegionEpoch, r.Epoch, r.Rev} }

// Compare orders tokens. Revisions are comparable only within one bucket.
func (t Token) Compare(o Token) int {
	return cmp.Or(cmp.Compare(t.RegionEpoch, o.RegionEpoch), cmp.Compare(t.Epoch, o.Epoch), cmp.Compare(t.Rev, o.Rev))
}
