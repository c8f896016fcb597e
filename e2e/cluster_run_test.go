package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// bounds are what a fault may cost; zero leaves it unjudged, and published.
type bounds struct {
	calls  time.Duration // calls to servers on living nodes fail, or are silent, for
	writes time.Duration // no registration at a living node is acknowledged for
	failed int           // calls that may fail in all; -1 = any number

	stuck bool // clients of the dead nodes stay with them, and are not judged
}

// Bounds of the promises.
var (
	killed   = bounds{calls: time.Second, writes: 250 * time.Millisecond, failed: -1}
	graceful = bounds{calls: time.Second, writes: 250 * time.Millisecond}
	hung     = bounds{writes: 1500 * time.Millisecond, failed: -1, stuck: true}
	anything = bounds{failed: -1}
)

const (
	warmUp      = 2 * time.Second // of load before the first fault
	currentIn   = 30 * time.Second
	checkerTime = 60 * time.Second
	// On a machine that is this starved, how long something took says nothing:
	// the longest time the test itself was held up, and the share of time in
	// which a processor was idle.
	starvedFor  = 50 * time.Millisecond
	starvedIdle = 0.05
)

// window is a fault and what follows, until the next.
type window struct {
	Name   string
	At     time.Duration // just before the fault
	Until  time.Duration
	Silent map[string]time.Duration `json:",omitempty"` // nodes that must not acknowledge a registration begun after
	Dead   []string                 // nodes that can't be expected to answer
	bounds bounds
	Calls  time.Duration // measured: the longest any stream of calls to the living failed or was silent
	Writes time.Duration // measured: the longest that a living node's registrations were silent
	Failed int           // calls of the living to the living that failed
	Worst  string        // the stream that Calls is of
	Wrong  []string      `json:",omitempty"` // registrations that were acknowledged and must not be
}

// faultRun is one cluster, load on it, and a schedule of faults drawn from a seed.
type faultRun struct {
	*cluster
	class   string
	seed    uint64
	rng     *rand.Rand
	count   counter
	load    *load
	stall   *lab.Stall
	cpu     lab.CPU
	windows []*window
	caught  []time.Duration // how long restarted nodes took to be current
	calls   int             // made by the run itself
	wrong   []string        // seen while it ran
	began   time.Time
}

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
	Errors   []string // the commonest
	Problems []string
	Idle     float64       // share of time in which a processor was idle
	Stall    time.Duration // the longest that the test itself was held up
	Load     string        // of the machine, at the end
	Took     time.Duration
	Logs     string `json:",omitempty"`
}

// newRun starts a cluster with counting servers, and load on it.
func newRun(t *testing.T, class string, seed uint64, opts clusterOptions) *faultRun {
	t.Helper()
	r := &faultRun{class: class, seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), count: newCounter(t), began: time.Now()}
	opts.seed = seed
	opts.args = append(opts.args, "--demo=false")
	opts.servers = func(name string) string { return r.count.servers(t, manyServer, ownServer(name)) }
	r.cluster = startCluster(t, opts)
	r.load = startLoad(r.cluster)
	r.stall = lab.WatchStall(context.Background())
	t.Cleanup(func() { r.load.stop(); r.stall.Stop() })
	r.cpu = lab.ReadCPU()
	r.hold(warmUp)
	return r
}

func (r *faultRun) hold(d time.Duration) { time.Sleep(d) }

// between draws a duration.
func (r *faultRun) between(least, most time.Duration) time.Duration {
	return least + time.Duration(r.rng.Int64N(int64(most-least)+1))
}

func (r *faultRun) pick(from []*member) *member { return from[r.rng.IntN(len(from))] }

// fault opens a window, which lasts until the next. dead are the nodes that are
// to fail.
func (r *faultRun) fault(b bounds, name string, dead ...*member) {
	now := r.load.h.Now()
	if n := len(r.windows); n > 0 {
		r.windows[n-1].Until = now
	}
	w := &window{Name: name, At: now, bounds: b}
	for _, m := range dead {
		w.Dead = append(w.Dead, m.name)
	}
	r.windows = append(r.windows, w)
}

// silent says that from now until the next fault a node can have no quorum.
func (r *faultRun) silent(m *member) {
	r.windows[len(r.windows)-1].Silent = map[string]time.Duration{m.name: r.load.h.Now()}
}

// mute reports whether op, a registration, must not be acknowledged.
func (w *window) mute(op lab.Op) bool {
	since, ok := w.Silent[op.Client]
	return ok && op.Call > since
}

// back starts m again and waits until it is current. What that costs the others
// is judged by b.
func (r *faultRun) back(b bounds, nodes ...*member) {
	r.t.Helper()
	var names []string
	for _, m := range nodes {
		names = append(names, m.name)
	}
	r.fault(b, "start "+strings.Join(names, ","), nodes...)
	for _, m := range nodes {
		r.start(m)
	}
	r.current(nodes...)
}

