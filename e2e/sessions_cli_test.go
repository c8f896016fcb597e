package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// row is a session, as `ripstop ls sessions -o json` prints it.
type row struct {
	ID, Server, Instance, Node, Client, State, Replication, Cause string
	Epoch                                                         uint64
}

func (n *node) sessionRow(t testing.TB, id string) row {
	t.Helper()
	return decode[row](t, n.cli(t, "session", "show", id, "-o", "json").ok(t).out)
}

// tool calls a tool in a session and returns the body and how long it took.
func (n *node) tool(t testing.TB, server, id, name, args string) (string, time.Duration) {
	t.Helper()
	began := time.Now()
	a := n.do(t, "POST", "/mcp/"+server, callBody(7, name, args), "Mcp-Session-Id", id)
	if a.status != 200 {
		t.Fatalf("%s of %s: %d %s", name, server, a.status, a.body)
	}
	return a.body, time.Since(began)
}

// complete is what a shell asks when a user presses Tab.
func (n *node) complete(t testing.TB, words ...string) result {
	t.Helper()
	return run(t, 20*time.Second, "", ripstop(t), append([]string{"__complete"}, words...)...)
}

func has(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in %s", p, text)
		}
	}
}

// TestSessionsCLI looks after sessions with nothing but the commands.
func TestSessionsCLI(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	n := startNode(t, "--data-dir", data, "--name", "n1")
	n.cli(t, "ls", "sessions").ok(t).says(t, "no session is open")
	attach := func() (*process, string) {
		p := start(t, ripstop(t), "serve", "every", "--nats", n.nats, "--", everything(t))
		words := strings.Fields(p.expect(t, "Attached as instance", 20*time.Second))
		return p, strings.TrimSuffix(words[3], ".")
	}
	first, firstID := attach()
	demo, every := n.session(t, "demo"), n.session(t, "every")
	n.tool(t, "demo", demo, "remember", `{"key":"k","value":"v"}`)

	n.cli(t, "ls", "sessions").ok(t).says(t, demo, every, firstID, "active", "synced", "e2e 1", "n1")
	if list := decode[[]row](t, n.cli(t, "ls", "sessions", "--server", "every", "-o", "json").ok(t).out); len(list) != 1 || list[0].ID != every || list[0].Instance != firstID || list[0].Epoch != 1 {
		t.Errorf("sessions of every: %+v", list)
	}
	n.cli(t, "ls", "sessions", "--node", "other").ok(t).says(t, "no such session")
	n.cli(t, "ls", "sessions", "--principal", "alice").ok(t).says(t, "no such session")
	n.cli(t, "ls", "nodes", "--principal", "alice").fails(t, 2, "--principal tell sessions apart")
	n.cli(t, "ls", "session").fails(t, 2, `did you mean "sessions"?`)
	n.cli(t, "session", "show", demo).ok(t).says(t, "1 keys", "=k", "reinitialize", "e2e 1", "last used")
	n.cli(t, "session", "show", "none").fails(t, 4, "no session has the id")
	n.cli(t, "session", "move", every).fails(t, 8, `server "every" has no other instance`)
	n.cli(t, "session", "move").fails(t, 2, "ID is missing")
	n.complete(t, "session", "show", "--nats", n.nats, demo[:4]).ok(t).says(t, demo)
	n.cli(t, "status").ok(t).says(t, "2 sessions")

	second, secondID := attach()
	n.complete(t, "session", "move", "--nats", n.nats, every, "--to", "").ok(t).says(t, secondID)
	n.cli(t, "session", "move", every, "--to", "nobody").fails(t, 4, `no instance "nobody"`)
	n.cli(t, "session", "move", every, "--to", firstID).fails(t, 8, "already")
	nc, err := nats.Connect(n.nats, nats.UserInfo("operator", "operator"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	events, err := nc.SubscribeSync("ripstop.v1.events.session_moved")
	if err != nil || nc.Flush() != nil {
		t.Fatal("not subscribed", err)
	}
	n.cli(t, "session", "move", every, "--to", secondID).ok(t).says(t, secondID, "epoch 2")
	if e, err := events.NextMsg(5 * time.Second); err != nil {
		t.Error("no event of the move:", err)
	} else {
		has(t, string(e.Data), `"session":"`+every, `"from":"`+firstID, `"to":"`+secondID, `"cause":"operator"`, `"observer":"n1"`)
	}
	body, _ := n.tool(t, "every", every, "test_simple_text", `{}`)
	has(t, body, `"ripstop/reinitialized":{"cause":"operator","epoch":2}`)
	if r := n.sessionRow(t, every); r.Instance != secondID || r.Epoch != 2 || r.Cause != "operator" || r.State != "active" {
		t.Errorf("after the move: %+v", r)
	}

	// An instance that is told to stop hands its session on.
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := second.exit(t, 20*time.Second); code != 0 {
		t.Errorf("serve exits %d", code)
	}
	body, took := n.tool(t, "every", every, "test_simple_text", `{}`)
	has(t, body, `"cause":"drain","epoch":3`)
	t.Logf("first call after the instance has stopped: %s, a new server process in it", took)

	// One that is killed leaves it, for whoever comes.
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() string {
		if r := n.sessionRow(t, every); r.State != "waiting" {
			return "state " + r.State
		}
		return ""
	})
	n.cli(t, "admin", "validate-sessions").ok(t).says(t, firstID, "is gone", "2 sessions")
	n.cli(t, "admin", "validate-sessions", "--repair").ok(t).says(t, "has no other")
	_, thirdID := attach()
	n.cli(t, "admin", "validate-sessions", "--repair").ok(t).says(t, "it was moved to instance "+thirdID, "yes")
	n.cli(t, "admin", "validate-sessions").ok(t).says(t, "2 sessions, 0 findings")
	n.tool(t, "every", every, "test_simple_text", `{}`)

	n.cli(t, "session", "end", every).ok(t).says(t, "has ended")
	if a := n.do(t, "POST", "/mcp/every", callBody(1, "test_simple_text", `{}`), "Mcp-Session-Id", every); a.status != 404 {
		t.Errorf("in a session that was ended: %d %s", a.status, a.body)
	}
	n.cli(t, "session", "end", every).fails(t, 4, "no session has the id")

	// What was remembered outlives the node's process.
	if code := n.stop(t); code != 0 {
		t.Errorf("node exits %d", code)
	}
	n = startNode(t, "--data-dir", data, "--name", "n1")
	body, _ = n.tool(t, "demo", demo, "recall", `{"key":"k"}`)
	has(t, body, `"value":"v"`, "ripstop/reinitialized")
	n.cli(t, "session", "end", demo).ok(t)
}

// TestLimits: a server that has all the sessions or calls it may have says so.
func TestLimits(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "mcp.json")
	content := `{"mcpServers":{"few":{"command":` + strconv.Quote(everything(t)) + `,"maxSessions":1,"maxCalls":2}}}`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, "--servers", file)
	p := start(t, ripstop(t), "serve", "lim", "--nats", n.nats, "--url", n.http+"/mcp/demo", "--max-sessions", "2", "--max-calls", "1")
	p.expect(t, "Attached as instance", 20*time.Second)
	n.cli(t, "serve", "lim", "--url", n.http, "--max-calls", "-1").fails(t, 2, "neither may be negative")

	full := func(a answer, said string) {
		t.Helper()
		if a.status != 429 || a.header.Get("Retry-After") == "" {
			t.Errorf("status %d, headers %v", a.status, a.header)
		}
		has(t, a.body, `"code":-32014`, said)
	}
	n.session(t, "few")
	full(n.do(t, "POST", "/mcp/few", initialize), "sessions")
	id := n.session(t, "lim")
	other := n.session(t, "lim")
	full(n.do(t, "POST", "/mcp/lim", initialize), "2 sessions, its limit")
	if a := n.do(t, "DELETE", "/mcp/lim", "", "Mcp-Session-Id", other); a.status/100 != 2 {
		t.Errorf("end: %d %s", a.status, a.body)
	}
	n.session(t, "lim") // there is room again

	done := make(chan answer, 1)
	go func() {
		done <- n.do(t, "POST", "/mcp/lim", callBody(1, "count", `{"to":20,"delay_ms":500}`), "Mcp-Session-Id", id)
	}()
	eventually(t, 10*time.Second, func() string {
		if d := decode[inUse](t, n.cli(t, "session", "show", id, "-o", "json").ok(t).out); d.Use.InFlight != 1 {
			return "the call is not in flight"
		}
		return ""
	})
	full(n.do(t, "POST", "/mcp/lim", callBody(2, "echo", `{"text":"x"}`), "Mcp-Session-Id", id), "1 calls in flight, its limit")
	has(t, (<-done).body, `"counted":20`)
	n.tool(t, "lim", id, "echo", `{"text":"x"}`)
}

type inUse struct {
	Use struct {
		InFlight int `json:"in_flight"`
	} `json:"use"`
}
