package e2e

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// faultClass is one kind of fault: a schedule drawn from a seed.
type faultClass struct {
	name string
	opts clusterOptions
	run  func(r *faultRun)

	sessions func(r *sessionRun) // instead of opts and run
}

var faultClasses = []faultClass{
	{name: "kill-leader", opts: clusterOptions{nodes: 3}, run: func(r *faultRun) {
		for range 3 {
			r.killAndBack(r.leader(), "kill -9 leader")
		}
	}},
	{name: "kill-follower", opts: clusterOptions{nodes: 3}, run: func(r *faultRun) {
		for range 2 {
			r.killAndBack(r.pick(r.others(r.leader())), "kill -9 follower")
		}
	}},
	{name: "stop", opts: clusterOptions{nodes: 3}, run: func(r *faultRun) {
		r.stopAndBack(r.leader(), "SIGTERM leader")
		r.stopAndBack(r.pick(r.others(r.leader())), "SIGTERM follower")
	}},
	{name: "rolling", opts: clusterOptions{nodes: 3}, run: func(r *faultRun) {
		for _, i := range r.rng.Perm(len(r.members)) {
			r.stopAndBack(r.members[i], "rolling restart")
		}
	}},
	{name: "hang", opts: clusterOptions{nodes: 3}, run: func(r *faultRun) {
		r.hang(r.leader(), "SIGSTOP leader")
		r.hang(r.pick(r.others(r.leader())), "SIGSTOP follower")
	}},
	{name: "majority", opts: clusterOptions{nodes: 3}, run: majorityLost},
	{name: "all", opts: clusterOptions{nodes: 3}, run: allDown},
	{name: "cut", opts: clusterOptions{nodes: 3, netns: true}, run: cutOff},
	{name: "five", opts: clusterOptions{nodes: 5}, run: func(r *faultRun) {
		a := r.leader()
		b := r.pick(r.others(a))
		// Who is to campaign at once may be dead too: an election may have to do.
		r.fault(bounds{calls: time.Second, writes: 1500 * time.Millisecond, failed: -1}, "kill -9 leader "+a.name+" and "+b.name, a, b)
		r.kill(a)
		r.kill(b)
		r.hold(r.between(time.Second, 2*time.Second))
		r.back(graceful, a, b)
		r.hold(time.Second)
	}},
	{name: "slow", opts: clusterOptions{nodes: 3, proxied: true}, run: slowLinks},
	{name: "join", opts: clusterOptions{nodes: 3}, run: joinAndLeave},
	{name: "sessions", sessions: runSessions},
}

// play runs the class once, up to its last fault. finish then says what came of
// it, and end ends what is left, if it is to be run again.
func (class faultClass) play(t *testing.T, seed uint64) (r *faultRun, finish func() (*outcome, []lab.Op), end func()) {
	t.Helper()
	if class.sessions != nil {
		r := newSessionRun(t, class.name, seed)
		class.sessions(r)
		return r.faultRun, r.finish, r.close
	}
	r = newRun(t, class.name, seed, class.opts)
	class.run(r)
	return r, r.finish, r.close
}

// tries is how often a run is repeated whose only fault is that the machine was
// too busy to measure anything.
const tries = 2

// TestFaults runs each class of fault on real processes under load, and checks
// what was promised. Each run prints one line.
func TestFaults(t *testing.T) {
	if !all() {
		t.Skip("takes minutes; run it with RIPSTOP_E2E=all go test -run TestFaults ./e2e, or all seeds with: task e2e:full")
	}
	for _, class := range slices.Concat(faultClasses, changeClasses) {
		for _, seed := range seeds(t) {
			t.Run(fmt.Sprintf("%s/seed=%d", class.name, seed), func(t *testing.T) {
				if o, err := recorded(class.name, seed); err != nil {
					t.Fatal(err)
				} else if o != nil && full() {
					t.Log("\n" + o.line() + " (recorded)")
					if !o.Passed {
						t.Errorf("failed before: %q %s; remove %s to repeat it", o.Problems, o.Invalid, resultPath(os.Getenv("RIPSTOP_E2E_RESULTS"), class.name, seed))
					}
					return
				}
				for try := 1; ; try++ {
					r, finish, end := class.play(t, seed)
					o, ops := finish()
					if again := o.Starved != "" || len(o.Late) > 0 && !full(); !again || len(o.Problems) > 0 || try == tries {
						r.publish(o, ops)
						return
					}
					t.Logf("not counted: %s %q\n%s", o.Starved, o.Late, o.line())
					end()
				}
			})
		}
	}
}

func (r *faultRun) killAndBack(m *member, what string) {
	r.fault(killed, what+" "+m.name, m)
	r.kill(m)
	r.hold(r.between(time.Second, 3*time.Second))
	r.back(graceful, m)
	r.hold(time.Second)
}

func (r *faultRun) stopAndBack(m *member, what string) {
	r.fault(graceful, what+" "+m.name, m)
	r.stop(m)
	r.hold(r.between(time.Second/2, 2*time.Second))
	r.back(graceful, m)
	r.hold(time.Second)
}