// current waits until nodes are ready and have caught up.
func (r *faultRun) current(nodes ...*member) {
	r.t.Helper()
	begin := time.Now()
	for _, m := range nodes {
		r.awaitReady(m)
		r.caught = append(r.caught, time.Since(begin))
	}
	// Who says that it is ready serves.
	for _, m := range nodes {
		for _, to := range r.members {
			if !to.up {
				continue
			}
			r.calls++
			if problem := m.callHTTP(ownServer(to.name), fmt.Sprintf("ready-%d", r.calls)); problem != "" {
				r.wrong = append(r.wrong, fmt.Sprintf("ready and yet: %s; it took %s more", problem, r.until(m, to)))
			}
		}
	}
}

// until measures how long it takes until m serves the server of to.
func (r *faultRun) until(m, to *member) time.Duration {
	begin := time.Now()
	for time.Since(begin) < currentIn {
		r.calls++
		if m.callHTTP(ownServer(to.name), fmt.Sprintf("ready-%d", r.calls)) == "" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin).Round(time.Millisecond)
}

// finish ends the load and checks everything.
func (r *faultRun) finish() (*outcome, []lab.Op) {
	r.t.Helper()
	r.fault(anything, "end")
	ops := r.load.stop()
	o := &outcome{Class: r.class, Seed: r.seed, Counts: lab.Count(ops), Current: r.caught, Errors: lab.Errors(ops, 12), Stall: r.stall.Stop()}
	if err := r.floor(ops); err != nil {
		o.Invalid = err.Error()
	}
	o.Idle = lab.ReadCPU().IdleSince(r.cpu)
	late, wrong := r.judge(ops)
	if o.Late = late; (o.Stall > starvedFor || o.Idle < starvedIdle) && len(late) > 0 {
		o.Starved = fmt.Sprintf("the machine was starved: the test itself was held up for %s, processors were idle for %.0f %% of the time", o.Stall.Round(time.Millisecond), 100*o.Idle)
	}
	o.Problems = append(append(r.wrong, wrong...), r.invariants(ops, o)...)
	for _, w := range r.windows[:len(r.windows)-1] {
		o.Schedule = append(o.Schedule, *w)
	}
	return o, ops
}

// floor checks that there was traffic in every stream before the first fault.
func (r *faultRun) floor(ops []lab.Op) error {
	first := r.windows[0].At
	from := first - warmUp/2
	calls := lab.Streams(lab.Select(ops, isCall), func(op lab.Op) string { return op.Target })
	writes := lab.Streams(lab.Select(ops, isWrite), func(lab.Op) string { return "registry" })
	var wantCalls, wantWrites []string
	for i, m := range r.members[:r.opts.nodes] {
		wantWrites = append(wantWrites, kindPut+" "+m.name+">registry")
		wantCalls = append(wantCalls, kindHTTP+" "+m.name+">"+manyServer,
			kindHTTP+" "+m.name+">"+ownServer(r.members[(i+1)%r.opts.nodes].name))
		for _, s := range append([]string{manyServer}, ownServers(r.members[:r.opts.nodes])...) {
			wantCalls = append(wantCalls, kindNATS+" "+m.name+">"+s)
		}
	}
	return errors.Join(lab.Floor(calls, wantCalls, from, first, callFloor), lab.Floor(writes, wantWrites, from, first, writeFloor))
}

func ownServers(members []*member) []string {
	var out []string
	for _, m := range members {
		out = append(out, ownServer(m.name))
	}
	return out
}

func isCall(op lab.Op) bool  { return op.Kind == kindNATS || op.Kind == kindHTTP }
func isWrite(op lab.Op) bool { return op.Kind == kindPut }

// judge measures each window and holds it against its bounds. Under the race
// detector a node is several times slower: what it takes is only published.
func (r *faultRun) judge(ops []lab.Op) (late, wrong []string) {
	for _, w := range r.windows[:len(r.windows)-1] {
		w.measure(ops)
		if os.Getenv("RIPSTOP_E2E_RACE") != "" {
			w.bounds.calls, w.bounds.writes = 0, 0
		}
		if b := w.bounds.calls; b > 0 && w.Calls > b {
			late = append(late, fmt.Sprintf("%s at %s: calls to servers on living nodes failed or were silent for %s, want less than %s (%s)", w.Name, w.At.Round(time.Millisecond), w.Calls.Round(time.Millisecond), b, w.Worst))
		}
		if b := w.bounds.writes; b > 0 && w.Writes > b {
			late = append(late, fmt.Sprintf("%s at %s: registrations at living nodes were silent for %s, want less than %s", w.Name, w.At.Round(time.Millisecond), w.Writes.Round(time.Millisecond), b))
		}
		if b := w.bounds.failed; b >= 0 && w.Failed > b {
			late = append(late, fmt.Sprintf("%s at %s: %d calls failed, want %d", w.Name, w.At.Round(time.Millisecond), w.Failed, b))
		}
		for _, what := range w.Wrong {
			wrong = append(wrong, fmt.Sprintf("%s at %s: %s", w.Name, w.At.Round(time.Millisecond), what))
		}
	}
	for _, took := range r.caught {
		if took > currentIn {
			late = append(late, fmt.Sprintf("a restarted node was current after %s, want less than %s", took, currentIn))
		}
	}
	return late, wrong
}

