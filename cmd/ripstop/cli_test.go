package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/bridge/bridgetest"
)

// fakeFabric is a fabric in memory, with a registry that says what it is told.
type fakeFabric struct {
	router.Handler
	instances []kv.Instance
	err       error // of Instances
	closed    int
}

func (f *fakeFabric) Instances(context.Context) ([]kv.Instance, error) { return f.instances, f.err }
func (f *fakeFabric) Close()                                           { f.closed++ }

var started = time.Now().Add(-90*time.Minute - 30*time.Second)

func newFakeFabric(t testing.TB, legacyOnly bool) (*fakeFabric, *bridgetest.Fabric) {
	servers := map[string]*mcp.Server{"demo": bridgetest.Demo()}
	h := bridgetest.New(t, servers)
	if legacyOnly {
		h = bridgetest.NewLegacy(t, servers)
	}
	both := []string{"legacy", "modern"}
	return &fakeFabric{Handler: h, instances: []kv.Instance{
		{Server: "files", Instance: "bbbbbbbbbb", Node: "n1", Agent: "host/2", Transport: "stdio", Started: started, Problem: "exit status 1"},
		{Server: "demo", Instance: "cccccccccc", Node: "n1", Agent: "host/1", Transport: "go", Kinds: []string{"tools", "prompts"}, Eras: both, Info: kv.Info{Name: "Demo", Version: "1.0"}, Started: started},
		{Server: "demo", Instance: "aaaaaaaaaa", Node: "n2", Agent: "host/3", Transport: "http", Kinds: []string{"tools", "resources"}, Eras: both[:1], Started: started},
	}}, h
}

// outcome is what a command line did.
type outcome struct {
	code     int
	out, err string
}

func (o outcome) wantErr(t *testing.T, code int, parts ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d", o.code, code)
	}
	for _, p := range parts {
		if !strings.Contains(o.err, p) {
			t.Errorf("stderr lacks %q:\n%s", p, o.err)
		}
	}
	for _, line := range strings.Split(strings.TrimSuffix(o.err, "\n"), "\n") {
		if strings.HasPrefix(line, "Usage:") {
			t.Errorf("the usage was dumped:\n%s", o.err)
		}
	}
}

func (o outcome) want(t *testing.T, out string) {
	t.Helper()
	if o.code != 0 || o.out != out {
		t.Errorf("exit code %d, stderr %q, stdout:\n%swant:\n%s", o.code, o.err, o.out, out)
	}
}

// cli runs a command line against f.
func cli(t testing.TB, f *fakeFabric, stdin string, args ...string) outcome {
	t.Helper()
	return cliContext(t.Context(), func(context.Context, clientSettings) (fabricClient, error) { return f, nil }, strings.NewReader(stdin), args...)
}

func cliContext(ctx context.Context, dial dialFunc, stdin io.Reader, args ...string) outcome {
	var out, errs bytes.Buffer
	root := newRoot(dial, dial)
	root.SetIn(stdin)
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	code := execute(ctx, root)
	return outcome{code, out.String(), errs.String()}
}

func TestLs(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	cli(t, f, "", "ls").want(t, `SERVER  INSTANCES  OFFERS                   ERAS           TRANSPORT  SOFTWARE  PROBLEM
demo    2          tools,resources,prompts  legacy,modern  http,go    Demo 1.0
files   1          -                        -              stdio                exit status 1
`)
	cli(t, f, "", "ls", "instances").want(t, `SERVER  INSTANCE    NODE  AGENT   TRANSPORT  OFFERS           ERAS           UP     PROBLEM
demo    aaaaaaaaaa  n2    host/3  http       tools,resources  legacy         1h30m
demo    cccccccccc  n1    host/1  go         tools,prompts    legacy,modern  1h30m
files   bbbbbbbbbb  n1    host/2  stdio      -                -              1h30m  exit status 1
`)
	cli(t, f, "", "ls", "instances", "--kind", "prompts").want(t, `SERVER  INSTANCE    NODE  AGENT   TRANSPORT  OFFERS         ERAS           UP
demo    cccccccccc  n1    host/1  go         tools,prompts  legacy,modern  1h30m
`)
	if f.closed != 3 {
		t.Errorf("closed %d connections, want 3", f.closed)
	}
	var servers []serverRow
	o := cli(t, f, "", "ls", "-o", "json")
	if err := json.Unmarshal([]byte(o.out), &servers); err != nil || len(servers) != 2 || servers[0].Instances != 2 {
		t.Errorf("ls -o json: %s (%v)", o.out, err)
	}
	var instances []kv.Instance
	o = cli(t, f, "", "ls", "instances", "-o", "json")
	if err := json.Unmarshal([]byte(o.out), &instances); err != nil || len(instances) != 3 || instances[0].Node != "n2" {
		t.Errorf("ls instances -o json: %s (%v)", o.out, err)
	}
}

