package keep

import (
	"sync"
	"time"

	"ripstop/kv/sessions"
)

// Kinds of events.
const (
	EventMoved = "session_moved"
	EventEnded = "session_ended" // by the fabric, or by an operator; not by its client
)

// Event is what became of a session, for whoever wants to know. It is told once,
// by the node that did it.
type Event struct {
	Kind      string    `json:"kind"`
	At        time.Time `json:"at"`
	Session   string    `json:"session"`
	Server    string    `json:"server"`
	Principal string    `json:"principal,omitempty"`
	From      string    `json:"from,omitempty"` // the instance that had it
	To        string    `json:"to,omitempty"`   // session_moved: the one that has it
	Node      string    `json:"node,omitempty"` // session_moved: of To
	Epoch     uint64    `json:"epoch"`
	Cause     string    `json:"cause"`
	Observer  string    `json:"observer"`          // the node that did it
	Omitted   uint64    `json:"omitted,omitempty"` // events of this node since the last one that were too many to tell
}

// The rate of events: when a node is gone, thousands of sessions may move.
const (
	eventBurst = 100
	eventRate  = 20 // a second, after the burst
)

// notices bounds the rate of events.
type notices struct {
	mu      sync.Mutex
	tokens  float64
	last    time.Time
	omitted uint64
}

// take reports whether an event may be told, and how many were not before it.
func (n *notices) take(now time.Time) (omitted uint64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last.IsZero() {
		n.tokens = eventBurst
	} else {
		n.tokens = min(eventBurst, n.tokens+now.Sub(n.last).Seconds()*eventRate)
	}
	n.last = now
	if n.tokens < 1 {
		n.omitted++
		return 0, false
	}
	n.tokens--
	omitted, n.omitted = n.omitted, 0
	return omitted, true
}

// tell says what became of a session.
func (k *Keep) tell(kind string, was *sessions.Record, now *sessions.Record, cause string) {
	if k.opts.Tell == nil {
		return
	}
	at := time.Now()
	omitted, ok := k.notices.take(at)
	if !ok {
		return
	}
	e := Event{
		Kind: kind, At: at.UTC(), Session: was.ID, Server: was.Server, Principal: was.Principal, From: was.Instance,
		Epoch: was.Epoch, Cause: cause, Observer: k.opts.Node, Omitted: omitted,
	}
	if now != nil {
		e.To, e.Node, e.Epoch = now.Instance, now.Node, now.Epoch
	}
	k.opts.Tell(e)
}

// Causes of ends.
const (
	causeOnMove = "on_move end" // its instance is gone, and the server wants it so
	causeIdle   = "idle"        // its instance is gone, and nobody has asked for it
)

// Ended tells that an operator has ended a session.
func (k *Keep) Ended(r *sessions.Record) { k.tell(EventEnded, r, nil, "operator") }
