package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// traffic is three seconds of what startLoad makes at two nodes, changed by f.
func traffic(f func(op *lab.Op)) []lab.Op {
	var ops []lab.Op
	add := func(kind, client, target string, every time.Duration) {
		for at := time.Duration(0); at < 3*time.Second; at += every {
			op := lab.Op{Kind: kind, Client: client, Target: target, ID: fmt.Sprint(kind, client, target, at), Call: at, Return: at + time.Millisecond, Outcome: lab.OK}
			f(&op)
			ops = append(ops, op)
		}
	}
	for _, client := range []string{"n1", "n2"} {
		for _, target := range []string{manyServer, "only-n1", "only-n2"} {
			add(kindNATS, client, target, callEvery)
		}
		add(kindPut, client, "some-key", writeEvery)
	}
	return ops
}

// TestJudge: each promise that is broken is noticed, and none that is kept.
func TestJudge(t *testing.T) {
	t.Setenv("RIPSTOP_E2E_RACE", "")
	t.Setenv("RIPSTOP_E2E", "full") // no slack
	const at = time.Second          // of the fault; it lasts a second
	fault := func(from, to time.Duration, match func(op *lab.Op) bool) func(op *lab.Op) {
		return func(op *lab.Op) {
			if op.Call >= from && op.Call < to && match(op) {
				op.Outcome = lab.Unknown
			}
		}
	}
	call := func(client, target string) func(op *lab.Op) bool {
		return func(op *lab.Op) bool { return isCall(*op) && op.Client == client && op.Target == target }
	}
	write := func(client string) func(op *lab.Op) bool {
		return func(op *lab.Op) bool { return isWrite(*op) && op.Client == client }
	}
	none := func(*lab.Op) {}
	soft := bounds{calls: 500 * time.Millisecond, failed: -1}
	for name, tt := range map[string]struct {
		change func(op *lab.Op)
		w      window
		want   string // "" = nothing is wrong
	}{
		"nothing happened":            {none, window{bounds: graceful}, ""},
		"a call failed":               {fault(at, at+60*time.Millisecond, call("n1", "only-n2")), window{bounds: graceful}, "2 calls failed"},
		"calls failed briefly":        {fault(at, at+400*time.Millisecond, call("n1", manyServer)), window{bounds: soft}, ""},
		"calls failed for long":       {fault(at, at+700*time.Millisecond, call("n1", manyServer)), window{bounds: soft}, "failed or were silent"},
		"a call failed late":          {fault(at+700*time.Millisecond, at+750*time.Millisecond, call("n1", manyServer)), window{bounds: soft}, "failed or were silent"},
		"calls to the dead failed":    {fault(at, 2*at, call("n1", "only-n2")), window{bounds: graceful, Dead: []string{"n2"}}, ""},
		"client of the dead failed":   {fault(at, 2*at, call("n2", "only-n1")), window{bounds: graceful, Dead: []string{"n2"}}, "calls failed"},
		"client is stuck":             {fault(at, 2*at, call("n2", "only-n1")), window{bounds: bounds{calls: time.Second / 2, stuck: true}, Dead: []string{"n2"}}, ""},
		"writes paused":               {fault(at, at+400*time.Millisecond, write("n1")), window{bounds: graceful}, "registrations at living nodes were silent"},
		"writes at the dead paused":   {fault(at, 2*at, write("n2")), window{bounds: graceful, Dead: []string{"n2"}}, ""},
		"acknowledged without quorum": {none, window{bounds: anything, Silent: map[string]time.Duration{"n1": at + 900*time.Millisecond}}, "can have no quorum"},
		"no quorum, no ack":           {fault(at, 2*at, write("n1")), window{bounds: anything, Silent: map[string]time.Duration{"n1": at}}, ""},
	} {
		w := tt.w
		w.Name, w.At, w.Until = "fault", at, 2*at
		r := &faultRun{windows: []*window{&w, {}}}
		late, wrong := r.judge(traffic(tt.change))
		got := strings.Join(append(late, wrong...), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	r := &faultRun{windows: []*window{{}}, caught: []time.Duration{31 * time.Second}}
	if got, _ := r.judge(nil); len(got) != 1 || !strings.Contains(got[0], "current after") {
		t.Errorf("a node that caught up late: %q", got)
	}
}

// TestFloorOfARun: a run in which one stream was too slow is invalid.
func TestFloorOfARun(t *testing.T) {
	r := &faultRun{first: []*member{{name: "n1"}, {name: "n2"}}, windows: []*window{{At: 2 * time.Second}}}
	full := func(keep func(op lab.Op) bool) []lab.Op {
		ops := traffic(func(*lab.Op) {})
		for _, op := range ops {
			if op.Kind == kindNATS {
				op.Kind = kindHTTP
				ops = append(ops, op)
			}
		}
		return lab.Select(ops, keep)
	}
	if err := r.floor(full(func(lab.Op) bool { return true })); err != nil {
		t.Error(err)
	}
	for name, lost := range map[string]func(op lab.Op) bool{
		"nats n1>only-n2": func(op lab.Op) bool { return op.Kind == kindNATS && op.Client == "n1" && op.Target == "only-n2" },
		"http n2>many":    func(op lab.Op) bool { return op.Kind == kindHTTP && op.Client == "n2" },
		"kv n1>registry":  func(op lab.Op) bool { return op.Kind == kindPut && op.Client == "n1" },
	} {
		if err := r.floor(full(func(op lab.Op) bool { return !lost(op) })); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestSettle: what the feed shows decides what is not known.
func TestSettle(t *testing.T) {
	const key = claimPrefix + "x"
	f := &feed{keys: map[string][]change{key: {
		{at: 10, seq: 1, instance: "a"}, {at: 30, seq: 2}, {at: 31, seq: 1, instance: "a"}, {at: 40, seq: 3, instance: "b"},
	}}}
	got := f.settle([]lab.Op{
		{Kind: lab.Acquire, Client: "a", Target: key, Call: 1, Return: 5, Outcome: lab.Unknown},
		{Kind: lab.Acquire, Client: "c", Target: key, Call: 2, Return: 6, Outcome: lab.Unknown},
		{Kind: lab.Release, Client: "a", Target: key, Call: 20, Return: 21, Outcome: lab.Unknown},
		{Kind: lab.Release, Client: "b", Target: key, Call: 50, Return: 51, Outcome: lab.Unknown},
	})
	if len(got) != 3 || got[0].Outcome != lab.OK || got[0].Return != 10 || got[1].Return != 30 || got[1].Outcome != lab.OK || got[2].Outcome != lab.Unknown {
		t.Errorf("settled: %+v", got)
	}
}
