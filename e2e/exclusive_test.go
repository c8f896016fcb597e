package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestExclusiveServe: one of three agents has the name, the second is told who,
// the third takes over when the first is killed.
func TestExclusiveServe(t *testing.T) {
	n := startNode(t)
	args := []string{"serve", "ledger", "--nats", n.nats, "--url", n.http + "/mcp/demo", "--exclusive"}
	first := start(t, ripstop(t), args...)
	line := first.expect(t, "Attached as instance", 5*time.Second)
	id := strings.TrimSuffix(strings.Fields(line)[3], ".")
	r := run(t, 10*time.Second, "", ripstop(t), args...)
	if r.code != 1 {
		t.Errorf("the second: exit %d, want 1", r.code)
	}
	r.says(t, "already registered", id, "ripstop ls instances")
	standby := start(t, ripstop(t), append(args, "--standby")...)
	eventually(t, 5*time.Second, func() string {
		if !strings.Contains(standby.stderr.String(), "standing by") {
			return "does not stand by: " + standby.stderr.String()
		}
		return ""
	})
	n.cli(t, "call", "ledger", "echo", "text=first").ok(t).says(t, "first")
	first.cmd.Process.Kill()
	killed := time.Now()
	standby.expect(t, "Attached as instance", 5*time.Second)
	if took := time.Since(killed); took > time.Second {
		t.Errorf("taken over after %s, want under 1 s", took)
	}
	n.cli(t, "call", "ledger", "echo", "text=second").ok(t).says(t, "second")
	if code := standby.stop(t); code != 0 {
		t.Errorf("exit %d after SIGTERM\n%s", code, standby.stderr)
	}
	n.cli(t, "serve", "x", "--standby", "--url", n.http).fails(t, 2, "--standby goes with --exclusive")
	n.cli(t, "serve", "x", "--scope", "moon", "--url", n.http).fails(t, 2, "--scope")
	n.cli(t, "serve", "x", "--scope", "local", "--exclusive", "--url", n.http).fails(t, 2, "--exclusive concerns the whole cluster")
}

// fails checks the exit code and what was said.
func (r result) fails(t testing.TB, code int, text string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit %d, want %d", r.code, code)
	}
	r.says(t, text)
}

// TestLocalServe: a local server is this node's, and in no bucket.
func TestLocalServe(t *testing.T) {
	n := startNode(t)
	start(t, ripstop(t), "serve", "mine", "--nats", n.nats, "--url", n.http+"/mcp/demo", "--scope", "local").expect(t, "Attached as instance", 5*time.Second)
	n.cli(t, "ls").ok(t).says(t, "mine")
	if a := n.do(t, "POST", "/mcp/mine", initialize); a.status != 200 {
		t.Errorf("initialize: %d %s", a.status, a.body)
	}
}
