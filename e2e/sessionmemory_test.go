package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"ripstop/router"
)

// idleBound is what a session that nobody uses may cost any node.
const idleBound = 15 << 10

// TestIdleSessions: sessions cost each node of a cluster what is promised, those
// that have only their records too.
func TestIdleSessions(t *testing.T) {
	if !all() {
		t.Skip("opens thousands of sessions; run it with RIPSTOP_E2E=all, or with 50,000: RIPSTOP_E2E=full go test -run TestIdleSessions -v ./e2e")
	}
	count := 10_000
	if full() {
		count = 50_000
	}
	t.Setenv("GOGC", "20") // collections often enough to wait for them
	backend := httptest.NewServer(http.HandlerFunc(greetOnly))
	t.Cleanup(backend.Close)
	file := serversFile(t, fmt.Sprintf(`{"mcpServers":{"bare":{"url":%q}}}`, backend.URL))
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"}, servers: func(name string) string {
		if name == "n1" {
			return file
		}
		return serversFile(t, `{"mcpServers":{}}`)
	}})
	front := c.members[0]
	front.node().probed(t, "bare")
	openSessions(t, front, 1000) // what is paid once
	before := map[string][2]float64{}
	for _, m := range c.members {
		before[m.name] = settled(t, m)
	}
	begin := time.Now()
	openSessions(t, front, count)
	took := time.Since(begin)
	for _, m := range c.members {
		after := settled(t, m)
		live, resident := (after[0]-before[m.name][0])/float64(count), (after[1]-before[m.name][1])/float64(count)
		t.Logf("%s: %d sessions, %.0f bytes each live, %.0f resident", m.name, count, live, resident)
		if live > idleBound || resident > idleBound {
			t.Errorf("%s: a session costs %.0f bytes live, %.0f resident, want at most %d", m.name, live, resident, idleBound)
		}
	}
	t.Logf("%.0f sessions opened a second", float64(count)/took.Seconds())
	eventually(t, 30*time.Second, func() string {
		info, err := c.streamOf(front, "KV_sessions_local_g1")
		if err != nil {
			return err.Error()
		}
		if int(info.State.Messages) < count+1000 {
			return fmt.Sprintf("%d records of sessions, want %d", info.State.Messages, count+1000)
		}
		return ""
	})
}

// greetOnly is a Streamable HTTP server that answers initialize and ping.
func greetOnly(w http.ResponseWriter, r *http.Request) {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
	}
	if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&m) != nil {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	result := `{}`
	switch {
	case m.ID == nil:
		w.WriteHeader(http.StatusAccepted)
		return
	case m.Method == "initialize":
		w.Header().Set("Mcp-Session-Id", router.NewSessionID("bare"))
		result = `{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"bare","version":"1"}}`
	case m.Method != "ping":
		w.WriteHeader(http.StatusBadRequest) // a probe of the other era
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
}

// openSessions opens sessions, from a few clients at once, and leaves them.
func openSessions(t testing.TB, m *member, count int) {
	t.Helper()
	const clients = 16
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() {
			h := &httpClient{target: "bare", urls: []string{"http://" + m.http}, http: &http.Client{Transport: &http.Transport{}}}
			defer h.http.CloseIdleConnections()
			for n := i; n < count && errs[i] == nil; n += clients {
				h.session = ""
				_, _, _, errs[i] = h.open(ctx)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

var memoryOf = regexp.MustCompile(`(?m)^(go_gc_duration_seconds_count|go_memstats_heap_inuse_bytes|go_memstats_stack_inuse_bytes|process_resident_memory_bytes) (\S+)$`)

// settled returns the live and resident memory of a node, in bytes, after
// collections, which pings in a session bring about.
func settled(t testing.TB, m *member) (memory [2]float64) {
	t.Helper()
	h := &httpClient{target: "bare", urls: []string{"http://" + m.http}, http: &http.Client{Transport: &http.Transport{}}}
	defer h.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	url, session, _, err := h.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := 0.0
	for {
		for range 100 {
			if _, _, _, err := h.post(ctx, url, session, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.Get("http://" + m.http + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		v := map[string]float64{}
		for _, s := range memoryOf.FindAllStringSubmatch(string(text), -1) {
			v[s[1]], _ = strconv.ParseFloat(s[2], 64) // what the node says is checked below
		}
		live, gcs := v["go_memstats_heap_inuse_bytes"]+v["go_memstats_stack_inuse_bytes"], v["go_gc_duration_seconds_count"]
		if live == 0 || gcs == 0 {
			t.Fatalf("%s has no metrics of its memory", m.name)
		}
		if memory[0] == 0 || live < memory[0] {
			memory = [2]float64{live, v["process_resident_memory_bytes"]}
		}
		if first == 0 {
			first = gcs
		}
		if gcs >= first+4 {
			return memory
		}
	}
}
