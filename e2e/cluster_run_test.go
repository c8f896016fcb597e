package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
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

const someFailed = 5 // calls that are shown of those that failed

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
	Which  []string      `json:",omitempty"` // some of the calls that Failed counts
	Wrong  []string      `json:",omitempty"` // registrations that were acknowledged and must not be
}

// faultRun is one cluster, load on it, and a schedule of faults drawn from a seed.
type faultRun struct {
	*cluster
	class   string
	first   []*member // the nodes that the load began with
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
	early   []string        // nodes that said ready too soon
	began   time.Time
}

// newRun starts a cluster with counting servers, and load on it.
func newRun(t *testing.T, class string, seed uint64, opts clusterOptions) *faultRun {
	t.Helper()
	r := &faultRun{class: class, seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), count: newCounter(t), began: time.Now()}
	opts.seed = seed
	opts.args = append(opts.args, "--demo=false")
	opts.servers = func(name string) string { return r.count.servers(t, manyServer, ownServer(name)) }
	r.cluster = startCluster(t, opts)
	r.first = r.members
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
				r.early = append(r.early, fmt.Sprintf("ready and yet: %s; it took %s more", problem, r.until(m, to)))
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
	late = append(late, r.early...)
	o.Late = late
	o.starved()
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
	for i, m := range r.first {
		wantWrites = append(wantWrites, kindPut+" "+m.name+">registry")
		wantCalls = append(wantCalls, kindHTTP+" "+m.name+">"+manyServer,
			kindHTTP+" "+m.name+">"+ownServer(r.first[(i+1)%len(r.first)].name))
		for _, s := range append([]string{manyServer}, ownServers(r.first)...) {
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

func isCall(op lab.Op) bool {
	return op.Kind == kindNATS || op.Kind == kindHTTP || op.Kind == kindStdio
}
func isWrite(op lab.Op) bool { return op.Kind == kindPut }

// judge measures each window and holds it against its bounds. Under the race
// detector a node is several times slower: what it takes is only published.
func (r *faultRun) judge(ops []lab.Op) (late, wrong []string) {
	for _, w := range r.windows[:len(r.windows)-1] {
		w.measure(ops)
		if os.Getenv("RIPSTOP_E2E_RACE") != "" {
			w.bounds.calls, w.bounds.writes = 0, 0
		}
		w.bounds = w.bounds.slackened()
		if b := w.bounds.calls; b > 0 && w.Calls > b {
			late = append(late, fmt.Sprintf("%s at %s: calls to servers on living nodes failed or were silent for %s, want less than %s (%s)", w.Name, w.At.Round(time.Millisecond), w.Calls.Round(time.Millisecond), b, w.Worst))
		}
		if b := w.bounds.writes; b > 0 && w.Writes > b {
			late = append(late, fmt.Sprintf("%s at %s: registrations at living nodes were silent for %s, want less than %s", w.Name, w.At.Round(time.Millisecond), w.Writes.Round(time.Millisecond), b))
		}
		if b := w.bounds.failed; b >= 0 && w.Failed > b {
			late = append(late, fmt.Sprintf("%s at %s: %d calls failed, want %d: %q", w.Name, w.At.Round(time.Millisecond), w.Failed, b, w.Which))
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

// Nothing is known of the machine that runs CI: there a bound finds what is
// broken, not what is slow. The full suite takes each promise at its word.
const (
	slackTimes  = 3
	slackFailed = 5
)

func (b bounds) slackened() bounds {
	if full() {
		return b
	}
	b.calls, b.writes = slackTimes*b.calls, slackTimes*b.writes
	if b.failed >= 0 {
		b.failed += slackFailed
	}
	return b
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
		failed, lasted := lab.Failures(stream, w.At, w.Until)
		w.Failed += len(failed)
		for _, op := range failed[:min(len(failed), someFailed-min(len(w.Which), someFailed))] {
			w.Which = append(w.Which, fmt.Sprintf("%s at %s, for %s: %s, %s", op.ID, op.Call.Round(time.Millisecond), (op.Return-op.Call).Round(time.Millisecond), op.Outcome, op.Err))
		}
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
