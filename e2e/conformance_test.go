package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ripstop/fabric/addrtest"
)

// startEverything runs the official Go SDK's conformance fixture.
func startEverything(t testing.TB, stateless bool) (url string) {
	t.Helper()
	addr := addrtest.Reserve(t)
	start(t, everything(t), "-http="+addr, fmt.Sprintf("-stateless=%v", stateless))
	eventually(t, 10*time.Second, func() string {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
	return "http://" + addr
}

// attach runs `ripstop serve` for url and waits until the server is probed.
func (n *node) attach(t testing.TB, name string, args ...string) *process {
	t.Helper()
	p := start(t, ripstop(t), append([]string{"serve", name, "--nats", n.nats}, args...)...)
	p.expect(t, "Attached as instance", 20*time.Second)
	n.probed(t, name)
	return p
}

func (n *node) probed(t testing.TB, name string) {
	t.Helper()
	eventually(t, 60*time.Second, func() string {
		list := decode[[]struct {
			Server string
			Eras   []string
		}](t, n.cli(t, "ls", "instances", "-o", "json").ok(t).out)
		for _, i := range list {
			if i.Server == name && len(i.Eras) > 0 {
				return ""
			}
		}
		return name + " is not probed"
	})
}

// suites are the official conformance suites, each with the fixture it is for.
var suites = []struct {
	name      string
	pkg       string
	args      []string
	stateless bool
	total     string // what the fixture gives directly
}{
	{"0.1 all", "conformance-0.1", []string{"--suite", "all"}, false, "44 passed, 0 failed"},
	{"0.2 2025-11-25", "conformance-0.2", []string{"--requirements", "2025-11-25"}, false, "82 passed, 0 failed"},
	// The 30 are unscored checks of the Tasks extension, which the fixture does not offer.
	{"0.2 2026-07-28", "conformance-0.2", []string{"--requirements", "2026-07-28"}, true, "165 passed, 30 failed"},
}

var (
	scenarioLine = regexp.MustCompile(`(?m)^[✓✗] \S+: \d+ passed, \d+ failed`)
	totalLine    = regexp.MustCompile(`(?m)^Total: (.*)$`)
)

// conformance runs a suite and returns its lines, one a scenario, and its total.
func conformance(t testing.TB, pkg, url string, args []string) (lines, total, output string) {
	t.Helper()
	nodejs, full, _ := suiteCommand(t, pkg, url, args)
	r := run(t, 3*time.Minute, "", nodejs, full...)
	m := totalLine.FindStringSubmatch(r.out + r.err)
	if m == nil {
		t.Fatalf("no total in\n%s%s", r.out, r.err)
	}
	return strings.Join(scenarioLine.FindAllString(r.out+r.err, -1), "\n"), m[1], r.out + r.err
}

// suiteCommand is how a suite is run, and where it puts its results.
func suiteCommand(t testing.TB, pkg, url string, args []string) (nodejs string, full []string, results string) {
	t.Helper()
	dir, nodejs := peers(t)
	results = t.TempDir()
	return nodejs, append([]string{filepath.Join(dir, "node_modules", pkg, "dist/index.js"), "server", "--url", url, "-o", results}, args...), results
}

// TestConformance: through the fabric the suites give what they give directly.
func TestConformance(t *testing.T) {
	peers(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			url := startEverything(t, s.stateless)
			lines, total, _ := conformance(t, s.pkg, url, s.args)
			if total != s.total {
				t.Fatalf("directly: %s, want %s: the fixture is not what it was", total, s.total)
			}
			n := startNode(t, "--demo=false", "--servers", serversFile(t, fmt.Sprintf(`{"mcpServers":{"node":{"url":%q}}}`, url)))
			n.attach(t, "served", "--url", url)
			n.probed(t, "node")
			for _, server := range []string{"node", "served"} {
				got, sum, out := conformance(t, s.pkg, n.http+"/mcp/"+server, s.args)
				t.Logf("%s: %s", server, sum)
				if got != lines || sum != total {
					t.Errorf("through /mcp/%s:\n%s\n%s\ndirectly:\n%s\n%s\n%s", server, got, sum, lines, total, out)
				}
			}
		})
	}
}
