package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric/admin"
)

// Classes of faults that are no faults: what an operator does to a cluster under
// load, and what he got wrong.
var changeClasses = []faultClass{
	{name: "remove-voter", opts: clusterOptions{nodes: 3}, run: removeVoter},
	{name: "evacuate", opts: clusterOptions{nodes: 3}, run: evacuateVoter},
	{name: "upgrade", opts: clusterOptions{nodes: 3, binary: olderBinary, builds: buildBoth}, run: func(r *faultRun) { r.roll(newerBinary) }},
	{name: "downgrade", opts: clusterOptions{nodes: 3, binary: newerBinary, builds: buildBoth}, run: func(r *faultRun) { r.roll(olderBinary) }},
	{name: "clock-fast", opts: clusterOptions{nodes: 3, builds: buildClock}, run: func(r *faultRun) { wrongClock(r, 5*time.Minute) }},
	{name: "clock-slow", opts: clusterOptions{nodes: 3, builds: buildClock}, run: func(r *faultRun) { wrongClock(r, -5*time.Minute) }},
}

// none is what a change costs that nobody should notice.
var none = bounds{calls: time.Second, writes: 250 * time.Millisecond}

// removeVoter: a voter is lost for good, a relay votes in its place, and the
// lost one is not let in again.
func removeVoter(r *faultRun) {
	relay := r.joinAs("n4")
	lost := r.pick(r.members[:3])
	r.fault(killed, "kill -9 "+lost.name, lost)
	r.kill(lost)
	r.hold(r.between(time.Second, 2*time.Second))
	r.removed(lost, relay)
	r.fault(none, "start "+lost.name+", which was removed", lost)
	r.start(lost)
	lost.up = false
	if code := lost.p.exit(r.t, clusterTimeout); code == 0 || !strings.Contains(lost.p.stderr.String(), "was removed from") {
		r.wrong = append(r.wrong, fmt.Sprintf("%s was removed, and started again: exit %d, %s", lost.name, code, tail(lost.p.stderr.String(), 3)))
	}
	r.complete(r.members[:3]...)
	eventually(r.t, clusterTimeout, func() string { return r.records(lost) })
	r.hold(time.Second)
}

// records says what the registry's bucket has of a node that is gone, or "". It
// is hidden at once, and taken out within seconds.
func (r *faultRun) records(gone *member) string {
	nc, err := r.operator(r.members[0])
	if err != nil {
		return err.Error()
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	bucket, err := js.KeyValue(ctx, strings.TrimPrefix(registryStream, "KV_"))
	if err != nil {
		return err.Error()
	}
	all, err := bucket.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return err.Error()
	}
	for {
		select {
		case <-ctx.Done():
			return "the bucket is not read to its end"
		case e := <-all.Updates():
			var record struct{ Node string }
			switch {
			case e == nil: // what comes from here on is new
				return ""
			case strings.HasPrefix(e.Key(), "_"):
			case json.Unmarshal(e.Value(), &record) != nil || record.Node == gone.name:
				return fmt.Sprintf("%s: %s", e.Key(), e.Value())
			}
		}
	}
}

// evacuateVoter: a voter that lives gives up its replicas, then its vote, in
// order.
func evacuateVoter(r *faultRun) {
	relay := r.joinAs("n4")
	leaves := r.leader()
	if r.rng.IntN(2) == 0 {
		leaves = r.pick(r.others(leaves, relay))
	}
	stay := r.others(leaves, relay)
	r.fault(none, "evacuate "+leaves.name)
	stay[0].node().cli(r.t, "admin", "evacuate", leaves.name, "--yes").ok(r.t).says(r.t, "move to other voters")
	leaves.voter = false // has no replica to be judged by
	r.complete(stay...)
	for _, m := range r.members {
		r.awaitReady(m)
	}
	r.hold(time.Second)
	r.fault(graceful, "SIGTERM "+leaves.name, leaves)
	r.stop(leaves)
	r.removed(leaves, relay)
	r.hold(time.Second)
}

// joinAs joins a relay under load.
func (r *faultRun) joinAs(name string, env ...string) *member {
	r.t.Helper()
	r.fault(none, "join "+name)
	m := r.join(name, env...)
	r.hold(time.Second)
	return m
}

