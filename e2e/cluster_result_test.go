package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// outcome is what is published of a run.
type outcome struct {
	Class    string
	Seed     uint64
	Passed   bool
	Invalid  string   `json:",omitempty"` // why the run proves nothing: too little traffic
	Starved  string   `json:",omitempty"` // why how long something took proves nothing
	Late     []string // promises that were broken and that hang on time: of gaps, and of calls that nobody gave up
	Schedule []window // with what each fault cost
	Counts   map[string]lab.Counts
	Current  []time.Duration // restarted nodes, until current
	Keys     int             // of the bucket, compared on every replica
	Executed int
	Replaced int      `json:",omitempty"` // processes of the probes' sessions, by others
	Errors   []string // the commonest
	Problems []string
	Idle     float64       // share of time in which a processor was idle
	Stall    time.Duration // the longest that the test itself was held up
	Load     string        // of the machine, at the end
	Took     time.Duration
	Logs     string `json:",omitempty"`
}

// starved says, if promises were broken that hang on time, whether the machine is
// to blame.
func (o *outcome) starved() {
	if (o.Stall > starvedFor || o.Idle < starvedIdle) && len(o.Late) > 0 {
		o.Starved = fmt.Sprintf("the machine was starved: the test itself was held up for %s, processors were idle for %.0f %% of the time", o.Stall.Round(time.Millisecond), 100*o.Idle)
	}
}

// publish prints the run's line, keeps its result, and fails the test if the
// run did.
func (r *faultRun) publish(o *outcome, ops []lab.Op) {
	r.t.Helper()
	load, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		o.Load, _, _ = strings.Cut(string(load), " ")
	}
	o.Took = time.Since(r.began)
	o.Passed = len(o.Problems)+len(o.Late) == 0 && o.Invalid == ""
	if !o.Passed {
		for _, m := range r.members {
			r.save(m)
		}
		o.Logs = r.keepLogs()
		if data, err := json.Marshal(ops); err == nil {
			if err := os.WriteFile(filepath.Join(o.Logs, "history.json"), data, 0o600); err != nil {
				r.t.Error(err)
			}
		}
	}
	r.t.Log("\n" + o.line())
	for _, w := range o.Schedule {
		if w.bounds.failed >= 0 && w.Failed > 0 { // within the slack, if any
			r.t.Logf("%s: %d calls failed: %q", w.Name, w.Failed, w.Which)
		}
	}
	if dir := os.Getenv("RIPSTOP_E2E_RESULTS"); dir != "" {
		if err := o.write(dir); err != nil {
			r.t.Error(err)
		}
	}
	if o.Starved != "" && len(o.Problems) == 0 && !full() {
		r.t.Skipf("not counted, %d tries: %s; repeat it on a quiet machine", tries, o.Starved)
	}
	if o.Invalid != "" {
		r.t.Errorf("invalid run: %s", o.Invalid)
	}
	if o.Starved != "" {
		r.t.Errorf("%s; %d tries", o.Starved, tries)
	}
	problems := append(o.Late, o.Problems...)
	for i, p := range problems {
		if i == 20 {
			r.t.Errorf("and %d more", len(problems)-i)
			break
		}
		r.t.Error(p)
	}
	if !o.Passed {
		r.t.Errorf("commonest errors: %s", strings.Join(o.Errors, "\n"))
		r.t.Errorf("history and logs: %s; repeat with RIPSTOP_E2E_SEED=%d", o.Logs, o.Seed)
	}
}

// line is the run in one line of a table.
func (o *outcome) line() string {
	verdict := "pass"
	switch {
	case o.Invalid != "" || o.Starved != "" && len(o.Problems) == 0:
		verdict = "INVALID"
	case len(o.Problems)+len(o.Late) > 0:
		verdict = "FAIL"
	}
	var steps, counts []string
	for _, w := range o.Schedule {
		steps = append(steps, fmt.Sprintf("%.1fs %s: calls %dms writes %dms failed %d", w.At.Seconds(), w.Name, w.Calls.Milliseconds(), w.Writes.Milliseconds(), w.Failed))
	}
	for _, kind := range []string{kindNATS, kindHTTP, kindStdio, kindPut, kindRemove, lab.Acquire} {
		if n, ok := o.Counts[kind]; ok {
			counts = append(counts, kind+" "+n.String())
		}
	}
	var caught []string
	for _, d := range o.Current {
		caught = append(caught, strconv.FormatFloat(d.Seconds(), 'f', 1, 64))
	}
	return fmt.Sprintf("| %s | seed %d | %s | ops/ok/refused/unknown: %s | executed %d, keys %d, replaced %d | current after %s s | stall %d ms, idle %.0f %%, load %s, %.0f s | %s |",
		o.Class, o.Seed, strings.Join(steps, "; "), strings.Join(counts, ", "), o.Executed, o.Keys, o.Replaced, strings.Join(caught, " "), o.Stall.Milliseconds(), 100*o.Idle, o.Load, o.Took.Seconds(), verdict)
}

func resultPath(dir, class string, seed uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d.json", class, seed))
}

func (o *outcome) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(o, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(resultPath(dir, o.Class, o.Seed), data, 0o644)
}

// recorded returns the result of an earlier run, so that a long series can go
// on where it was interrupted.
func recorded(class string, seed uint64) (*outcome, error) {
	dir := os.Getenv("RIPSTOP_E2E_RESULTS")
	if dir == "" {
		return nil, nil
	}
	data, err := os.ReadFile(resultPath(dir, class, seed))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	o := &outcome{}
	return o, json.Unmarshal(data, o)
}

// seeds are those to run: RIPSTOP_E2E_SEED, else RIPSTOP_E2E_SEEDS ("3" or
// "1-20"), else 1.
func seeds(t testing.TB) []uint64 {
	t.Helper()
	text := os.Getenv("RIPSTOP_E2E_SEED")
	if text == "" {
		text = os.Getenv("RIPSTOP_E2E_SEEDS")
	}
	if text == "" {
		text = "1"
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	a, err := strconv.ParseUint(from, 10, 64)
	b, err2 := strconv.ParseUint(to, 10, 64)
	if err := errors.Join(err, err2); err != nil || b < a || b-a > 10_000 {
		t.Fatalf("seeds %q: want a number, or a range such as 1-20", text)
	}
	var out []uint64
	for s := a; s <= b; s++ {
		out = append(out, s)
	}
	return out
}