// pauses are how long a process stands still.
func (r *faultRun) pause15() time.Duration {
	if full() {
		return []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, 60 * time.Second}[r.rng.IntN(4)]
	}
	return r.between(2*time.Second, 4*time.Second)
}

func (r *faultRun) hang(m *member, what string) {
	long := r.pause15()
	r.fault(hung, fmt.Sprintf("%s %s for %s", what, m.name, long.Round(time.Millisecond)), m)
	r.pause(m)
	r.hold(long)
	r.fault(hung, "SIGCONT "+m.name, m)
	r.resume(m)
	r.current(m)
	r.hold(time.Second)
}

// majorityLost: one of three can't acknowledge anything, and goes on serving.
func majorityLost(r *faultRun) {
	alone := r.pick(r.members)
	dead := r.others(alone)
	r.fault(bounds{calls: time.Second, failed: -1}, "kill -9 all but "+alone.name, dead...)
	for _, m := range dead {
		r.kill(m)
	}
	r.silent(alone)
	r.hold(r.between(2*time.Second, 4*time.Second))
	r.back(bounds{calls: time.Second}, dead...)
	r.hold(time.Second)
}

// allDown: every node ends, by kill -9 or gracefully, and all come back.
func allDown(r *faultRun) {
	how, sig := "kill -9", syscall.SIGKILL
	if r.seed%2 == 0 {
		how, sig = "SIGTERM", syscall.SIGTERM
	}
	r.fault(anything, how+" all", r.members...)
	for _, m := range r.members {
		m.up = false
		r.signal(m, sig)
	}
	begin := time.Now()
	for _, m := range r.members {
		if code := m.p.exit(r.t, 40*time.Second); sig == syscall.SIGTERM && code != 0 {
			r.t.Errorf("node %s: exit %d after SIGTERM", m.name, code)
		}
		r.t.Logf("%s ended %s after %s", m.name, time.Since(begin).Round(time.Millisecond), how)
	}
	r.hold(time.Second)
	r.back(anything, r.members...)
	r.fault(anything, "all are back")
	r.hold(2 * time.Second)
}

// cutOff: the leader, or a follower, loses the network to the others, or half
// of it, without anyone being told.
func cutOff(r *faultRun) {
	lead := r.leader()
	for _, way := range []string{"both ways", "outward"} {
		m := lead
		if r.rng.IntN(3) == 0 {
			m = r.pick(r.others(lead))
		}
		b := hung
		if way != "both ways" {
			b.writes = 0 // who hears whom decides; only the invariants hold
		}
		long := r.between(3*time.Second, 6*time.Second)
		r.fault(b, fmt.Sprintf("cut %s off, %s, for %s", m.name, way, long.Round(time.Millisecond)), m)
		for _, other := range r.others(m) {
			r.must(r.net.Cut(m.host, other.host))
			if way == "both ways" {
				r.must(r.net.Cut(other.host, m.host))
			}
		}
		r.silent(m)
		r.hold(long)
		r.fault(b, "heal", m)
		r.must(r.net.Heal())
		r.current(m)
		r.hold(time.Second)
		lead = r.leader()
	}
}

func (r *faultRun) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// slowLinks: routes are slow, then very slow, then one node's are held up.
func slowLinks(r *faultRun) {
	r.fault(anything, "5±5 ms each way")
	for _, p := range r.proxies {
		p.Set(lab.Link{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond})
	}
	r.hold(2 * time.Second)
	r.fault(anything, "20±10 ms each way, 1 % of chunks 300 ms")
	for _, p := range r.proxies {
		p.Set(lab.Link{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Stalls: 0.01, StallFor: 300 * time.Millisecond})
	}
	r.hold(3 * time.Second)
	for _, p := range r.proxies {
		p.Set(lab.Link{})
	}
	i := r.rng.IntN(len(r.proxies))
	r.fault(anything, "routes into "+r.members[i].name+" held up for 3s")
	r.proxies[i].Set(lab.Link{Stopped: true})
	r.hold(3 * time.Second)
	r.fault(anything, "heal")
	r.proxies[i].Set(lab.Link{})
	r.current(r.members...)
	r.hold(time.Second)
}

// joinAndLeave: two relays join under load, and leave for good. No call fails.
func joinAndLeave(r *faultRun) {
	for _, name := range []string{"n4", "n5"} {
		r.fault(none, "join "+name)
		m := r.join(name)
		r.hold(time.Second)
		for _, target := range []string{manyServer, ownServer("n1"), ownServer(name)} {
			out := m.node().cli(r.t, "call", target, "work", fmt.Sprintf("id=join-%s-%s", name, target)).ok(r.t)
			out.says(r.t, "did join-"+name)
		}
	}
	m := r.byName("n5")
	r.fault(none, "SIGTERM n5", m)
	r.stop(m)
	r.members = r.others(m)
	out := r.members[0].node().cli(r.t, "admin", "remove-node", "n5", "--yes")
	if operatorServed(r.t, out) {
		out.ok(r.t)
	}
	r.hold(2 * time.Second)
}