// removed removes a voter for good, and waits until the relay that votes in its
// place has replicas of everything.
func (r *faultRun) removed(gone, relay *member) {
	r.t.Helper()
	r.members = r.others(gone)
	r.fault(graceful, "remove "+gone.name, gone)
	begin := time.Now()
	out := r.members[0].node().cli(r.t, "admin", "remove-node", gone.name, "--yes")
	out.ok(r.t).says(r.t, relay.name+" votes in its place", gone.name+" is removed")
	took := time.Since(begin)
	relay.voter = true
	r.complete(r.members...)
	r.awaitReady(relay)
	r.t.Logf("%s removed in %s; %s has replicas after %s", gone.name, took.Round(time.Millisecond), relay.name, time.Since(begin).Round(time.Millisecond))
	r.hold(time.Second)
}

// status asks m for the cluster's status, as `ripstop status -o json` prints it.
func (c *cluster) status(m *member) (admin.Status, error) {
	nc, err := c.operator(m)
	if err != nil {
		return admin.Status{}, err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return (&admin.Client{Conn: nc}).Status(ctx)
}

// awaitStatus waits until m's status is as judge wants it: it says what is
// wrong, or "".
func (c *cluster) awaitStatus(m *member, judge func(s admin.Status) string) {
	c.t.Helper()
	eventually(c.t, clusterTimeout, func() string {
		s, err := c.status(m)
		if err != nil {
			return err.Error()
		}
		return judge(s)
	})
}

// complete waits until these nodes, and no others, have current replicas of
// everything.
func (r *faultRun) complete(nodes ...*member) {
	r.t.Helper()
	var want []string
	for _, m := range nodes {
		want = append(want, m.name)
	}
	slices.Sort(want)
	r.awaitStatus(nodes[0], func(s admin.Status) string {
		streams := 0
		for _, g := range s.Groups {
			if g.Name == admin.MetaGroup {
				continue
			}
			streams++
			var have []string
			for _, p := range g.Replicas {
				if !p.Current || p.Offline || p.Lag > 0 {
					return fmt.Sprintf("%s on %s: %+v", g.Name, p.Node, p)
				}
				have = append(have, p.Node)
			}
			if slices.Sort(have); !slices.Equal(have, want) {
				return fmt.Sprintf("%s is on %v, want %v", g.Name, have, want)
			}
		}
		if streams < 2 {
			return fmt.Sprintf("%d streams, want those of the registry and of the roster", streams)
		}
		return ""
	})
}

// Two releases that follow each other: the newer one speaks another wire version
// besides.
func olderBinary(t testing.TB) string { return versionBinary(t, "v0.1.0", 1, 1) }
func newerBinary(t testing.TB) string { return versionBinary(t, "v0.2.0", 1, 2) }

func buildBoth(t testing.TB)  { olderBinary(t); newerBinary(t); ripstop(t) }
func buildClock(t testing.TB) { wrongClockBinary(t) }

// roll replaces every node's binary, one node at a time; agents of either
// version are served by nodes of both meanwhile.
func (r *faultRun) roll(to func(t testing.TB) string) {
	var urls []string
	for _, m := range r.members {
		urls = append(urls, "nats://"+m.nats)
	}
	for name, binary := range map[string]string{"of-old": olderBinary(r.t), "of-new": newerBinary(r.t)} {
		p := start(r.t, binary, append([]string{"serve", name, "--shared", "--nats", strings.Join(urls, ",")}, r.count.command(r.t)...)...)
		p.expect(r.t, "Attached as instance", 10*time.Second)
	}
	for i, at := range r.rng.Perm(len(r.members)) {
		m := r.members[at]
		r.fault(graceful, "replace "+m.name, m)
		r.stop(m)
		m.binary = to(r.t)
		r.back(graceful, m)
		for _, from := range r.members {
			for _, server := range []string{"of-old", "of-new"} {
				if problem := from.callHTTP(server, fmt.Sprintf("%s-%s-%d", server, from.name, i)); problem != "" {
					r.wrong = append(r.wrong, fmt.Sprintf("%d nodes replaced: %s", i+1, problem))
				}
			}
		}
		r.mixed(i + 1)
		r.hold(time.Second)
	}
}

// mixed checks that the status tells the nodes' versions apart as long as they
// differ.
func (r *faultRun) mixed(replaced int) {
	r.t.Helper()
	for _, m := range r.members {
		r.awaitStatus(m, func(s admin.Status) string {
			count := map[string]int{}
			for _, n := range s.Nodes {
				count[fmt.Sprint(n.Software, n.Wire)]++
				if n.State != "up" || n.Health != admin.Healthy {
					return fmt.Sprintf("%s: %s is %s, %s: %q", m.name, n.Name, n.State, n.Health, n.Reasons)
				}
			}
			said := fmt.Sprint(s.Problems)
			differ := strings.Contains(said, "nodes run different versions: v0.1.0 on ") && strings.Contains(said, "; v0.2.0 on ")
			if mixed := replaced < len(r.members); mixed != differ || mixed != (len(count) == 2) {
				return fmt.Sprintf("%d nodes replaced: %v, problems %q", replaced, count, said)
			}
			if len(count) == 2 && count["v0.1.0[1]"]+count["v0.2.0[1 2]"] != len(r.members) {
				return fmt.Sprintf("versions are %v", count)
			}
			return ""
		})
	}
}

// wrongClock: a voter's wall clock is wrong, and a relay's the other way round.
// The cluster goes on, led by the one with the wrong clock too, and says so.
func wrongClock(r *faultRun, off time.Duration) {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%s=%.0f", clockEnv, d.Seconds()) }
	wrong := r.pick(r.others(r.leader()))
	r.fault(graceful, "SIGTERM "+wrong.name, wrong)
	r.stop(wrong)
	wrong.binary, wrong.env = wrongClockBinary(r.t), []string{seconds(off)}
	r.back(graceful, wrong)
	r.opts.binary = wrongClockBinary
	relay := r.joinAs("n4", seconds(-off))
	r.current(relay)
	r.clocks(map[string]time.Duration{wrong.name: off, relay.name: -off})
	r.fault(graceful, "all leaders to "+wrong.name)
	first := r.leader()
	first.node().cli(r.t, "admin", "step-down", "--node", first.name, "--to", wrong.name).ok(r.t)
	eventually(r.t, clusterTimeout, func() string {
		if l := r.leader(); l != wrong {
			return l.name + " leads the registry"
		}
		return ""
	})
	r.hold(time.Second)
	r.fault(killed, "kill -9 "+wrong.name, wrong)
	r.kill(wrong)
	r.hold(time.Second)
	wrong.env = nil // somebody has set it right
	r.back(graceful, wrong)
	r.clocks(map[string]time.Duration{relay.name: -off})
}

// clocks checks that every node sees how far the others' clocks are off, as far
// as its own does not excuse them, and says so.
func (r *faultRun) clocks(off map[string]time.Duration) {
	r.t.Helper()
	for _, m := range r.members {
		r.awaitStatus(m, func(s admin.Status) string {
			for _, n := range s.Nodes {
				want := (off[n.Name] - off[m.name]).Seconds()
				said := strings.Join(n.Reasons, "; ")
				way := map[bool]string{true: "ahead of ours", false: "behind ours"}[want > 0]
				health := map[bool]string{true: admin.Healthy, false: admin.Degraded}[want == 0]
				if math.Abs(n.ClockSkew-want) > 2 || n.State != "up" || n.Health != health || want != 0 && !strings.Contains(said, way) {
					return fmt.Sprintf("%s says that %s is %s, %s, its clock off by %.1f s, want %.1f s; %q", m.name, n.Name, n.State, n.Health, n.ClockSkew, want, said)
				}
			}
			if s.Health != admin.Degraded || !s.Quorum {
				return fmt.Sprintf("%s says that the cluster is %s, quorum %v: %v", m.name, s.Health, s.Quorum, s.Problems)
			}
			return ""
		})
		if status, body := r.page(m, "/health"); status != http.StatusOK {
			r.wrong = append(r.wrong, fmt.Sprintf("/health of %s: %d %s", m.name, status, body))
		}
	}
	m := r.members[0]
	for name := range off {
		if name == m.name {
			continue
		}
		shown := m.node().cli(r.t, "status").ok(r.t).out // its wall clock may not be all that is wrong with it just now
		if !regexp.MustCompile(`(?m)^` + name + ` \(degraded\): .*its wall clock is .* check time synchronisation`).MatchString(shown) {
			r.t.Errorf("status does not show the clock of %s:\n%s", name, shown)
		}
		list := decode[[]admin.Node](r.t, m.node().cli(r.t, "ls", "nodes", "-o", "json").ok(r.t).out)
		if i := slices.IndexFunc(list, func(n admin.Node) bool { return n.Name == name }); i < 0 || math.Abs(list[i].ClockSkew-(off[name]-off[m.name]).Seconds()) > 2 {
			r.wrong = append(r.wrong, fmt.Sprintf("ls nodes at %s: %+v", m.name, list))
		}
		if _, text := r.page(m, "/metrics"); !strings.Contains(text, fmt.Sprintf("ripstop_node_clock_skew_seconds{node=%q}", name)) {
			r.wrong = append(r.wrong, "/metrics of "+m.name+" does not tell the clock of "+name)
		}
		break // one will do: commands cost time that the load wants
	}
}
