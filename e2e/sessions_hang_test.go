package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hungMost is the longest that a client may wait for an answer when the agent of
// its session, or the agent's node, has just begun to hang.
const hungMost = 3 * time.Second

// within allows d where the test has the machine for itself, and much more beside
// the tests of other packages.
func within(d time.Duration) time.Duration {
	if all() {
		return d
	}
	return d + 10*time.Second
}

// hangLab is a server with two agents.
type hangLab struct {
	*node
	state  stateful
	agents []*process
}

func newHangLab(t testing.TB) *hangLab {
	t.Helper()
	l := &hangLab{node: startNode(t, "--demo=false"), state: newStateful(t)}
	for range 2 {
		p := start(t, ripstop(t), append([]string{"serve", "state", "--nats", l.nats}, l.state.command(t)...)...)
		p.expect(t, "Attached as instance", 10*time.Second)
		l.agents = append(l.agents, p)
	}
	return l
}

// workAnswer is what a call of the stateful server says.
type workAnswer struct {
	Result struct {
		Structured struct {
			Process string `json:"process"`
		} `json:"structuredContent"`
		Meta map[string]json.RawMessage `json:"_meta"`
	} `json:"result"`
	Error struct {
		Code    int             `json:"code"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	} `json:"error"`
}

// hang stops the agent whose child a process is, until the test says otherwise.
func (l *hangLab) hang(t testing.TB, process string) (resume func()) {
	t.Helper()
	var child int
	fmt.Sscanf(process, "%d", &child)
	i := slices.IndexFunc(l.agents, func(p *agentProcess) bool { return slices.Contains(childrenOf(t, p.cmd.Process.Pid), child) })
	if i < 0 {
		t.Fatalf("process %q belongs to no agent", process)
	}
	pid := l.agents[i].cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = func() { syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(resume)
	return resume
}

// agentProcess is a process, where a parameter has that name.
type agentProcess = process

// caller makes calls in a session: over HTTP, or through `ripstop connect`.
type caller func(t testing.TB, id, tool string) (workAnswer, time.Duration)

func (l *hangLab) overHTTP(t testing.TB) caller {
	return l.inSession(l.session(t, "state"))
}

// inSession calls in a session over HTTP.
func (n *node) inSession(session string) caller {
	return func(t testing.TB, id, tool string) (workAnswer, time.Duration) {
		t.Helper()
		began := time.Now()
		a := n.do(t, "POST", "/mcp/state", callBody(1, tool, fmt.Sprintf(`{"id":%q}`, id)), "Mcp-Session-Id", session)
		return decode[workAnswer](t, a.json()), time.Since(began)
	}
}

// json is the answer's last message, if it came as an event stream.
func (a answer) json() string {
	i := strings.LastIndex(a.body, "data: {")
	if i < 0 {
		return a.body
	}
	return strings.TrimSpace(a.body[i+len("data: "):])
}

func (l *hangLab) overConnect(t testing.TB) caller {
	w := newStdioWay(t, "state", []string{l.nats})
	return func(t testing.TB, id, tool string) (workAnswer, time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		body := strings.Replace(callBody(1, tool, fmt.Sprintf(`{"id":%q}`, id)), `"id":1,`, fmt.Sprintf(`"id":%q,`, id), 1)
		line, err := w.ask(ctx, id, body)
		if err != nil {
			t.Fatal(err)
		}
		return decode[workAnswer](t, line), time.Since(began)
	}
}

// TestHungAgent: an agent that is stopped keeps its connection. Its sessions go
// on elsewhere within 3 s; when it goes on, it has lost them, and executes nothing
// that was executed elsewhere.
func TestHungAgent(t *testing.T) {
	for name, open := range map[string]func(*hangLab, testing.TB) caller{
		"http": (*hangLab).overHTTP, "connect": (*hangLab).overConnect,
	} {
		for _, tool := range []string{"again", "work"} {
			t.Run(name+" "+tool, func(t *testing.T) {
				t.Parallel()
				l := newHangLab(t)
				hungAgent(t, l, open(l, t), tool)
			})
		}
	}
}

func hungAgent(t *testing.T, l *hangLab, call caller, tool string) {
	first, _ := call(t, "a", tool)
	owner := first.Result.Structured.Process
	resume := l.hang(t, owner)
	at := time.Now()

	second, took := call(t, "b", tool)
	t.Logf("the first answer after the agent hung came after %s", took.Round(time.Millisecond))
	if took > within(hungMost) {
		t.Errorf("that is more than %s", hungMost)
	}
	switch repeated := second.Result.Structured.Process; {
	case tool == "again" && (repeated == "" || repeated == owner):
		t.Errorf("a call that may be repeated was not: %+v", second)
	case tool == "work" && second.Error.Code != -32013:
		t.Errorf("a call that must not be repeated: %+v", second)
	case tool == "work" && (!strings.Contains(string(second.Error.Data), `"alive":false`) || !strings.Contains(second.Error.Message, "never said")):
		t.Errorf("the error does not say what is known: %s %s", second.Error.Message, second.Error.Data)
	}

	third, took := call(t, "c", tool)
	if p := third.Result.Structured.Process; p == "" || p == owner || took > within(time.Second) {
		t.Errorf("the next call, after %s: %+v", took, third)
	}
	answers := []workAnswer{second, third}
	if !slices.ContainsFunc(answers, func(a workAnswer) bool { return a.Result.Meta["ripstop/reinitialized"] != nil }) {
		t.Errorf("no answer says that the session was reinitialized: %+v", answers)
	}

	resume()
	hung := time.Since(at)
	eventually(t, 10*time.Second, func() string {
		if out := l.cli(t, "ls", "instances", "-o", "json").out; strings.Count(out, `"server": "state"`)+strings.Count(out, `"server":"state"`) < 2 {
			return "the agent is not back: " + out
		}
		return ""
	})
	t.Logf("it hung for %s", hung.Round(time.Millisecond))
	last, took := call(t, "d", tool)
	if took > within(time.Second) {
		t.Errorf("a call after the agent came back took %s", took)
	}
	if p := last.Result.Structured.Process; p != third.Result.Structured.Process {
		t.Errorf("the session went to %q, and back to %q", third.Result.Structured.Process, p)
	}
	times := map[string]int{}
	for _, e := range l.state.executed(t) {
		if times[e.ID]++; times[e.ID] > 1 || e.Process == owner && e.ID != "a" {
			t.Errorf("%s was executed by %s, which had hung, or again: %v", e.ID, e.Process, l.state.executed(t))
		}
	}
}

// TestHungNode: a node stops, and with it the way to the agents that are connected
// to it. Other nodes' edges answer their sessions within 3 s, from elsewhere.
func TestHungNode(t *testing.T) {
	if !all() {
		t.Skip("set RIPSTOP_E2E=all")
	}
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"}})
	state := newStateful(t)
	for _, m := range c.members {
		p := start(t, ripstop(t), append([]string{"serve", "state", "--nats", "nats://" + m.nats}, state.command(t)...)...)
		p.expect(t, "Attached as instance", clusterTimeout)
	}
	leader := (&faultRun{cluster: c}).leader()
	victim := c.others(leader)[0]
	edge := c.others(victim, leader)[0].node()
	var calls []caller
	for range 5 {
		session := victim.node().session(t, "state")
		calls = append(calls, edge.inSession(session))
	}
	for i, call := range calls {
		eventually(t, 5*time.Second, func() string {
			if a, _ := call(t, fmt.Sprintf("a%d", i), "again"); a.Result.Structured.Process == "" {
				return a.Error.Message
			}
			return ""
		})
	}
	c.pause(victim)
	began := time.Now()
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			a, took := call(t, fmt.Sprintf("b%d", i), "again")
			if a.Result.Structured.Process == "" || a.Result.Meta["ripstop/reinitialized"] == nil || took > within(hungMost) {
				t.Errorf("after %s: %+v %s", took, a, a.Error.Data)
			}
		})
	}
	wg.Wait()
	t.Logf("%d sessions went on after %s", len(calls), time.Since(began).Round(time.Millisecond))
	c.resume(victim)
	c.awaitReady(victim)
	for i, call := range calls {
		if a, took := call(t, fmt.Sprintf("c%d", i), "again"); a.Result.Structured.Process == "" || took > within(time.Second) {
			t.Errorf("after the node came back, %s: %+v", took, a)
		}
	}
	times := map[string]int{}
	for _, e := range state.executed(t) {
		if times[e.ID]++; times[e.ID] > 1 && e.ID[0] != 'a' {
			t.Errorf("%s was executed twice: %v", e.ID, state.executed(t))
		}
	}
}
