package stdio_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router"
)

// Lines of every length around the reader's chunk arrive whole.
func TestLineLengths(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{}))
	c := mustDial(t, b)
	for _, chunk := range []int{4 << 10, 64 << 10, 128 << 10} {
		for n := chunk - 100; n < chunk+4; n++ {
			want := strings.Repeat("é", n/2)
			if got, err := c.text("echo", want); err != nil || got != want {
				t.Fatalf("echo of %d bytes: %d bytes, %v", len(want), len(got), err)
			}
		}
	}
}

// Many clients share one child; each must get its own answers, whatever the
// others cancel meanwhile.
func TestManyClients(t *testing.T) {
	t.Parallel()
	legacy, _ := start(t, sharedOptions(quirks{}))
	modern, _ := start(t, fakeOptions(quirks{Modern: true}))
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			c := mustDial(t, legacy)
			call := func(ctx context.Context, n int, raw string, out router.Stream) (*router.Reply, error) {
				if n%2 == 0 {
					return c.serve(ctx, raw, out)
				}
				return once(ctx, modern, router.EraModern, strings.Replace(raw, `"_meta":{`, modernMeta[:len(modernMeta)-len(`,"progressToken":"p"}`)]+",", 1), out)
			}
			for n := range 60 {
				busyClient(t, fmt.Sprintf("%d-%d", i, n), func(ctx context.Context, raw string, out router.Stream) (*router.Reply, error) {
					return call(ctx, n, raw, out)
				})
			}
		})
	}
	all.Wait()
}

// busyClient makes one call of some kind and checks what comes of it.
func busyClient(t *testing.T, text string, call func(context.Context, string, router.Stream) (*router.Reply, error)) {
	out := newStream()
	switch rand.IntN(3) {
	case 0:
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(3000))*time.Microsecond)
		defer cancel()
		reply, err := call(ctx, toolCall("1", "wait", "{}"), out)
		if !errors.Is(err, router.ErrOutcomeUnknown) && !errors.Is(err, router.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled call: %+v, %v", reply, err)
		}
	case 1:
		reply, err := call(t.Context(), toolCall(`"`+text+`"`, "progress", `{"n":5}`), out)
		if err != nil || !strings.Contains(string(reply.Body), `"id":"`+text+`"`) {
			t.Errorf("progress: %+v, %v", reply, err)
			return
		}
		got := 0
		for len(out.msgs) > 0 {
			if m := out.next(t); m.Method == "notifications/progress" {
				got++
			}
		}
		if got != 5 {
			t.Errorf("%d progress messages, want 5", got)
		}
	case 2:
		reply, err := call(t.Context(), toolCall("7", "echo", `{"text":"`+text+`"}`), out)
		if err != nil {
			t.Errorf("echo: %v", err)
			return
		}
		if got, err := textOf(reply.Body); got != text {
			t.Errorf("echo %q = %q, %v", text, got, err)
		}
	}
}
