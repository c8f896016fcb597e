// Package session makes the sessions of a backend survive it. [Layer] stands
// between an agent and its backend: it owns the sessions' public ids, gives the
// backend a session of its own for each, and makes that anew, from the session's
// record, whenever it is gone or the session came here from another instance.
// [Keeper] is its node's hand on the records.
package session

import (
	"context"
	"encoding/json"

	"ripstop/kv/sessions"
)

// Keeper keeps the records of sessions. In a node's process it is the node's
// own; elsewhere it asks the node that the agent is connected to, over NATS.
//
// Errors: kv.ErrNotFound, the session ended or never was; sessions.ErrDeposed,
// it belongs to another; router.ErrUnavailable, nobody can say now. Any other
// error of a write leaves its outcome unknown.
type Keeper interface {
	// Open stores the record of a session that was just opened. Where the
	// bucket can't be written now, the node keeps the record and goes on
	// trying; the record returned then has no revision.
	Open(ctx context.Context, r sessions.Record) (sessions.Record, error)

	// Find returns a session's record as the bucket has it, or, where its leader
	// can't be asked, as the node knows it.
	Find(ctx context.Context, server, id string) (sessions.Record, error)

	// Change notes what the session's client changed.
	Change(ctx context.Context, c Change) (sessions.Record, error)

	// Locate returns the record of a session with an owner that is there. If the
	// one it had is gone, or is avoid and has it under epoch, the session is
	// moved to another instance: of any number of callers one does it, the rest
	// find it done. Where none is there, it waits as long as ctx, at most a few
	// seconds.
	Locate(ctx context.Context, server, id, avoid string, epoch uint64) (sessions.Record, error)

	// End removes a session. One that is not there, or has moved on, is no error.
	End(ctx context.Context, server, id string, epoch uint64) error
}

// Change is what a session's client changed. Nil fields stay as they are.
type Change struct {
	Server   string `json:"server"`
	ID       string `json:"id"`
	Instance string `json:"instance"` // who says so: the owner
	Epoch    uint64 `json:"epoch"`

	Initialized bool            `json:"initialized,omitempty"` // true: notifications/initialized came
	LogLevel    json.RawMessage `json:"log_level,omitempty"`   // params of logging/setLevel
	Subscribe   json.RawMessage `json:"subscribe,omitempty"`   // params of resources/subscribe, for URI
	URI         string          `json:"uri,omitempty"`
	Unsubscribe bool            `json:"unsubscribe,omitempty"` // from URI
}
