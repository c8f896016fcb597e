package wire

import (
	"fmt"

	"ripstop/kv"
)

// Wire versions that this code speaks, oldest and newest. A new version keeps
// the one before it for at least one minor release, so that a cluster can be
// upgraded node by node, agents before or after nodes.
const (
	MinVersion = 1
	Version    = 1
)

// Versions lists MinVersion to Version.
func Versions() []int {
	var list []int
	for v := MinVersion; v <= Version; v++ {
		list = append(list, v)
	}
	return list
}

// Range is the wire versions one side speaks.
type Range struct{ Min, Max int }

// Own is the range of this code.
var Own = Range{MinVersion, Version}

// RangeOf returns the range that a registration states as its oldest and newest
// version. One that states no oldest speaks the newest only, and one that states
// nothing speaks version 1.
func RangeOf(oldest, newest int) Range {
	if newest == 0 {
		newest = 1
	}
	if oldest == 0 || oldest > newest {
		oldest = newest
	}
	return Range{oldest, newest}
}

func (r Range) String() string {
	if r.Min == r.Max {
		return fmt.Sprintf("wire version %d", r.Max)
	}
	return fmt.Sprintf("wire versions %d to %d", r.Min, r.Max)
}

// Speaks says why an instance can't be spoken with by one side that speaks r, or
// nil: they need one version in common.
func (r Range) Speaks(i *kv.Instance) error {
	theirs := RangeOf(i.WireMin, i.Wire)
	older := ""
	switch {
	case r.Max < theirs.Min:
		older = "the nodes"
	case theirs.Max < r.Min:
		older = "the agent"
	default:
		return nil
	}
	return fmt.Errorf("instance %s of %s (agent %s, ripstop %s) speaks %v, this node speaks %v: they have none in common; upgrade %s",
		i.Instance, i.Server, i.Agent, i.Software, theirs, r, older)
}
