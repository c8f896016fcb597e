package e2e

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestFirstSteps does what the README's first screen does.
func TestFirstSteps(t *testing.T) {
	n := startNode(t)
	n.cli(t, "ls").ok(t).says(t, "demo")
	n.cli(t, "ls", "instances").ok(t).says(t, "demo")
	n.cli(t, "ls", "--kind", "prompts").ok(t).says(t, "demo")
	n.cli(t, "tools", "demo").ok(t).says(t, "echo", "add", "count", "remember")
	n.cli(t, "call", "demo", "echo", "text=hello there").ok(t).says(t, "hello there")
	n.cli(t, "call", "demo", "add", `{"a":40,"b":2}`).ok(t).says(t, "42")
	run(t, 10*time.Second, "", ripstop(t), "version", "-o", "json").ok(t).says(t, "2026-07-28")

	nc, err := nats.Connect(n.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	msg, err := nc.Request("mcp.v1.req.demo.tools.call.echo", []byte(callBody(1, "echo", `{"text":"hi"}`)), 5*time.Second)
	if err != nil || !strings.Contains(string(msg.Data), `"text":"hi"`) {
		t.Fatalf("plain NATS request: %v, %v", msg, err)
	}
	operator, err := nats.Connect(n.nats, nats.UserInfo("operator", "operator"))
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	js, err := jetstream.New(operator)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "registry_local_g1")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.Keys(t.Context())
	if err != nil || len(keys) != 2 { // demo, and all servers as one
		t.Errorf("registry keys %v, %v", keys, err)
	}
	for _, path := range []string{"/health", "/ready"} {
		if a := n.do(t, "GET", path, ""); a.status != 200 || !strings.Contains(a.body, `"status":"ok"`) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := n.do(t, "GET", "/metrics", ""); !strings.Contains(a.body, "ripstop_registry_instances 2") {
		t.Errorf("metrics: %d\n%s", a.status, a.body)
	}
	if code := n.stop(t); code != 0 {
		t.Errorf("exit %d after SIGTERM\n%s", code, n.stderr)
	}
}

func TestReadyInASecond(t *testing.T) {
	startNode(t) // warm
	begin := time.Now()
	n := startNode(t)
	if took := time.Since(begin); took > time.Second {
		t.Errorf("ready after %s, want under 1 s\n%s", took, n.stderr)
	}
}

// TestRestart: the same directory, the same name, and servers come back.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n := startNode(t, "--data-dir", dir, "--name", "n1")
	n.cmd.Process.Kill()
	n.exit(t, 5*time.Second)
	n = startNode(t, "--data-dir", dir)
	n.cli(t, "call", "demo", "echo", "text=again").ok(t).says(t, "again")
	if a := n.do(t, "GET", "/health", ""); !strings.Contains(a.body, `"node":"n1"`) {
		t.Errorf("health after restart: %s", a.body)
	}
	if got := n.cli(t, "ls", "instances", "-o", "json").ok(t).out; strings.Count(got, `"server": "demo"`)+strings.Count(got, `"server":"demo"`) != 1 {
		t.Errorf("instances of demo after restart:\n%s", got)
	}
}

// TestStartRefuses: each bad start gives one clear error and exit code 1 or 2.
func TestStartRefuses(t *testing.T) {
	running := startNode(t, "--data-dir", filepath.Join(t.TempDir(), "held"))
	held := running.cmd.Args[len(running.cmd.Args)-1]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"NATS port in use":  {[]string{"--nats-addr", l.Addr().String()}, 1, "--nats-addr"},
		"HTTP port in use":  {[]string{"--http-addr", l.Addr().String()}, 1, "--http-addr"},
		"locked directory":  {[]string{"--data-dir", held}, 1, "in use by another node"},
		"not a directory":   {[]string{"--data-dir", file("plain", "x")}, 1, "--data-dir"},
		"open to all":       {[]string{"--http-addr", "0.0.0.0:0"}, 2, "--insecure"},
		"open NATS":         {[]string{"--nats-addr", ":0"}, 2, "--token-file"},
		"short token":       {[]string{"--token-file", file("short", "abc")}, 2, "16"},
		"no token file":     {[]string{"--token-file", filepath.Join(dir, "none")}, 2, "no such file"},
		"bad level":         {[]string{"--log-level", "loud"}, 2, "log-level (flag --log-level)"},
		"bad duration":      {[]string{"--config", file("dur.yaml", "drain-timeout: soon\n")}, 2, "drain-timeout (file"},
		"unknown key":       {[]string{"--config", file("key.yaml", "http-adr: x\n")}, 2, `did you mean "http-addr"`},
		"no config file":    {[]string{"--config", filepath.Join(dir, "none.yaml")}, 2, "none.yaml"},
		"broken YAML":       {[]string{"--config", file("broken.yaml", ":\n\t")}, 2, "broken.yaml"},
		"unknown flag":      {[]string{"--frobnicate"}, 2, "frobnicate"},
		"no servers file":   {[]string{"--servers", filepath.Join(dir, "none.json")}, 1, "none.json"},
		"bad servers file":  {[]string{"--servers", file("bad.json", `{"mcpServers":{"x":{}}}`)}, 1, `server "x"`},
		"damaged directory": {[]string{"--data-dir", filepath.Dir(file("node.json", "{"))}, 1, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"start"}, tt.args...)
			for _, def := range [][2]string{{"--data-dir", filepath.Join(t.TempDir(), "d")}, {"--nats-addr", "127.0.0.1:0"}, {"--http-addr", "127.0.0.1:0"}} {
				if !strings.Contains(strings.Join(tt.args, " "), def[0]) {
					args = append(args, def[:]...)
				}
			}
			r := run(t, 20*time.Second, "", ripstop(t), args...)
			if r.code != tt.code {
				t.Errorf("exit %d, want %d", r.code, tt.code)
			}
			r.says(t, tt.want)
			if r.out != "" {
				t.Errorf("printed %q", r.out)
			}
			if n := strings.Count(r.err, "\n"); n > 4 {
				t.Errorf("%d lines where one error would do:\n%s", n, r.err)
			}
		})
	}
}

