package lab_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

const ms = time.Millisecond

// stream makes one operation every 10 ms from 0 to 1 s, each taking 1 ms, with
// outcome of(n).
func stream(of func(at time.Duration) lab.Outcome) []lab.Op {
	var ops []lab.Op
	for at := time.Duration(0); at < time.Second; at += 10 * ms {
		ops = append(ops, lab.Op{Kind: "nats", Client: "n1", Target: "s", ID: at.String(), Call: at, Return: at + ms, Outcome: of(at)})
	}
	return ops
}

func fine(time.Duration) lab.Outcome { return lab.OK }

func TestHistory(t *testing.T) {
	h := lab.NewHistory()
	a := h.Begin("nats", "n1", "s", "1")
	b := h.Begin("http", "n1", "s", "2")
	b(lab.Unknown, "", errors.New("reset"))
	a(lab.OK, "x", nil)
	ops := h.Ops()
	if len(ops) != 2 || ops[0].ID != "1" || ops[0].Out != "x" || ops[0].Return < ops[1].Return || ops[1].Err != "reset" {
		t.Errorf("history: %+v", ops)
	}
	if c := lab.Count(ops); c["nats"] != (lab.Counts{Ops: 1, OK: 1}) || c["http"] != (lab.Counts{Ops: 1, Unknown: 1}) {
		t.Errorf("counts: %v", c)
	}
	if e := lab.Errors(ops, 5); len(e) != 1 || e[0] != "1 x http: reset" {
		t.Errorf("errors: %q", e)
	}
}

func TestSilence(t *testing.T) {
	if got := lab.Silence(stream(fine), 0, time.Second); got != 10*ms {
		t.Errorf("no fault: %s, want 10ms", got)
	}
	broken := stream(func(at time.Duration) lab.Outcome {
		if at >= 300*ms && at < 500*ms {
			return lab.Refused
		}
		return lab.OK
	})
	if got := lab.Silence(broken, 0, time.Second); got != 210*ms {
		t.Errorf("200 ms of failures: %s, want 210ms", got)
	}
	if got := lab.Silence(broken, 400*ms, 450*ms); got != 50*ms {
		t.Errorf("within the fault: %s, want 50ms", got)
	}
	slow := stream(fine)
	for i := range slow {
		if slow[i].Call >= 300*ms && slow[i].Call < 500*ms {
			slow[i].Return = 500 * ms // all acknowledged, late
		}
	}
	if got := lab.Silence(slow, 0, time.Second); got < 200*ms {
		t.Errorf("acknowledged late: %s, want 200ms or more", got)
	}
	if got := lab.Silence(nil, 0, time.Second); got != time.Second {
		t.Errorf("nothing at all: %s, want 1s", got)
	}
}

func TestFailures(t *testing.T) {
	if failed, lasted := lab.Failures(stream(fine), 200*ms, time.Second); len(failed) != 0 || lasted != 0 {
		t.Errorf("no fault: %d, %s", len(failed), lasted)
	}
	every3rd := stream(func(at time.Duration) lab.Outcome { // one of three instances is dead, and still chosen
		if at >= 300*ms && at < 700*ms && at%(30*ms) == 0 {
			return lab.Unknown
		}
		return lab.OK
	})
	if failed, lasted := lab.Failures(every3rd, 300*ms, time.Second); len(failed) != 14 || lasted != 390*ms {
		t.Errorf("every third call failed: %d, %s, want 14, 390ms", len(failed), lasted)
	}
	hit := stream(fine)
	hit[29].Outcome, hit[29].Return = lab.Unknown, 900*ms // begun at 290 ms
	if failed, lasted := lab.Failures(hit, 295*ms, time.Second); len(failed) != 1 || lasted <= 0 {
		t.Errorf("in flight at the fault: %d, %s", len(failed), lasted)
	}
	if failed, _ := lab.Failures(hit, 0, 295*ms); len(failed) != 0 {
		t.Errorf("in flight at the next fault: %d, want 0", len(failed))
	}
	if failed, _ := lab.Failures(hit, 500*ms, time.Second); len(failed) != 0 {
		t.Errorf("begun long before: %d, want 0", len(failed))
	}
}

