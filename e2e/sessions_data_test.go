package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// rememberer writes numbers into one session, through whichever node answers.
type rememberer struct {
	c       *cluster
	id      string
	client  *http.Client
	edge    int
	acked   map[string]int // the last number that was acknowledged, by key
	sent    map[string]int // the last one that was sent
	longest time.Duration  // from the first try of a number until it was acknowledged
	trouble []string
}

const rememberKeys = 20

func (m *rememberer) say(ctx context.Context, body string) (status int, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	to := m.c.members[m.edge%len(m.c.members)]
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+to.http+"/mcp/demo", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Session-Id", m.id)
	resp, err := m.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// run writes until ctx ends.
func (m *rememberer) run(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		key := "k" + strconv.Itoa(n%rememberKeys)
		m.sent[key] = n
		began := time.Now()
		for {
			status, text, err := m.say(context.WithoutCancel(ctx), callBody(n, "remember", fmt.Sprintf(`{"key":%q,"value":"%d"}`, key, n)))
			if err == nil && status == 200 && strings.Contains(text, `"replaced"`) {
				break
			}
			if status == 404 || time.Since(began) > 20*time.Second {
				m.trouble = append(m.trouble, fmt.Sprintf("number %d: %d %s %v", n, status, text, err))
				return
			}
			m.edge++
		}
		m.acked[key] = n
		m.longest = max(m.longest, time.Since(began))
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

var valueOf = regexp.MustCompile(`"value":"(\d+)"`)

// check recalls every number.
func (m *rememberer) check(t testing.TB) {
	t.Helper()
	for _, what := range m.trouble {
		t.Error(m.id, what)
	}
	for key, n := range m.acked {
		var got int
		eventually(t, 10*time.Second, func() string {
			status, text, err := m.say(t.Context(), callBody(1, "recall", fmt.Sprintf(`{"key":%q}`, key)))
			if f := valueOf.FindStringSubmatch(text); err == nil && status == 200 && f != nil {
				got, err = strconv.Atoi(f[1])
			} else {
				err = errors.Join(err, errors.New("no value"))
			}
			if err != nil {
				m.edge++
				return fmt.Sprintf("%s: %d %s %v", key, status, text, err)
			}
			return ""
		})
		if got < n || got > m.sent[key] {
			t.Errorf("session %s has %d as %s; %d was acknowledged, and %d sent, last", m.id, got, key, n, m.sent[key])
		}
	}
}

// TestRememberedOutlivesNodes: what the demo server has acknowledged to remember
// is there after its node was drained, and, with RIPSTOP_E2E=all, another killed.
func TestRememberedOutlivesNodes(t *testing.T) {
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo"}})
	var users []*rememberer
	for i := range 9 {
		m := &rememberer{c: c, edge: i, client: &http.Client{Transport: &http.Transport{}}, acked: map[string]int{}, sent: map[string]int{}}
		m.id = c.members[i%3].node().session(t, "demo")
		t.Cleanup(m.client.CloseIdleConnections)
		users = append(users, m)
	}
	phase := func(name string, act func()) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, m := range users {
			m.longest = 0
			wg.Go(func() { m.run(ctx) })
		}
		pause(t, 700*time.Millisecond) // some are remembered before, and after
		act()
		pause(t, 1500*time.Millisecond)
		stop()
		wg.Wait()
		longest := time.Duration(0)
		for _, m := range users {
			longest = max(longest, m.longest)
		}
		t.Logf("%s: the longest that a number waited to be remembered, over retries: %s", name, longest.Round(time.Millisecond))
		for _, m := range users {
			m.check(t)
		}
	}
	first := c.members[0]
	phase("a node drains", func() { c.stop(first) })
	if !all() {
		return // what else there is takes longer
	}
	c.start(first)
	c.awaitReady(first)
	victim := c.leader()
	phase("the leader is killed", func() { c.kill(victim) })
	c.start(victim)
	c.awaitReady(victim)
	eventually(t, 30*time.Second, func() string { // a replica may have to catch up
		if r := victim.node().cli(t, "admin", "validate-sessions"); r.code != 0 {
			return r.out + r.err
		}
		return ""
	})
}

// pause lets the others work.
func pause(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