// TestOneServerMissing: a command that is not installed here costs that server
// only, not the node.
func TestOneServerMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.json")
	if err := os.WriteFile(path, []byte(`{"mcpServers":{"x":{"command":"no-such-command-here"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, "--servers", path)
	n.cli(t, "call", "demo", "echo", "text=hi").ok(t).says(t, "hi")
	if log := n.stderr.String(); !strings.Contains(log, "server not attached") || !strings.Contains(log, "no-such-command-here") {
		t.Errorf("the log does not say what is missing:\n%s", log)
	}
}

func TestConfigOrigins(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ripstop.yaml"), []byte("http-addr: 127.0.0.1:1001\nnats-addr: 127.0.0.1:1002\nname: filed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("RIPSTOP_HTTP_ADDR", "127.0.0.1:2001")
	t.Setenv("RIPSTOP_NATS_ADDR", "127.0.0.1:2002")
	r := run(t, 10*time.Second, "", ripstop(t), "config", "show", "--http-addr", "127.0.0.1:3001").ok(t)
	for _, want := range []string{
		`http-addr +127\.0\.0\.1:3001 +flag --http-addr`,
		`nats-addr +127\.0\.0\.1:2002 +env RIPSTOP_NATS_ADDR`,
		`name +filed +file ripstop\.yaml`,
		`demo +true +default`,
	} {
		if !regexp.MustCompile(want).MatchString(r.out) {
			t.Errorf("no line like %q in\n%s", want, r.out)
		}
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	const token = "0123456789abcdef0123456789abcdef"
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, "--token-file", file)
	if a := n.do(t, "POST", "/mcp/demo", initialize); a.status != 401 || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("without a token: %d %v", a.status, a.header)
	}
	if a := n.do(t, "POST", "/mcp/demo", initialize, "Authorization", "Bearer "+token); a.status != 200 {
		t.Errorf("with the token: %d %s", a.status, a.body)
	}
	if r := n.cli(t, "ls"); r.code == 0 {
		t.Errorf("the CLI got in without a token: %s", r.out)
	}
	n.cli(t, "ls", "--token-file", file).ok(t).says(t, "demo")
	n.cli(t, "call", "demo", "echo", "text=in", "--token-file", file).ok(t).says(t, "in")
}

// TestDrain: a call in flight at SIGTERM is answered.
func TestDrain(t *testing.T) {
	n := startNode(t)
	id := n.session(t, "demo")
	got := make(chan answer, 1)
	go func() {
		got <- n.do(t, "POST", "/mcp/demo", callBody(1, "count", `{"to":10,"delay_ms":100}`), "Mcp-Session-Id", id)
	}()
	eventually(t, 5*time.Second, func() string {
		if a := n.do(t, "GET", "/metrics", ""); !regexp.MustCompile(`ripstop_http_requests_in_flight\S* 1`).MatchString(a.body) {
			return "the call is not in flight"
		}
		return ""
	})
	if code := n.stop(t); code != 0 {
		t.Errorf("exit %d\n%s", code, n.stderr)
	}
	if a := <-got; a.status != 200 || !strings.Contains(a.body, `"result"`) {
		t.Errorf("the call in flight: %d %s", a.status, a.body)
	}
}

// TestNothingLeaks opens and ends sessions and compares what the node holds.
func TestNothingLeaks(t *testing.T) {
	n := startNode(t)
	cycle := func(times int) {
		for range times {
			id := n.session(t, "demo")
			n.do(t, "POST", "/mcp/demo", callBody(1, "echo", `{"text":"x"}`), "Mcp-Session-Id", id)
			if a := n.do(t, "DELETE", "/mcp/demo", "", "Mcp-Session-Id", id); a.status/100 != 2 {
				t.Fatalf("DELETE: %d %s", a.status, a.body)
			}
			if a := n.do(t, "POST", "/mcp/demo", callBody(1, "echo", `{"text":"x"}`), "Mcp-Session-Id", id); a.status != 404 {
				t.Fatalf("call in an ended session: %d %s", a.status, a.body)
			}
		}
	}
	cycle(20)
	before := n.metric(t, "go_goroutines")
	files := n.metric(t, "process_open_fds")
	cycle(200)
	eventually(t, 10*time.Second, func() string {
		if now := n.metric(t, "go_goroutines"); now > before+10 {
			return "goroutines grew from " + strconv.FormatFloat(before, 'f', 0, 64) + " to " + strconv.FormatFloat(now, 'f', 0, 64)
		}
		if now := n.metric(t, "process_open_fds"); now > files+5 {
			return "open files grew"
		}
		return ""
	})
}

func (n *node) metric(t testing.TB, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(n.do(t, http.MethodGet, "/metrics", "").body)
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