func TestFloor(t *testing.T) {
	streams := map[string][]lab.Op{"a": stream(fine), "b": stream(func(time.Duration) lab.Outcome { return lab.Refused })}
	if err := lab.Floor(streams, []string{"a"}, 0, time.Second, 50); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"b", "absent"} {
		if err := lab.Floor(streams, []string{"a", name}, 0, time.Second, 50); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := lab.Floor(streams, []string{"a"}, 0, time.Second, 150); err == nil {
		t.Error("100 acks/s pass a floor of 150")
	}
}

func TestExecuted(t *testing.T) {
	calls := []lab.Op{{ID: "1", Outcome: lab.OK}, {ID: "2", Outcome: lab.Unknown}, {ID: "3", Outcome: lab.Refused}}
	for name, tt := range map[string]struct {
		ran  map[string]int
		want int
	}{
		"fine":             {map[string]int{"1": 1}, 0},
		"unknown, it ran":  {map[string]int{"1": 1, "2": 1}, 0},
		"lost":             {map[string]int{}, 1},
		"twice":            {map[string]int{"1": 2}, 1},
		"unknown, twice":   {map[string]int{"1": 1, "2": 2}, 1},
		"refused, and ran": {map[string]int{"1": 1, "3": 1}, 1},
	} {
		if got := lab.Executed(calls, tt.ran); len(got) != tt.want {
			t.Errorf("%s: %q, want %d problems", name, got, tt.want)
		}
	}
}

func TestKept(t *testing.T) {
	puts := []lab.Op{{Target: "a", Outcome: lab.OK}, {Target: "b", Outcome: lab.OK}, {Target: "c", Outcome: lab.Unknown}}
	dels := []lab.Op{{Target: "a", Outcome: lab.OK}, {Target: "b", Outcome: lab.Unknown}}
	good := map[string]lab.Entry{"a": {Seq: 3, Deleted: true}, "b": {Seq: 2, Value: "b"}}
	for name, tt := range map[string]struct {
		n2   map[string]lab.Entry
		want int
	}{
		"fine":       {good, 0},
		"a lost put": {map[string]lab.Entry{"a": {Seq: 3, Deleted: true}}, 1},
		"lost all":   {nil, 2},
		"came back":  {map[string]lab.Entry{"a": {Seq: 1, Value: "a"}, "b": {Seq: 2}}, 1},
	} {
		if got := lab.Kept(puts, dels, map[string]map[string]lab.Entry{"n1": good, "n2": tt.n2}); len(got) != tt.want {
			t.Errorf("%s: %q, want %d problems", name, got, tt.want)
		}
	}
}

func TestSame(t *testing.T) {
	a := map[string]int{"x": 1, "y": 2}
	for name, tt := range map[string]struct {
		b    map[string]int
		want int
	}{
		"same":    {map[string]int{"x": 1, "y": 2}, 0},
		"missing": {map[string]int{"x": 1}, 1},
		"more":    {map[string]int{"x": 1, "y": 2, "z": 3}, 1},
		"other":   {map[string]int{"x": 1, "y": 3}, 1},
	} {
		if got := lab.Same(map[string]map[string]int{"n1": a, "n2": tt.b}); len(got) != tt.want {
			t.Errorf("%s: %q, want %d problems", name, got, tt.want)
		}
	}
}

func op(kind, client string, call, ret int, o lab.Outcome, holder string) lab.Op {
	return lab.Op{Kind: kind, Client: client, Target: "k", Call: time.Duration(call), Return: time.Duration(ret), Outcome: o, Out: holder}
}

