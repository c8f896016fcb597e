package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ripstop/fabric/admin"
)

// TestNoVersionInCommon: an agent and a node that speak only wire version 3 are
// told so by a cluster that speaks 1, and get no calls; the agent is served once
// the cluster was upgraded.
func TestNoVersionInCommon(t *testing.T) {
	if !all() {
		t.Skip("starts four nodes; run it with RIPSTOP_E2E=all go test -run TestNoVersionInCommon ./e2e")
	}
	far, both := versionBinary(t, "v0.9.0", 3, 3), versionBinary(t, "v0.8.0", 1, 3)
	count := newCounter(t)
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"},
		servers: func(name string) string { return count.servers(t, ownServer(name)) }})
	n1, n2 := c.members[0], c.members[1]
	const none = "they have none in common; upgrade "

	agent := start(t, far, append([]string{"serve", "far", "--shared", "--nats", "nats://" + n1.nats}, count.command(t)...)...)
	eventually(t, 10*time.Second, func() string {
		if said := agent.stderr.String(); !strings.Contains(said, "speaks wire version 3, this node speaks wire version 1: "+none+"the nodes") {
			return "the agent does not say why it is not attached: " + said
		}
		return ""
	})
	for _, m := range c.members {
		if problem := m.callHTTP("far", "refused"); problem == "" {
			t.Errorf("%s served an agent that it has no version in common with", m.name)
		}
	}

	n4 := c.add("n4")
	n4.peers, n4.binary = n1.peers, far
	c.start(n4)
	for _, m := range c.members[:3] {
		c.awaitStatus(m, func(s admin.Status) string {
			at := slices.IndexFunc(s.Nodes, func(n admin.Node) bool { return n.Name == "n4" })
			if at < 0 || s.Nodes[at].Health != admin.Unhealthy || !strings.Contains(strings.Join(s.Nodes[at].Reasons, "; "), "it speaks wire version 3, this node 1: "+none+"the older one") {
				return fmt.Sprintf("%s says: %+v", m.name, s.Nodes)
			}
			if s.Health != admin.Unhealthy || !s.Quorum || s.VotersUp != 3 {
				return fmt.Sprintf("%s says that the cluster is %s: %+v", m.name, s.Health, s)
			}
			return ""
		})
		c.cantSpeak(m, ownServer("n4"))
		for _, other := range c.members[:3] {
			if problem := m.callHTTP(ownServer(other.name), fmt.Sprintf("meanwhile-%s-%s", m.name, other.name)); problem != "" {
				t.Error(problem)
			}
		}
	}
	if r := n2.node().cli(t, "status"); r.code != 9 {
		t.Errorf("status: exit %d, want 9", r.code)
	} else {
		r.says(t, "n4 (unhealthy): it speaks wire version 3")
	}
	c.stop(n4)
	c.members = c.members[:3]

	upgrade := func(m *member) {
		c.stop(m)
		m.binary = both
		c.start(m)
		c.awaitReady(m)
	}
	upgrade(n1)
	second := start(t, far, append([]string{"serve", "second", "--shared", "--nats", "nats://" + n1.nats}, count.command(t)...)...)
	second.expect(t, "Attached as instance", 10*time.Second)
	if problem := n1.callHTTP("second", "second-1"); problem != "" {
		t.Error(problem)
	}
	c.cantSpeak(n2, "second")
	upgrade(n2)
	upgrade(c.members[2])
	agent.expect(t, "Attached as instance", 20*time.Second)
	for i, m := range c.members {
		for _, server := range []string{"far", "second"} {
			eventually(t, 5*time.Second, func() string { return m.callHTTP(server, fmt.Sprintf("at-last-%s-%d", server, i)) })
		}
	}
	if ran := count.executed(t); ran["refused"] > 0 {
		t.Errorf("what was refused ran %d times", ran["refused"])
	}
}

// cantSpeak checks that m does not call a server, for its wire version. Until m
// has heard of the instance, it says that there is no such server.
func (c *cluster) cantSpeak(m *member, server string) {
	c.t.Helper()
	eventually(c.t, 5*time.Second, func() string {
		problem := m.callHTTP(server, "refused")
		if !strings.Contains(problem, "-32012") || !strings.Contains(problem, "can be spoken with: ") {
			return fmt.Sprintf("%s does not say that it can't speak with %s: %q", m.name, server, problem)
		}
		return ""
	})
}
