package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestCluster: three processes form a cluster; any node serves any server, also
// after one was killed and came back.
func TestCluster(t *testing.T) {
	count := newCounter(t)
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"},
		servers: func(name string) string { return count.servers(t, manyServer, ownServer(name)) }})
	id := 0
	serves := func(from *member, servers ...string) {
		t.Helper()
		for _, server := range servers {
			id++
			call := fmt.Sprintf("id=%s-%s-%d", from.name, server, id)
			eventually(t, 2*time.Second, func() string { // the registry may be a moment behind
				r := from.node().cli(t, "call", server, "work", call)
				if r.code != 0 || !strings.Contains(r.out, "did ") {
					return fmt.Sprintf("%s at %s: exit %d %s%s", server, from.name, r.code, r.out, r.err)
				}
				return ""
			})
			eventually(t, 2*time.Second, func() string { return from.callHTTP(server, fmt.Sprint("http-", id)) })
		}
	}
	for _, m := range c.members {
		serves(m, append([]string{manyServer}, ownServers(c.members)...)...)
	}
	victim := c.leader()
	living := c.others(victim)
	c.kill(victim)
	for _, m := range living {
		serves(m, append([]string{manyServer}, ownServers(living)...)...)
	}
	c.start(victim)
	c.awaitReady(victim)
	for _, m := range c.members {
		serves(m, ownServer(victim.name))
	}
	serves(victim, ownServer(living[0].name))
	for call, n := range count.executed(t) {
		if n != 1 {
			t.Errorf("call %s was executed %d times", call, n)
		}
	}
	for _, m := range c.members {
		begin := time.Now()
		c.stop(m)
		t.Logf("%s stopped in %s", m.name, time.Since(begin).Round(time.Millisecond))
	}
}