func TestExclusive(t *testing.T) {
	const A, R = lab.Acquire, lab.Release
	for name, tt := range map[string]struct {
		ops  []lab.Op
		fine bool
	}{
		"one after another":                  {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(R, "a", 3, 4, lab.OK, ""), op(A, "b", 5, 6, lab.OK, "")}, true},
		"two holders":                        {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(A, "b", 5, 6, lab.OK, "")}, false},
		"two holders at once":                {[]lab.Op{op(A, "a", 1, 9, lab.OK, ""), op(A, "b", 2, 8, lab.OK, "")}, false},
		"refused for the holder":             {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(A, "b", 3, 4, lab.Refused, "a")}, true},
		"refused for nobody":                 {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(R, "a", 3, 4, lab.OK, ""), op(A, "b", 5, 6, lab.Refused, "a")}, false},
		"refused for another":                {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(A, "b", 5, 6, lab.Refused, "c")}, false},
		"unknown, took effect":               {[]lab.Op{op(A, "a", 1, 2, lab.Unknown, ""), op(A, "b", 5, 6, lab.Refused, "a")}, true},
		"unknown, did not":                   {[]lab.Op{op(A, "a", 1, 2, lab.Unknown, ""), op(A, "b", 5, 6, lab.OK, "")}, true},
		"unknown, took effect late":          {[]lab.Op{op(A, "a", 1, 2, lab.Unknown, ""), op(A, "b", 3, 4, lab.OK, ""), op(R, "b", 5, 6, lab.OK, ""), op(A, "b", 7, 8, lab.Refused, "a")}, true},
		"unknown release":                    {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(R, "a", 3, 4, lab.Unknown, ""), op(A, "b", 5, 6, lab.OK, "")}, true},
		"unknown release undone":             {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(R, "a", 3, 4, lab.Unknown, ""), op(A, "b", 5, 6, lab.OK, ""), op(A, "c", 7, 8, lab.OK, "")}, false},
		"a lost acquisition (stale new one)": {[]lab.Op{op(A, "a", 1, 2, lab.OK, ""), op(A, "b", 3, 4, lab.OK, ""), op(A, "c", 5, 6, lab.Refused, "a")}, false},
	} {
		if err := lab.Exclusive(tt.ops, 10*time.Second); (err == nil) != tt.fine {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExclusiveOutOfTime: a checker that could not decide has failed.
func TestExclusiveOutOfTime(t *testing.T) {
	var ops []lab.Op
	for i := range 400 { // all at once, all unknown, and then what can't be
		ops = append(ops, op(lab.Acquire, fmt.Sprint("c", i), 1, 2, lab.Unknown, ""), op(lab.Release, fmt.Sprint("c", i), 1, 2, lab.Unknown, ""))
	}
	ops = append(ops, op(lab.Acquire, "x", 5, 6, lab.Refused, "nobody"))
	if err := lab.Exclusive(ops, 50*ms); err == nil || !strings.Contains(err.Error(), "not decided") {
		t.Errorf("got %v, want: not decided", err)
	}
}

func TestStall(t *testing.T) {
	s := lab.WatchStall(t.Context())
	if worst := s.Stop(); worst < 0 || worst > 10*time.Second {
		t.Errorf("stall %s", worst)
	}
}

func TestForks(t *testing.T) {
	a := map[uint64]string{1: "x", 2: "y"}
	for name, tt := range map[string]struct {
		b    map[uint64]string
		want int
	}{
		"same":       {map[uint64]string{1: "x", 2: "y"}, 0},
		"heard less": {map[uint64]string{2: "y"}, 0},
		"forked":     {map[uint64]string{1: "x", 2: "z"}, 1},
	} {
		if got := lab.Forks(map[string]map[uint64]string{"n1": a, "n2": tt.b}); len(got) != tt.want {
			t.Errorf("%s: %q, want %d problems", name, got, tt.want)
		}
	}
}

func TestCPU(t *testing.T) {
	if got := (lab.CPU{Idle: 150, All: 600}).IdleSince(lab.CPU{Idle: 100, All: 400}); got != 0.25 {
		t.Errorf("idle %v, want 0.25", got)
	}
	if got := (lab.CPU{}).IdleSince(lab.CPU{}); got != 1 {
		t.Errorf("unknown: %v, want 1", got)
	}
	if c := lab.ReadCPU(); c.All > 0 && c.Idle > c.All {
		t.Errorf("%+v", c)
	}
}