func TestLsNothing(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	o := cli(t, f, "", "ls", "--kind", "resources")
	if o.code != 0 || !strings.Contains(o.out, "demo") {
		t.Errorf("got %+v", o)
	}
	f.instances = nil
	o = cli(t, f, "", "ls")
	if o.code != 0 || o.out != "" || !strings.Contains(o.err, "no server is attached\ntry: ripstop serve") {
		t.Errorf("got %+v", o)
	}
	for _, what := range []string{"servers", "instances"} {
		cli(t, f, "", "ls", what, "-o", "json").want(t, "[]\n")
	}
}

func TestTools(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	cli(t, f, "", "tools", "demo").want(t, `TOOL   ARGUMENTS             DESCRIPTION
add    a=INTEGER [b=NUMBER]  Add two numbers
ask    -
block  -
count  to=INTEGER
echo   text=STRING           Say it back.
fail   -
log    -
`)
	cli(t, f, "", "tools", "demo", "echo").want(t, `ripstop call demo echo text=STRING

Say it back.
Word for word.

ARGUMENT  TYPE    REQUIRED  DESCRIPTION
text      string  yes       what to say back
`)
	var tools []mcp.Tool
	o := cli(t, f, "", "tools", "demo", "-o", "json")
	if err := json.Unmarshal([]byte(o.out), &tools); err != nil || len(tools) != 7 || tools[0].InputSchema == nil {
		t.Errorf("tools -o json: %s (%v)", o.out, err)
	}
}

func TestCall(t *testing.T) {
	for _, legacyOnly := range []bool{false, true} {
		f, h := newFakeFabric(t, legacyOnly)
		cli(t, f, "", "call", "demo", "echo", "text=héllo=x").want(t, "héllo=x\n")
		cli(t, f, "", "call", "demo", "echo", `{"text":"line\n"}`).want(t, "line\n")
		cli(t, f, `{"text":"stdin"}`, "call", "demo", "echo", "-").want(t, "stdin\n")
		cli(t, f, "", "call", "demo", "add", "a=40", "b:=2.5").want(t, "{\"sum\":42.5}\n")
		o := cli(t, f, "", "call", "demo", "count", "to=2")
		o.want(t, "counted to 2\n")
		if want := "progress: 1/2  50% at 1\nprogress: 2/2 100% at 2\n"; o.err != want {
			t.Errorf("stderr %q, want %q", o.err, want)
		}
		for _, quiet := range [][]string{{"-q"}, {"-o", "json"}} {
			if o := cli(t, f, "", append([]string{"call", "demo", "count", "to=2"}, quiet...)...); o.code != 0 || o.err != "" {
				t.Errorf("%v: %+v", quiet, o)
			}
		}
		o = cli(t, f, "", "call", "demo", "log")
		o.want(t, "logged\n")
		if want := "warning demo: beware\n"; o.err != want {
			t.Errorf("stderr %q, want %q", o.err, want)
		}
		if o = cli(t, f, "", "call", "demo", "log", "--log-level", "error"); o.err != "" {
			t.Errorf("a warning came through --log-level error: %q", o.err)
		}
		if n := h.Sessions(); n != 0 {
			t.Errorf("%d sessions left open", n)
		}
	}
}

func TestCallJSONIsRaw(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	o := cli(t, f, "", "call", "demo", "add", "a=1", "-o", "json")
	var res struct {
		StructuredContent struct{ Sum float64 }
		ResultType        string // a field that the SDK does not keep
	}
	if err := json.Unmarshal([]byte(o.out), &res); err != nil || res.StructuredContent.Sum != 1 || res.ResultType != "complete" {
		t.Errorf("got %s (%v)", o.out, err)
	}
}

