package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/router/demo"
)

// stdioServerEnv makes the test binary a server to attach.
const stdioServerEnv = "RIPSTOP_TEST_STDIO_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(stdioServerEnv) != "" {
		_ = demo.New(nil).Run(context.Background(), &mcp.StdioTransport{}) // ends with stdin
		return
	}
	os.Exit(m.Run())
}

// nodeForTest starts a node in this process, as `ripstop start` does.
func nodeForTest(t testing.TB, args ...string) *node {
	t.Helper()
	cmd := newStartCommand()
	args = append([]string{"--nats-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", t.TempDir(), "--log-level", "error"}, args...)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	l, err := load(cmd)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.settings()
	if err != nil {
		t.Fatal(err)
	}
	n, err := openNode(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.close(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := n.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// usage is what sessions must not leave behind.
type usage struct {
	goroutines, files, children, subscriptions, sessions, pending, messages int
}

func (n *node) usage(t testing.TB) usage {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	u := usage{
		goroutines: runtime.NumGoroutine(), files: len(files), children: children(t),
		subscriptions: int(n.fabric.Server().NumSubscriptions()), sessions: n.sessions.Len(), pending: n.sessions.Pending(),
	}
	js, err := jetstream.New(n.fabric.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := js.Stream(t.Context(), n.events.Stream()); err == nil { // there is none before the first event
		u.messages += int(s.CachedInfo().State.Msgs)
	}
	s, err := js.Stream(t.Context(), "KV_"+n.sessions.Bucket())
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("$KV."+n.sessions.Bucket()+".*.d.>"))
	if err != nil {
		t.Fatal(err)
	}
	u.messages += len(info.State.Subjects) // data that outlived its session
	return u
}

// children counts the processes that this one has started.
func children(t testing.TB) (n int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has gone
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			n++
		}
	}
	return n
}

// visit opens a session, uses it, and ends it.
func (n *node) visit(server string) error {
	say := func(method, session, body string) (*http.Response, string, error) {
		req, err := http.NewRequest(method, n.httpURL+"/mcp/"+server, strings.NewReader(body))
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if session != "" {
			req.Header.Set("Mcp-Session-Id", session)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		return resp, string(data), err
	}
	resp, body, err := say("POST", "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if err != nil {
		return err
	}
	id := resp.Header.Get("Mcp-Session-Id")
	if id == "" {
		return fmt.Errorf("initialize: %d %s", resp.StatusCode, body)
	}
	stream, err := n.listen(server, id)
	if err != nil {
		return err
	}
	defer stream.Close()
	for _, step := range []struct{ method, body, want string }{
		{"POST", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, ""},
		{"POST", `{"jsonrpc":"2.0","id":2,"method":"resources/subscribe","params":{"uri":"demo://clock"}}`, `"result"`},
		{"POST", `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"remember","arguments":{"key":"k","value":"v"}}}`, `"k"`},
		{"POST", `{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"count","arguments":{"to":2,"delay_ms":0},"_meta":{"progressToken":1}}}`, `"counted":2`},
		{"DELETE", "", ""},
	} {
		resp, body, err := say(step.method, id, step.body)
		if err != nil {
			return err
		}
		if resp.StatusCode/100 != 2 || !strings.Contains(body, step.want) {
			return fmt.Errorf("%s %s: %d %s", step.method, step.body, resp.StatusCode, body)
		}
	}
	return nil
}

// listen opens the session's own stream.
func (n *node) listen(server, id string) (io.Closer, error) {
	req, err := http.NewRequest("GET", n.httpURL+"/mcp/"+server, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Mcp-Session-Id", id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("GET: status %d", resp.StatusCode), resp.Body.Close())
	}
	return resp.Body, nil
}

// visits makes count visits, a few at a time.
func (n *node) visits(t testing.TB, server string, count int) {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan struct{})
	errs := make(chan error, 8)
	for range cap(errs) {
		wg.Go(func() {
			var failed error
			for range next {
				if failed == nil {
					failed = n.visit(server)
				}
			}
			if failed != nil {
				errs <- failed
			}
		})
	}
	for range count {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatalf("%s: %v", server, err)
	}
}

// TestSessionsLeaveNothing opens and ends sessions, and looks at what is left.
// With RIPSTOP_E2E=all these are 10,000.
func TestSessionsLeaveNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	count, processes := 200, 12
	if e := os.Getenv("RIPSTOP_E2E"); e == "all" || e == "full" {
		count, processes = 10_000, 300
	}
	file := filepath.Join(t.TempDir(), "mcp.json")
	content := fmt.Sprintf(`{"mcpServers":{"child":{"command":%q,"env":{%q:"1"}}}}`, os.Args[0], stdioServerEnv)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	n := nodeForTest(t, "--servers", file, "--session-cleanup-interval", "1s")
	n.visits(t, "demo", 16) // what is made once, is made now
	n.visits(t, "child", 4)
	n.events.Append("warm", "g1", 1, []byte(`{}`)) // the stream of events, and who writes it
	if err := n.events.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.events.Forget("warm")
	n.settle(t, usage{goroutines: 1 << 30, files: 1 << 30, subscriptions: 1 << 30, children: 1 << 30})
	before := n.usage(t)
	began := time.Now()
	n.visits(t, "demo", count)
	t.Logf("%d sessions of demo in %s", count, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	n.visits(t, "child", processes)
	t.Logf("%d sessions of processes in %s", processes, time.Since(began).Round(time.Millisecond))
	after := n.settle(t, before)
	t.Logf("before %+v, after %+v", before, after)
}

// settle waits until no more is used than before, with no session and nothing of
// one, and returns what it then is.
func (n *node) settle(t testing.TB, before usage) usage {
	t.Helper()
	const slack = 8 // timers and idle workers come and go
	var u usage
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		u = n.usage(t)
		if u.goroutines <= before.goroutines+slack && u.files <= before.files+slack && u.children <= before.children &&
			u.subscriptions <= before.subscriptions && u.sessions == 0 && u.pending == 0 && u.messages == 0 {
			return u
		}
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("left behind: %+v, before %+v\n%s", u, before, buf[:runtime.Stack(buf, true)])
	return u
}
