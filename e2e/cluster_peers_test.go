package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"ripstop/fabric/addrtest"
	"ripstop/fabric/admin"
)

// watchedFor is how long clusters that must not be harmed are watched.
const watchedFor = 2 * time.Second

// TestPeersThatMislead: a node whose --peers name what does not exist, is dead,
// or is another cluster's joins by the one entry that is right, and harms nobody.
// With none that is right it says what each is, and joins when one comes up.
func TestPeersThatMislead(t *testing.T) {
	if !all() {
		t.Skip("starts nine nodes; run it with RIPSTOP_E2E=all go test -run TestPeersThatMislead ./e2e")
	}
	secret := secretFile(t, "the-secret-of-the-cluster")
	voters := []string{"--demo", "--voters", "n1,n2,n3", "--secret-file"}
	c := startCluster(t, clusterOptions{nodes: 3, args: append(voters, secret)})
	other := startCluster(t, clusterOptions{nodes: 3, args: append(voters, secretFile(t, "another-secret-altogether"))})
	elsewhere := c.stray(t, "--region", "elsewhere")
	const nowhere = "no-such-host.invalid:6222"
	dead := addrtest.Reserve(t)
	bad := map[string]string{ // and what is said of it
		nowhere:                  "resolve no-such-host.invalid: ",
		other.members[0].cluster: "refuses this node's cluster secret",
		elsewhere.cluster:        `belongs to cluster "ripstop-elsewhere"`,
	}

	joins := c.add("n4")
	joins.peers = []string{nowhere, dead, other.members[0].cluster, elsewhere.cluster, c.members[1].cluster}
	c.start(joins)
	c.awaitReady(joins)
	c.unharmed(t, other, elsewhere)
	c.awaitStatus(c.members[0], func(s admin.Status) string {
		at := slices.IndexFunc(s.Nodes, func(n admin.Node) bool { return n.Name == "n4" })
		if len(s.Nodes) != 4 || at < 0 {
			return fmt.Sprintf("%d nodes, want n1 to n4: %+v", len(s.Nodes), s.Nodes)
		}
		n := s.Nodes[at]
		if n.State != "up" || n.Role != "relay" || n.Health != admin.Degraded {
			return fmt.Sprintf("n4 is %s, %s, %s: %q", n.State, n.Role, n.Health, n.Reasons)
		}
		return lacks(strings.Join(n.Reasons, "; "), bad)
	})

	late := c.add("n5")
	waits := &member{name: "n6", nats: addrtest.Reserve(t), http: addrtest.Reserve(t), cluster: addrtest.Reserve(t)}
	waits.peers = []string{nowhere, dead, other.members[0].cluster, elsewhere.cluster, late.cluster}
	bad[dead], bad[late.cluster] = "nothing listens at "+dead, "nothing listens at "+late.cluster
	c.start(waits)
	c.members = append(c.members, waits)
	eventually(t, clusterTimeout, func() string {
		status, body := c.page(waits, "/health")
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "no other node of the cluster has been reached") {
			return fmt.Sprintf("/health: %d %s", status, body)
		}
		return lacks(body, bad)
	})
	late.peers = joins.peers
	c.start(late)
	began := time.Now()
	c.awaitReady(late)
	c.awaitReady(waits)
	t.Logf("joined %s after one of its peers came up", time.Since(began).Round(time.Millisecond))
	c.unharmed(t, other, elsewhere)
	if problem := c.members[0].callDemo("calls"); problem != "" {
		t.Error(problem)
	}
	waits.node().cli(t, "call", "demo", "echo", "text=joined").ok(t).says(t, "joined")
}

// lacks says which of the texts are not in said, or "".
func lacks(said string, texts map[string]string) string {
	said = strings.ReplaceAll(said, `\"`, `"`) // of JSON
	for about, text := range texts {
		if !strings.Contains(said, text) {
			return fmt.Sprintf("of %s nobody says %q: %s", about, text, said)
		}
	}
	return ""
}

// stray starts one node of a cluster whose other nodes do not exist.
func (c *cluster) stray(t *testing.T, args ...string) *member {
	t.Helper()
	m := &member{name: "n1", nats: addrtest.Reserve(t), http: addrtest.Reserve(t), cluster: addrtest.Reserve(t)}
	m.args = append([]string{"--data-dir", t.TempDir()}, args...)
	m.peers = []string{m.cluster, addrtest.Reserve(t), addrtest.Reserve(t)}
	c.start(m)
	t.Cleanup(func() {
		m.p.cmd.Process.Kill()
		<-m.p.done
		if t.Failed() {
			t.Logf("the stray:\n%s", tail(m.p.stderr.String(), 30))
		}
	})
	eventually(t, clusterTimeout, func() string {
		if status, body := c.page(m, "/health"); status != http.StatusServiceUnavailable {
			return fmt.Sprintf("/health of a stray: %d %s", status, body)
		}
		return ""
	})
	return m
}

// unharmed watches both clusters for a while: they are well, serve, and know
// their own nodes only.
func (c *cluster) unharmed(t *testing.T, other *cluster, stray *member) {
	t.Helper()
	for end := time.Now().Add(watchedFor); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, m := range slices.Concat(c.members[:3], other.members) {
			if status, body := c.page(m, "/health"); status != http.StatusOK {
				t.Fatalf("%s at /health: %d %s", m.http, status, body)
			}
			if problem := m.callDemo("watched"); problem != "" {
				t.Fatal(problem)
			}
		}
	}
	for _, m := range c.members[:3] { // told of an address by n4, they would try it for ever
		if n := strings.Count(m.p.stderr.String(), "Authorization Violation"); n > 0 {
			t.Errorf("%s tried another cluster's nodes %d times", m.name, n)
		}
	}
	for _, m := range other.members {
		s, err := other.status(m)
		if err != nil || s.Health != admin.Healthy || len(s.Nodes) != 3 || s.Voters != 3 {
			t.Errorf("the other cluster, as its %s sees it: %v, %+v", m.name, err, s)
		}
	}
	s, err := c.status(stray)
	if err != nil {
		t.Errorf("status of the stray: %v", err)
	}
	for _, n := range s.Nodes {
		if n.Name != stray.name && (n.State == "up" || n.Name > "n3") { // n2 and n3 are its own, which never came
			t.Errorf("the stray knows %s, %s", n.Name, n.State)
		}
	}
}
