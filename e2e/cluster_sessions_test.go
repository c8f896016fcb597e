package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// Servers of the session tests, all with state in the memory of a process for
// each session.
const (
	keptServer   = "kept"   // three agents have it
	hostedServer = "hosted" // every node has it
	endingServer = "ending" // two agents have it; its sessions end with their process
)

// serveAgent is a `ripstop serve`, which is started again after it has ended.
type serveAgent struct {
	server string
	args   []string
	p      *process
	runs   int
}

// sessionRun is a faultRun whose load is probes, each with a session of its own.
type sessionRun struct {
	*faultRun
	state  stateful
	agents []*serveAgent
	probes []*probe
	hits   int // processes with a session that were ended
}

// newSessionRun starts a cluster, agents and probes.
func newSessionRun(t *testing.T, class string, seed uint64) *sessionRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	base := &faultRun{class: class, seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), began: time.Now()}
	base.load = &load{h: lab.NewHistory(), cancel: cancel, log: t.Logf}
	r := &sessionRun{faultRun: base, state: newStateful(t)}
	r.cluster = startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"},
		servers: func(string) string { return r.state.servers(t, hostedServer) }})
	r.first = r.members
	t.Cleanup(r.endAgents)
	for i, server := range []string{keptServer, endingServer, keptServer, endingServer, keptServer} {
		a := &serveAgent{server: server, args: []string{"serve", server, "--nats", strings.Join(r.urls("nats://", i), ",")}}
		if server == endingServer {
			a.args = append(a.args, "--on-move", "end")
		}
		a.args = append(a.args, r.state.command(t)...)
		r.agents = append(r.agents, a)
		r.startAgent(a)
	}
	r.addProbes(ctx, t)
	r.stall = lab.WatchStall(context.Background())
	t.Cleanup(func() { r.load.stop(); r.stall.Stop() })
	for i, p := range r.probes {
		p.run(ctx, time.Duration(i)*7*time.Millisecond)
	}
	r.cpu = lab.ReadCPU()
	r.hold(warmUp)
	return r
}

// urls are the nodes' addresses, beginning with the i-th's.
func (r *sessionRun) urls(scheme string, i int) []string {
	var out []string
	for k := range r.members {
		m := r.members[(i+k)%len(r.members)]
		if scheme == "http://" {
			out = append(out, scheme+m.http)
		} else {
			out = append(out, scheme+m.nats)
		}
	}
	return out
}

// addProbes opens a session with each server through each edge.
func (r *sessionRun) addProbes(ctx context.Context, t testing.TB) {
	t.Helper()
	for i, server := range []string{keptServer, hostedServer, endingServer} {
		for k, kind := range []string{kindHTTP, kindStdio, kindNATS} {
			p := &probe{kind: kind, name: kind + "-" + server, server: server, ends: server == endingServer, l: r.load}
			switch {
			case kind == kindHTTP:
				p.way = newHTTPWay(r.load, p.name, server, r.urls("http://", i+k))
			case p.ends:
				continue // these begin another session by themselves, or never do
			case kind == kindStdio:
				p.way = newStdioWay(t, server, r.urls("nats://", i+k))
			default:
				p.way = newNATSWay(ctx, t, r.load, p.name, server, r.urls("nats://", i+k))
			}
			n := 0
			eventually(t, clusterTimeout, func() string {
				n--
				ctx, cancel := context.WithTimeout(ctx, opTimeout)
				defer cancel()
				if p.call(ctx, n); p.pid() == 0 {
					return p.name + " has no session"
				}
				return ""
			})
			r.probes = append(r.probes, p)
		}
	}
}

func (r *sessionRun) startAgent(a *serveAgent) {
	r.t.Helper()
	a.p = launch(r.t, exec.Command(ripstop(r.t), a.args...))
	a.runs++
	a.p.expect(r.t, "Attached as instance", clusterTimeout)
}

func (r *sessionRun) endAgents() {
	for _, a := range r.agents {
		if a.p != nil {
			a.p.cmd.Process.Kill()
			<-a.p.done
			if r.t.Failed() {
				r.t.Logf("agent of %s: %s", a.server, tail(a.p.stderr.String(), 15))
			}
		}
	}
}

func (r *sessionRun) close() {
	r.endAgents()
	r.cluster.close()
}

// sessionFaults are what a session has to survive. Each ends with everything
// running again.
var sessionFaults = []func(r *sessionRun){
	func(r *sessionRun) { // a process, of each kind of server
		for _, server := range []string{keptServer, hostedServer, endingServer} {
			p := r.probeOf(server)
			r.fault(killed, "kill -9 process of "+p.name)
			r.end(p.pid(), syscall.SIGKILL)
			r.hold(r.between(time.Second, 1500*time.Millisecond))
		}
	},
	func(r *sessionRun) { r.agentDown(r.agentOf(r.probeOf(keptServer)), killed, syscall.SIGKILL) },
	func(r *sessionRun) { r.agentDown(r.agentOf(r.probeOf(endingServer)), killed, syscall.SIGKILL) },
	func(r *sessionRun) { r.agentDown(r.agentOf(r.probeOf(keptServer)), graceful, syscall.SIGTERM) },
	func(r *sessionRun) { r.nodeDown(r.nodeOf(r.probeOf(keptServer)), "the client's node", killed) },
	func(r *sessionRun) { r.nodeDown(r.leader(), "the leader", killed) },
	func(r *sessionRun) { r.nodeDown(r.nodeOf(r.probeOf(hostedServer)), "", graceful) },
}

