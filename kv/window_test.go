package kv

import (
	"context"
	"testing"
	"time"
)

// TestWindowClosesWhileAnswersAreOverdue: many writes at once while answers
// come; two while they don't; many again after.
func TestWindowClosesWhileAnswersAreOverdue(t *testing.T) {
	w := &window{}
	var leave []func(bool)
	for range writesAtOnce {
		l, err := w.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	blocked := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		l, err := w.enter(ctx)
		if err == nil {
			l(false)
		}
		return err != nil
	}
	if !blocked() {
		t.Errorf("%d writes at once are let through", writesAtOnce+1)
	}
	time.Sleep(overdueLeast) // nothing is answered
	for _, l := range leave[:writesAtOnce-writesOverdue] {
		l(false)
	}
	if !blocked() {
		t.Errorf("with %d answers overdue another write is let through", writesOverdue)
	}
	for _, l := range leave[writesAtOnce-writesOverdue:] {
		l(true)
	}
	for range writesAtOnce {
		l, err := w.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l(true)
	}
}