func TestCallMistakes(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	for _, tt := range []struct {
		args string
		code int
		err  []string
	}{
		{"call demo add a=1x", exitUsage, []string{`argument "a": "1x" is not an integer`, "try: ripstop tools demo add"}},
		{"call demo add a=1.5", exitUsage, []string{`"1.5" is not an integer`}},
		{"call demo add b=1", exitUsage, []string{`argument "a" (integer) is missing`}},
		{"call demo add", exitUsage, []string{`argument "a" (integer) is missing`}},
		{"call demo echo txt=1", exitUsage, []string{`argument "text" (string) is missing; "txt" was given, is it that?`}},
		{"call demo echo text=1 texts=2", exitUsage, []string{`argument "texts" is none of echo's; did you mean "text"?`}},
		{"call demo echo text=1 text=2", exitUsage, []string{`argument "text": given twice`}},
		{"call demo echo text:={", exitUsage, []string{`argument "text": { is not JSON`}},
		{"call demo echo text:=1", exitUsage, []string{`argument "text": 1 is an integer, not a string`}},
		{"call demo echo {\"text\":", exitUsage, []string{"not a JSON object"}},
		{"call demo echo {\"text\":5}", exitUsage, []string{`argument "text": 5 is an integer`}},
		{"call demo echo hello", exitUsage, []string{`argument "hello" is not k=v`}},
		{"call demo ecko text=1", exitNotFound, []string{`tool "ecko": server "demo" has no such tool; did you mean "echo"?`, "try: ripstop tools demo"}},
		{"call dem echo text=1", exitNotFound, []string{`server "dem": no such server is attached; did you mean "demo"?`, "try: ripstop ls"}},
		{"call de.mo echo", exitUsage, []string{`server name "de.mo"`}},
		{"call demo fail", exitToolError, []string{"it broke", "call demo fail: the tool reported an error"}},
		{"call demo fail -o json", exitToolError, nil},
		{"call demo", exitUsage, []string{"TOOL is missing", "try: ripstop call --help"}},
		{"call demo echo --tiemout 3s", exitUsage, []string{"unknown flag: --tiemout"}},
		{"call demo echo --timeout x", exitUsage, []string{"--timeout"}},
		{"call demo echo --timeout -3s", exitUsage, []string{"negative"}},
		{"call demo echo --answer x", exitUsage, []string{`--answer "x" is not k=v`}},
		{"call demo echo --log-level wrning", exitUsage, []string{`did you mean "warning"?`}},
		{"call demo block --timeout 50ms", exitTimeout, []string{"call demo block: the time given by --timeout ran out"}},
		{"tools demo ech", exitNotFound, []string{`did you mean "echo"?`}},
		{"tools demo echo more", exitUsage, []string{`unexpected argument "more"`}},
		{"tools demo -o yaml", exitUsage, []string{`"yaml" is not table or json`}},
		{"ls things", exitUsage, []string{`"things" can't be listed`}},
		{"ls --kind tool", exitUsage, []string{`did you mean "tools"?`}},
		{"colour", exitUsage, []string{`unknown command "colour" of "ripstop"`, "try: ripstop --help"}},
		{"cal", exitUsage, []string{`did you mean "call"?`}},
		{"config shwo", exitUsage, []string{`unknown command "shwo" of "ripstop config"; did you mean "show"?`}},
		{"connect a__b", exitUsage, []string{`server name "a__b"`}},
		{"version 5", exitUsage, []string{`try: ripstop version --help`}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			o := cli(t, f, "", strings.Fields(tt.args)...)
			o.wantErr(t, tt.code, tt.err...)
			if tt.code != exitToolError && o.out != "" {
				t.Errorf("stdout %q", o.out)
			}
		})
	}
}