// runSessions ends whatever a session needs, in an order drawn from the seed,
// once; in the full suite for ten minutes.
func runSessions(r *sessionRun) {
	for {
		for _, i := range r.rng.Perm(len(sessionFaults)) {
			sessionFaults[i](r)
		}
		if !full() || time.Since(r.began) > 10*time.Minute {
			return
		}
	}
}

// probeOf draws a probe of a server.
func (r *sessionRun) probeOf(server string) *probe {
	var of []*probe
	for _, p := range r.probes {
		if p.server == server {
			of = append(of, p)
		}
	}
	return of[r.rng.IntN(len(of))]
}

// agentOf is the agent that has the probe's session.
func (r *sessionRun) agentOf(p *probe) *serveAgent {
	r.t.Helper()
	var found *serveAgent
	eventually(r.t, clusterTimeout, func() string {
		for _, a := range r.agents {
			if a.server == p.server && slices.Contains(childrenOf(r.t, a.p.cmd.Process.Pid), p.pid()) {
				found = a
				return ""
			}
		}
		return fmt.Sprintf("no agent has process %d of %s", p.pid(), p.name)
	})
	return found
}

// nodeOf is the node that the HTTP client of the probe's server uses.
func (r *sessionRun) nodeOf(p *probe) *member {
	for _, other := range r.probes {
		if w, ok := other.way.(*httpWay); ok && other.server == p.server {
			return r.members[slices.IndexFunc(r.members, func(m *member) bool { return "http://"+m.http == w.url() })]
		}
	}
	return r.members[0]
}

func (r *sessionRun) end(pid int, sig syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		r.t.Fatalf("signal %s to the process of a session, %d: %v", sig, pid, err)
	}
	r.hits++
}

// agentDown ends an agent and starts another a while later.
func (r *sessionRun) agentDown(a *serveAgent, b bounds, sig syscall.Signal) {
	r.t.Helper()
	r.fault(b, fmt.Sprintf("%s agent of %s", sig, a.server))
	r.end(a.p.cmd.Process.Pid, sig)
	r.hold(r.between(time.Second, 2*time.Second))
	a.p.exit(r.t, 30*time.Second)
	if code := a.p.cmd.ProcessState.ExitCode(); sig == syscall.SIGTERM && code != 0 {
		r.wrong = append(r.wrong, fmt.Sprintf("agent of %s: exit %d after SIGTERM", a.server, code))
	}
	r.fault(graceful, "start agent of "+a.server)
	r.startAgent(a)
	r.hold(time.Second)
}

// nodeDown ends a node and starts it again a while later.
func (r *sessionRun) nodeDown(m *member, who string, b bounds) {
	r.t.Helper()
	if b == killed {
		r.fault(b, fmt.Sprintf("kill -9 %s, %s", m.name, who))
		r.kill(m)
	} else {
		r.fault(b, "SIGTERM "+m.name)
		r.stop(m)
	}
	r.hold(r.between(time.Second, 2*time.Second))
	r.fault(graceful, "start "+m.name)
	r.start(m)
	r.awaitReady(m)
	r.hold(time.Second)
}

// finish ends the load and checks everything.
func (r *sessionRun) finish() (*outcome, []lab.Op) {
	r.t.Helper()
	r.fault(anything, "end")
	ops := r.load.stop()
	ran := r.state.executed(r.t)
	count, replaced := map[string]int{}, 0
	for _, e := range ran {
		count[e.ID]++
	}
	var probes []lab.Probe
	var wanted []string
	for _, p := range r.probes {
		probes = append(probes, lab.Probe{Name: p.name, Ends: p.ends})
		wanted = append(wanted, p.kind+" "+p.name+">"+p.server)
		replaced += lab.Replaced(p.name, ops, ran)
	}
	o := &outcome{Class: r.class, Seed: r.seed, Counts: lab.Count(ops), Errors: lab.Errors(ops, 12), Stall: r.stall.Stop(), Executed: len(ran), Replaced: replaced}
	first := r.windows[0].At
	if err := lab.Floor(lab.Streams(ops, func(op lab.Op) string { return op.Target }), wanted, first-warmUp/2, first, callFloor); err != nil {
		o.Invalid = err.Error()
	} else if replaced < r.hits {
		o.Invalid = fmt.Sprintf("%d processes with sessions were ended, and sessions moved %d times only", r.hits, replaced)
	}
	o.Idle = lab.ReadCPU().IdleSince(r.cpu)
	late, wrong := r.judge(ops)
	o.Late = late
	o.starved()
	o.Problems = slices.Concat(r.wrong, wrong, lab.Executed(ops, count), lab.Sessions(probes, ops, ran))
	for _, w := range r.windows[:len(r.windows)-1] {
		o.Schedule = append(o.Schedule, *w)
	}
	if data, err := os.ReadFile(r.state.file); err == nil { // with the logs, if they are kept
		r.must(os.WriteFile(filepath.Join(r.dir, "executed.log"), data, 0o600))
	}
	return o, ops
}