// measure looks at streams to targets that live. Silence counts from half a
// second before the fault, so that what was in flight belongs to it.
func (w *window) measure(ops []lab.Op) {
	dead := func(name string) bool { return slices.Contains(w.Dead, name) }
	near := lab.Select(ops, func(op lab.Op) bool { return op.Return > w.At-time.Second && op.Call < w.Until })
	calls := lab.Select(near, func(op lab.Op) bool {
		return isCall(op) && !dead(strings.TrimPrefix(op.Target, "only-")) && !(w.bounds.stuck && dead(op.Client))
	})
	from := w.At - min(w.At, 500*time.Millisecond)
	for name, stream := range lab.Streams(calls, func(op lab.Op) string { return op.Target }) {
		n, lasted := lab.Failures(stream, w.At, w.Until)
		w.Failed += n
		if gap := max(lab.Silence(stream, from, w.Until), lasted); gap > w.Calls {
			w.Calls, w.Worst = gap, name
		}
	}
	for _, op := range near {
		if isWrite(op) && op.Outcome == lab.OK && op.Return < w.Until && w.mute(op) {
			w.Wrong = append(w.Wrong, fmt.Sprintf("%s, which can have no quorum, acknowledged %s, begun at %s, at %s", op.Client, op.Target, op.Call.Round(time.Millisecond), op.Return.Round(time.Millisecond)))
		}
	}
	writes := lab.Select(near, func(op lab.Op) bool { return isWrite(op) && !dead(op.Client) })
	for _, stream := range lab.Streams(writes, func(lab.Op) string { return "registry" }) {
		w.Writes = max(w.Writes, lab.Silence(stream, from, w.Until))
	}
}

// invariants checks what must hold after any schedule.
func (r *faultRun) invariants(ops []lab.Op, o *outcome) []string {
	ran := r.count.executed(r.t)
	o.Executed = len(ran)
	problems := lab.Executed(lab.Select(ops, isCall), ran)
	if err := lab.Exclusive(r.contention(ops), checkerTime); err != nil {
		problems = append(problems, err.Error())
	}
	problems = append(problems, r.load.feed.forks()...)
	removals := lab.Select(ops, func(op lab.Op) bool { return op.Kind == kindRemove })
	keys, differ := r.compare(lab.Select(ops, isWrite), removals)
	o.Keys = keys
	return append(problems, differ...)
}

// contention returns the operations on contended names, as the checker wants
// them. A name held at a node that failed may be given up any time. Refusals are
// left out: a node may refuse by its index, which is a moment behind, and only
// who gets a name is decided by compare-and-set.
func (r *faultRun) contention(ops []lab.Op) []lab.Op {
	held := lab.Select(ops, func(op lab.Op) bool {
		return op.Kind == lab.Acquire && op.Outcome != lab.Refused || op.Kind == lab.Release
	})
	acquired := map[string]lab.Op{}
	for _, op := range held {
		if op.Kind == lab.Acquire {
			acquired[op.Client] = op
		}
	}
	for i, op := range held {
		if op.Kind != lab.Release {
			continue
		}
		node, _, _ := strings.Cut(op.ID, " ")
		for _, w := range r.windows {
			if slices.Contains(w.Dead, node) && w.Until > acquired[op.Client].Call && w.At < op.Return {
				held[i].Call = acquired[op.Client].Call
			}
		}
	}
	return r.load.feed.settle(held)
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
	if dir := os.Getenv("RIPSTOP_E2E_RESULTS"); dir != "" {
		if err := o.write(dir); err != nil {
			r.t.Error(err)
		}
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
	for _, kind := range []string{kindNATS, kindHTTP, kindPut, kindRemove, lab.Acquire} {
		counts = append(counts, kind+" "+o.Counts[kind].String())
	}
	var caught []string
	for _, d := range o.Current {
		caught = append(caught, strconv.FormatFloat(d.Seconds(), 'f', 1, 64))
	}
	return fmt.Sprintf("| %s | seed %d | %s | ops/ok/refused/unknown: %s | executed %d, keys %d | current after %s s | stall %d ms, idle %.0f %%, load %s, %.0f s | %s |",
		o.Class, o.Seed, strings.Join(steps, "; "), strings.Join(counts, ", "), o.Executed, o.Keys, strings.Join(caught, " "), o.Stall.Milliseconds(), 100*o.Idle, o.Load, o.Took.Seconds(), verdict)
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
