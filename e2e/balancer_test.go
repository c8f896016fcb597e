package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/fabric/addrtest"
)

// startBalancer runs haproxy in front of all nodes of a cluster: each request
// goes to the next node, whatever session it is of. A node that says it is not
// ready gets none, and what reached no node, or was refused by one that shuts
// down, goes to another.
func startBalancer(t testing.TB, c *cluster) (url string) {
	t.Helper()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		need(t, "needs haproxy (Debian: apt-get install haproxy)")
	}
	addr := addrtest.Reserve(t)
	text := fmt.Sprintf(`global
  maxconn 1000
  stats timeout 1s
defaults
  mode http
  timeout connect 1s
  timeout client 5m
  timeout server 5m
  option redispatch 1
  retries 3
  retry-on conn-failure 503
frontend all
  bind %s
  default_backend nodes
backend nodes
  balance roundrobin
  option httpchk GET /ready
  default-server check inter 100ms fall 3 rise 1
`, addr)
	for _, m := range c.members {
		text += fmt.Sprintf("  server %s %s\n", m.name, m.http)
	}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, haproxy, "-db", "-f", path)
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

// startBalanced starts three nodes, each with the fixture at url as server
// "node", an agent that serves it as "served", and a balancer before them.
func startBalanced(t testing.TB, url string) (*cluster, string) {
	t.Helper()
	file := serversFile(t, fmt.Sprintf(`{"mcpServers":{"node":{"url":%q}}}`, url))
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"}, servers: func(string) string { return file }})
	var urls []string
	for _, m := range c.members {
		urls = append(urls, "nats://"+m.nats)
	}
	agent := start(t, ripstop(t), "serve", "served", "--nats", strings.Join(urls, ","), "--url", url)
	agent.expect(t, "Attached as instance", 20*time.Second)
	for _, m := range c.members {
		m.node().probed(t, "node")
		m.node().probed(t, "served")
	}
	return c, startBalancer(t, c)
}

// TestConformanceBalanced: through a cluster behind a balancer that knows no
// sessions the suites give what they give directly.
func TestConformanceBalanced(t *testing.T) {
	peers(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			url := startEverything(t, s.stateless)
			lines, total, _ := conformance(t, s.pkg, url, s.args)
			_, front := startBalanced(t, url)
			for _, server := range []string{"node", "served"} {
				begin := time.Now()
				got, sum, out := conformance(t, s.pkg, front+"/mcp/"+server, s.args)
				t.Logf("%s: %s in %s", server, sum, time.Since(begin).Round(time.Millisecond))
				if got != lines || sum != total {
					t.Errorf("through /mcp/%s:\n%s\n%s\ndirectly:\n%s\n%s\n%s", server, got, sum, lines, total, out)
				}
			}
		})
	}
}

// connectionEnded is how the suites' clients say that a connection of theirs
// ended; they do not make it again.
var connectionEnded = regexp.MustCompile(`fetch failed|terminated|socket hang up|other side closed|ECONNRESET|Connection closed|SSE stream disconnected|Premature close`)

// TestConformanceRolling: while a suite runs, over and over, nodes restart one
// after another. Only what has a connection that ends then may fail, since the
// suites do not connect again; it is listed.
func TestConformanceRolling(t *testing.T) {
	peers(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			url := startEverything(t, s.stateless)
			nodejs, direct, results := suiteCommand(t, s.pkg, url, s.args)
			run(t, 3*time.Minute, "", nodejs, direct...)
			expected := failures(t, results)
			c, front := startBalanced(t, url)
			nodejs, command, results := suiteCommand(t, s.pkg, front+"/mcp/node", s.args)
			var wg sync.WaitGroup
			runs, over := 0, make(chan struct{})
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					out, err := exec.CommandContext(t.Context(), nodejs, command...).CombinedOutput()
					if !totalLine.Match(out) {
						t.Errorf("the suite ended without a total: %v\n%s", err, out)
						return
					}
					runs++
				}
			})
			for _, m := range c.members {
				c.stop(m)
				c.start(m)
				for _, m := range c.members {
					c.awaitReady(m)
				}
				time.Sleep(time.Second) // of the suite, before the next
			}
			close(over)
			wg.Wait()
			got := failures(t, results)
			for check, n := range got {
				switch {
				case expected[check] > 0:
				case connectionEnded.MatchString(check):
					t.Logf("allowed, %d times: %s", n, check)
				default:
					t.Errorf("failed %d times: %s", n, check)
				}
			}
			t.Logf("%d runs of the suite, %d kinds of failures in them that there are not directly", runs, len(got)-len(expected))
			if runs < 2 {
				t.Errorf("invalid: %d runs of the suite during the restarts", runs)
			}
		})
	}
}

// failures counts the failed checks in a suite's results: "scenario, check:
// message".
func failures(t testing.TB, results string) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(results, "*", "checks.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d results of scenarios in %s: %v", len(files), results, err)
	}
	out := map[string]int{}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		scenario, _, _ := strings.Cut(filepath.Base(filepath.Dir(path)), "-20") // the time follows
		for _, check := range decode[[]struct{ ID, Status, ErrorMessage string }](t, string(data)) {
			if check.Status == "FAILURE" {
				out[fmt.Sprintf("%s, %s: %s", scenario, check.ID, check.ErrorMessage)]++
			}
		}
	}
	return out
}
