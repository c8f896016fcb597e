package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ripstop/fabric/addrtest"
)

// secretFile writes a cluster's secret.
func secretFile(t testing.TB, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// misfitFor is how long a node that does not belong is watched.
const misfitFor = 4 * time.Second

// TestMisfits: a node that does not belong to the cluster does not get in, says
// so, and harms nobody.
func TestMisfits(t *testing.T) {
	if !all() {
		t.Skip("takes half a minute; run it with RIPSTOP_E2E=all go test -run TestMisfits ./e2e")
	}
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo", "--secret-file", secretFile(t, "the-secret-of-the-cluster")}})
	for _, tt := range []struct {
		name, node string
		args       []string
	}{
		{"wrong secret", "n8", []string{"--secret-file", secretFile(t, "another-secret-altogether")}},
		{"no secret", "n8", []string{"--secret-file", ""}},
		{"wrong region", "n8", []string{"--region", "elsewhere"}},
		{"other voters", "n8", []string{"--voters", "n1,n2,n8"}},
		{"duplicate name", "n1", nil},
	} {
		t.Run(tt.name, func(t *testing.T) { c.refuses(t, tt.node, tt.args) })
	}
}

// refuses starts a node that does not belong, and watches the cluster
// meanwhile.
func (c *cluster) refuses(t *testing.T, name string, args []string) {
	t.Helper()
	first := c.members[0]
	m := &member{name: name, nats: addrtest.Reserve(t), http: addrtest.Reserve(t), cluster: addrtest.Reserve(t), peers: first.peers, args: args}
	dir := filepath.Join(t.TempDir(), "data")
	m.args = append([]string{"--data-dir", dir}, args...)
	c.start(m)
	defer func() {
		m.p.cmd.Process.Kill()
		<-m.p.done
		if t.Failed() {
			t.Logf("the misfit:\n%s", tail(m.p.stderr.String(), 30))
		}
	}()
	ended := false
	for end := time.Now().Add(misfitFor); time.Now().Before(end) && !ended; {
		select {
		case <-m.p.done: // refused to start
			ended = true
		case <-time.After(200 * time.Millisecond):
		}
		for i, living := range c.members {
			if status, body := c.page(living, "/health"); status != http.StatusOK {
				t.Fatalf("%s at /health while the misfit runs: %d %s", living.name, status, body)
			}
			if problem := living.callDemo(fmt.Sprintf("misfit-%d", i)); problem != "" {
				t.Fatal(problem)
			}
		}
	}
	if ended {
		if code := m.p.cmd.ProcessState.ExitCode(); code == 0 {
			t.Errorf("the misfit ended with exit 0")
		}
	} else {
		for _, path := range []string{"/ready", "/health"} {
			if status, body := c.page(m, path); status == http.StatusOK {
				t.Errorf("the misfit's %s: %d %s", path, status, body)
			} else if !strings.Contains(body, `"reason"`) {
				t.Errorf("the misfit's %s gives no reason: %d %s", path, status, body)
			}
		}
	}
	list := first.node().cli(t, "ls", "nodes", "-o", "json")
	if !operatorServed(t, list) {
		t.Log("the list of nodes is not looked at")
	} else if strings.Contains(list.ok(t).out, `"`+m.http+`"`) || name != "n1" && strings.Contains(list.out, `"`+name+`"`) {
		t.Errorf("ls nodes lists the misfit:\n%s", list.out)
	}
	for _, living := range c.members {
		c.awaitReady(living)
	}
}

// callDemo calls the built-in server at m.
func (m *member) callDemo(text string) string {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequest("POST", "http://"+m.http+"/mcp/demo", strings.NewReader(initialize))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Sprintf("%s at %s: %v", text, m.name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%s at %s: %d", text, m.name, resp.StatusCode)
	}
	return ""
}

// operatorServed reports whether a node answered an operator's command.
func operatorServed(t testing.TB, r result) bool {
	t.Helper()
	if strings.Contains(r.err, "nobody answers as the operator's service") {
		t.Log("the node does not serve the operator yet")
		return false
	}
	return true
}
