// Package lab is what the fault tests measure with: histories of operations,
// the checks that judge them, and ways to break a network. It knows nothing of
// Ripstop, so that each check can be tested with a history that must fail.
package lab

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Outcome is how an operation ended, as its caller knows it.
type Outcome string

// Outcomes.
const (
	OK      Outcome = "ok"      // acknowledged
	Refused Outcome = "refused" // did not happen, for sure
	Unknown Outcome = "unknown" // may have happened, or may yet
)

// Op is one operation of a client. Times count from the history's start.
type Op struct {
	Kind    string // what was done: "nats", "http", "kv"
	Client  string // who did it
	Target  string // to what: a server, a key
	ID      string // unique in the history
	Call    time.Duration
	Return  time.Duration
	Outcome Outcome
	Err     string `json:",omitempty"`
	Out     string `json:",omitempty"` // what it answered, where a check needs it
}

// History collects operations from many goroutines.
type History struct {
	start time.Time
	mu    sync.Mutex
	ops   []Op
}

// NewHistory begins a history now.
func NewHistory() *History { return &History{start: time.Now()} }

// Now is the time since the start.
func (h *History) Now() time.Duration { return time.Since(h.start) }

// Begin notes the call of an operation. The returned function notes its return;
// out may be "".
func (h *History) Begin(kind, client, target, id string) func(o Outcome, out string, err error) {
	op := Op{Kind: kind, Client: client, Target: target, ID: id, Call: h.Now()}
	return func(o Outcome, out string, err error) {
		op.Return, op.Outcome, op.Out = h.Now(), o, out
		if err != nil {
			op.Err = err.Error()
		}
		h.mu.Lock()
		h.ops = append(h.ops, op)
		h.mu.Unlock()
	}
}

// Ops returns the operations that have returned, by the time of their call.
func (h *History) Ops() []Op {
	h.mu.Lock()
	ops := slices.Clone(h.ops)
	h.mu.Unlock()
	slices.SortStableFunc(ops, func(a, b Op) int { return int(a.Call - b.Call) })
	return ops
}

// Select returns the operations for which keep holds.
func Select(ops []Op, keep func(Op) bool) []Op {
	var out []Op
	for _, op := range ops {
		if keep(op) {
			out = append(out, op)
		}
	}
	return out
}

// Streams sorts operations by who does what to whom: the unit in which gaps are
// counted, since one client's success is no help to another.
func Streams(ops []Op, target func(Op) string) map[string][]Op {
	out := map[string][]Op{}
	for _, op := range ops {
		key := op.Kind + " " + op.Client + ">" + target(op)
		out[key] = append(out[key], op)
	}
	return out
}

// Counts says how operations ended.
type Counts struct {
	Ops     int `json:"ops"`
	OK      int `json:"ok"`
	Refused int `json:"refused"`
	Unknown int `json:"unknown"`
}

func (c Counts) String() string {
	return fmt.Sprintf("%d/%d/%d/%d", c.Ops, c.OK, c.Refused, c.Unknown)
}

// Count counts outcomes by kind.
func Count(ops []Op) map[string]Counts {
	out := map[string]Counts{}
	for _, op := range ops {
		c := out[op.Kind]
		c.Ops++
		switch op.Outcome {
		case OK:
			c.OK++
		case Refused:
			c.Refused++
		default:
			c.Unknown++
		}
		out[op.Kind] = c
	}
	return out
}

// Errors returns the commonest errors of a history, at most n, for its report.
func Errors(ops []Op, n int) []string {
	count := map[string]int{}
	for _, op := range ops {
		if op.Err != "" {
			count[op.Kind+": "+op.Err]++
		}
	}
	keys := slices.SortedFunc(maps.Keys(count), func(a, b string) int { return count[b] - count[a] })
	var out []string
	for _, k := range keys[:min(n, len(keys))] {
		out = append(out, fmt.Sprintf("%d x %.300s", count[k], k))
	}
	return out
}