// TestFabricErrors checks the exit code of each failure of the fabric, in the
// call itself.
func TestFabricErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		text string
	}{
		{router.Errorf(router.ErrUnavailable, "nobody answers"), exitUnreachable, "try: ripstop ls instances"},
		{router.Errorf(router.ErrOutcomeUnknown, "it died"), exitUnknown, "try: look at what the call would have changed"},
		{router.Errorf(router.ErrOverloaded, "full"), exitFailure, "call demo echo: full"},
		{router.Errorf(router.ErrSessionNotFound, "session gone"), exitNotFound, "session gone"},
		{&router.Error{Code: -32601, Text: "no tools/call"}, exitFailure, "does not offer this"},
		{errors.New("odd\nthing"), exitFailure, "odd; thing"},
	} {
		f, h := newFakeFabric(t, false)
		h.Fault(func(req *router.Request) error {
			if req.Method() == "tools/call" {
				return tt.err
			}
			return nil
		})
		o := cli(t, f, "", "call", "demo", "echo", "text=x")
		o.wantErr(t, tt.code, tt.text)
		h.Fault(nil)
	}
}

func TestUnreachable(t *testing.T) {
	dial := func(context.Context, clientSettings) (fabricClient, error) {
		return nil, errors.New("connection refused")
	}
	for _, args := range []string{"ls", "tools demo", "call demo echo"} {
		cliContext(t.Context(), dial, nil, strings.Fields(args)...).wantErr(t, exitUnreachable, "can't be reached: connection refused", "try: ripstop start")
	}
	f, _ := newFakeFabric(t, false)
	f.err = router.Errorf(router.ErrUnavailable, "no node here")
	cli(t, f, "", "ls").wantErr(t, exitUnreachable, "the registry: no node here", "try: ripstop start")
}

// Starting a node, as is said when none is there, would not help here.
func TestWrongToken(t *testing.T) {
	dial := func(context.Context, clientSettings) (fabricClient, error) {
		return nil, errors.New("connect to nats://x: nats: Authorization Violation") // as nats.go says it
	}
	cliContext(t.Context(), dial, nil, "ls").wantErr(t, exitUnreachable, "it wants a token", "try: --token-file FILE")
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(strings.Repeat("t", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	cliContext(t.Context(), dial, nil, "ls", "--token-file", path).wantErr(t, exitUnreachable, "it refuses the token")
}

func TestSlowDial(t *testing.T) {
	dial := func(ctx context.Context, _ clientSettings) (fabricClient, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	cliContext(t.Context(), dial, nil, "ls", "--timeout", "10ms").wantErr(t, exitTimeout, "--timeout")
}

func TestInterrupted(t *testing.T) {
	f, h := newFakeFabric(t, true)
	ctx, interrupt := context.WithCancel(t.Context())
	cancelled := make(chan struct{})
	f.Handler = router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if req.Method() == "tools/call" {
			defer close(cancelled)
			interrupt()
		}
		return h.Serve(ctx, req, out)
	})
	o := cliContext(ctx, func(context.Context, clientSettings) (fabricClient, error) { return f, nil }, nil, "call", "demo", "block")
	o.wantErr(t, exitInterrupted, "call demo block: interrupted")
	<-cancelled
	if n := h.Sessions(); n != 0 {
		t.Errorf("%d sessions left open", n)
	}
}

func TestElicitationWithoutTerminal(t *testing.T) {
	for _, legacyOnly := range []bool{false, true} {
		f, _ := newFakeFabric(t, legacyOnly)
		o := cli(t, f, "", "call", "demo", "ask")
		o.want(t, "you chose to decline\n")
		if !strings.Contains(o.err, "The server asks: Who are you?") || !strings.Contains(o.err, "--answer name=STRING") {
			t.Errorf("stderr %q", o.err)
		}
		cli(t, f, "", "call", "demo", "ask", "--answer", "name=Ann", "--answer", "age=7").want(t, "hello Ann, green, 7, <nil>\n")
		o = cli(t, f, "", "call", "demo", "ask", "--answer", "age=7")
		o.want(t, "you chose to decline\n")
		if !strings.Contains(o.err, `"name" is not answered`) {
			t.Errorf("stderr %q", o.err)
		}
		o = cli(t, f, "", "call", "demo", "ask", "--answer", "name=Ann", "--answer", "age=old")
		o.want(t, "you chose to decline\n")
		if !strings.Contains(o.err, `--answer age: "old" is not an integer`) {
			t.Errorf("stderr %q", o.err)
		}
	}
}
