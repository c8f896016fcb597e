package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv/sessions"
)

func openLog(t testing.TB, nc *nats.Conn, change func(*sessions.EventOptions)) *sessions.EventLog {
	t.Helper()
	o := sessions.EventOptions{Fabric: nc, Logger: logger()}
	change(&o)
	l, err := sessions.OpenEventLog(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// loaded returns the numbers of a stream, and fails the test if the messages are
// not theirs.
func loaded(t testing.TB, l *sessions.EventLog, session, stream string, after uint64) []uint64 {
	t.Helper()
	var got []uint64
	err := l.Load(short(t), session, stream, after, func(n uint64, msg []byte) error {
		if want := fmt.Sprint(stream, n); string(msg) != want {
			t.Errorf("message %d is %q, want %q", n, msg, want)
		}
		got = append(got, n)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func numbers(from, to uint64) (list []uint64) {
	for n := from; n <= to; n++ {
		list = append(list, n)
	}
	return list
}

func appendEvents(l *sessions.EventLog, session, stream string, list ...uint64) {
	for _, n := range list {
		l.Append(session, stream, n, []byte(fmt.Sprint(stream, n)))
	}
}

func TestEvents(t *testing.T) {
	for _, durability := range []string{sessions.EventsMemory, sessions.EventsFile} {
		t.Run(durability, func(t *testing.T) {
			lab := newLab(t)
			set := func(o *sessions.EventOptions) { o.Durability = durability }
			a, b := openLog(t, lab.Fabric(), set), openLog(t, lab.Fabric(), set)
			appendEvents(a, "s-1", "g1", numbers(1, 1000)...)
			appendEvents(a, "s-1", "abc", numbers(1, 3)...)
			appendEvents(a, "s-2", "g1", 1)
			if got := loaded(t, a, "s-1", "g1", 990); fmt.Sprint(got) != fmt.Sprint(numbers(991, 1000)) {
				t.Errorf("before they are written: %v", got)
			}
			if err := a.Flush(short(t)); err != nil {
				t.Fatal(err)
			}
			appendEvents(a, "s-1", "g1", 1003, 1001, 999, 1002, 1003) // a retry
			if err := a.Flush(short(t)); err != nil {
				t.Fatal(err)
			}
			if got := loaded(t, b, "s-1", "g1", 0); fmt.Sprint(got) != fmt.Sprint(numbers(1, 1003)) {
				t.Errorf("on another node: %v", got)
			}
			if got := loaded(t, b, "s-1", "g1", 1001); fmt.Sprint(got) != "[1002 1003]" {
				t.Errorf("after 1001: %v", got)
			}
			if got := loaded(t, b, "s-1", "none", 0); len(got) != 0 {
				t.Errorf("of no stream: %v", got)
			}
			stop := errors.New("enough")
			if err := b.Load(t.Context(), "s-1", "g1", 0, func(uint64, []byte) error { return stop }); !errors.Is(err, stop) {
				t.Errorf("stopped: %v", err)
			}
			info := stream(t, lab.Fabric(), a.Stream())
			if info.State.Consumers != 0 || info.Config.MaxAge != 5*time.Minute || info.Config.MaxBytes != 256<<20 {
				t.Errorf("stream %+v", info)
			}
			a.Forget("s-1")
			if err := a.Flush(short(t)); err != nil {
				t.Fatal(err)
			}
			if got := stream(t, lab.Fabric(), a.Stream()).State.Msgs; got != 1 {
				t.Errorf("%d messages after one of two sessions was forgotten", got)
			}
			if a.Dropped() != 0 {
				t.Errorf("%d dropped", a.Dropped())
			}
		})
	}
}

// TestEventsChangeDurability finds the stream with the other storage.
func TestEventsChangeDurability(t *testing.T) {
	lab := newLab(t)
	a := openLog(t, lab.Fabric(), func(*sessions.EventOptions) {})
	appendEvents(a, "s-1", "g1", 1)
	if err := a.Flush(short(t)); err != nil {
		t.Fatal(err)
	}
	b := openLog(t, lab.Fabric(), func(o *sessions.EventOptions) { o.Durability, o.MaxAge = sessions.EventsFile, time.Minute })
	appendEvents(b, "s-1", "g1", 2)
	if err := b.Flush(short(t)); err != nil {
		t.Fatal(err)
	}
	if i := stream(t, lab.Fabric(), a.Stream()); i.Config.Storage != jetstream.FileStorage || i.Config.MaxAge != time.Minute {
		t.Errorf("config %+v", i.Config)
	}
}

// TestEventsNobodyTakes appends while nothing can be written: the oldest are
// dropped, and the caller does not notice.
func TestEventsNobodyTakes(t *testing.T) {
	c := newCluster(t)
	l := openLog(t, c.start(0).Fabric(), func(o *sessions.EventOptions) { o.Replicas = 3 })
	msg := make([]byte, 32<<10)
	begun := time.Now()
	const n = 1000 // 32 MiB
	for i := range uint64(n) {
		l.Append("s-1", "g1", i+1, msg)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("appending took %s", took)
	}
	if l.Dropped() == 0 || l.Pending()+int(l.Dropped()) != n || l.Pending() > 256 {
		t.Errorf("%d dropped, %d wait", l.Dropped(), l.Pending())
	}
	off := openLog(t, c.nodes[0].Fabric(), func(o *sessions.EventOptions) { o.Durability = sessions.EventsOff })
	off.Append("s-1", "g1", 1, msg)
	if err := off.Load(t.Context(), "s-1", "g1", 0, func(uint64, []byte) error { return errors.New("there is one") }); err != nil || off.Pending() != 0 {
		t.Errorf("off: %v, %d wait", err, off.Pending())
	}
	if _, err := sessions.OpenEventLog(sessions.EventOptions{Fabric: c.nodes[0].Fabric(), Durability: "tape", Logger: logger()}); err == nil {
		t.Error("opened with durability tape")
	}
}

// eventsThroughFailover appends while the stream's leader is killed.
func eventsThroughFailover(t *testing.T, c *cluster, keep int) {
	set := func(o *sessions.EventOptions) { o.Replicas = 3 }
	l := openLog(t, c.nodes[keep].Fabric(), set)
	appendEvents(l, "s-1", "g1", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := l.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	at := c.leader(keep, l.Stream())
	for n := range uint64(2000) {
		if n == 500 && at != keep {
			c.kill(at)
		}
		appendEvents(l, "s-1", "g1", n+2)
	}
	if err := l.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	other := 3 - keep - at
	if at == keep {
		other = (keep + 1) % 3
	}
	far := openLog(t, c.nodes[other].Fabric(), set)
	if got := loaded(t, far, "s-1", "g1", 0); fmt.Sprint(got) != fmt.Sprint(numbers(1, 2001)) {
		t.Errorf("%d of 2001 messages: %v", len(got), got)
	}
	if at != keep {
		c.start(at)
	}
}
