package lab

import (
	"fmt"
	"slices"
	"time"
)

// Silence is the longest time within [from, to] in which no operation of a
// stream was acknowledged, its edges included: what a client that waits for its
// acknowledgements sees. The stream must offer operations all the time; Floor
// checks that it did.
func Silence(stream []Op, from, to time.Duration) time.Duration {
	var acks []time.Duration
	for _, op := range stream {
		if op.Outcome == OK && op.Return > from && op.Return < to {
			acks = append(acks, op.Return)
		}
	}
	slices.Sort(acks)
	longest, last := time.Duration(0), from
	for _, at := range append(acks, to) {
		longest = max(longest, at-last)
		last = at
	}
	return longest
}

// flying is how long before a fault what it hits may have been begun.
const flying = 100 * time.Millisecond

// Failures returns the operations of a stream that failed in [from, to), and says
// how long after from the last of them was begun: for how long operations are
// begun in vain. What was in flight at from belongs to it, what was in flight at
// to does not.
func Failures(stream []Op, from, to time.Duration) (failed []Op, lasted time.Duration) {
	for _, op := range stream {
		hitBy := func(at time.Duration) bool { return op.Call >= at-flying && op.Call < at && op.Return >= at }
		if op.Outcome != OK && (op.Call >= from && op.Call < to && !hitBy(to) || hitBy(from)) {
			failed = append(failed, op)
			lasted = max(lasted, op.Call-from, 1)
		}
	}
	return failed, lasted
}

// Floor returns an error naming each stream that was acknowledged fewer than
// perSecond times a second in [from, to]: a run with too little traffic proves
// nothing. A stream that is wanted and absent is named too.
func Floor(streams map[string][]Op, wanted []string, from, to time.Duration, perSecond float64) error {
	var problems []string
	for _, name := range wanted {
		acks := 0
		for _, op := range streams[name] {
			if op.Outcome == OK && op.Return >= from && op.Return <= to {
				acks++
			}
		}
		if rate := float64(acks) / (to - from).Seconds(); rate < perSecond {
			problems = append(problems, fmt.Sprintf("%s: %.1f acks/s, want %.1f", name, rate, perSecond))
		}
	}
	if problems != nil {
		slices.Sort(problems)
		return fmt.Errorf("invalid run, traffic below its floor: %q", problems)
	}
	return nil
}
