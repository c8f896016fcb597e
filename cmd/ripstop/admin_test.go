package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/fabric/admin"
)

const operatorToken = "0123456789abcdef"

// operated is a NATS server with an admin service whose nodes are made up.
type operated struct {
	url     string
	flags   []string // how an operator reaches it
	drained chan string

	mu         sync.Mutex
	exportFail error
	imported   string
}

func (o *operated) AdminNodes(context.Context) []admin.Node {
	return []admin.Node{
		{Name: "n1", Role: "voter", State: "up", Health: admin.Healthy, Ready: true, Software: "v1.0.0", Started: time.Now().Add(-90 * time.Minute), Clients: 3},
		{Name: "node-two", Role: "relay", State: "up", Health: admin.Healthy, Ready: true, Software: "v1.0.0", Latency: 0.00042},
	}
}

func (o *operated) Forget(string) {}

func startOperated(t testing.TB, clustered bool) *operated {
	t.Helper()
	so := &server.Options{}
	if err := so.ProcessConfigString(`
		system_account: SYS
		no_auth_user: client
		accounts: {
			SYS: {users: [{user: sys, password: s}]}
			FABRIC: {jetstream: enabled, users: [{user: fabric, password: f}, {user: operator, password: "` + operatorToken + `", permissions: {publish: ["ripstop.v1.admin.>"], subscribe: ["_INBOX.>"]}}]}
			MCP: {users: [{user: client, password: client, permissions: {publish: ["mcp.v1.req.>"], subscribe: ["_INBOX.>"]}}]}
		}`); err != nil {
		t.Fatal(err)
	}
	so.ServerName, so.Host, so.Port, so.NoSigs, so.NoLog, so.JetStream, so.StoreDir = "n1", "127.0.0.1", server.RANDOM_PORT, true, true, true, t.TempDir()
	srv, err := server.NewServer(so)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	o := &operated{url: srv.ClientURL(), drained: make(chan string, 1)}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(operatorToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.flags = []string{"--server", o.url, "--operator-token-file", token}
	svc, err := admin.Open(admin.Options{
		Conn: inProcess(t, srv, "fabric", "f"), System: inProcess(t, srv, "sys", "s"), Node: "n1", Region: "local", Clustered: clustered, Version: "v1.0.0",
		Nodes: o, Export: o.export, Import: o.importFrom, SpoolDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
		Drain: func(string) error {
			o.drained <- "n1"
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func inProcess(t testing.TB, srv *server.Server, user, password string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.UserInfo(user, password))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (o *operated) export(_ context.Context, w io.Writer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := io.WriteString(w, "the export\n"); err != nil {
		return err
	}
	return o.exportFail
}

func (o *operated) importFrom(_ context.Context, r io.ReadSeeker) ([]string, error) {
	data, err := io.ReadAll(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.imported = string(data)
	return []string{"1 entry added"}, err
}

func (o *operated) wantImported(t testing.TB, want string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.imported != want {
		t.Errorf("imported %q, want %q", o.imported, want)
	}
}

// run runs a command line as the operator.
func (o *operated) run(t testing.TB, stdin string, args ...string) outcome {
	t.Helper()
	return cli(t, nil, stdin, append(args, o.flags...)...)
}

func TestStatus(t *testing.T) {
	o := startOperated(t, false)
	got := o.run(t, "", "status")
	got.want(t, `region local: healthy, standalone, as n1 sees it

NODE      ROLE   STATE  HEALTH   LEADS  VERSION  UP     LATENCY  LAG  CLIENTS  INSTANCES
n1        voter  up     healthy  -      v1.0.0   1h30m  -        0    3        0
node-two  relay  up     healthy  -      v1.0.0   -      420µs    0    0        0
`)
	var s admin.Status
	for _, args := range [][]string{{"status", "-o", "json"}, {"admin", "get-cluster-status", "-o", "json"}} {
		got = o.run(t, "", args...)
		if err := json.Unmarshal([]byte(got.out), &s); err != nil || got.code != 0 || len(s.Nodes) != 2 || s.Health != admin.Healthy {
			t.Errorf("%v: %+v (%v)", args, got, err)
		}
	}
	o.run(t, "", "ls", "nodes").want(t, `NODE      ROLE   STATE  HEALTH   LEADS  VERSION  UP     LATENCY  LAG  CLIENTS  INSTANCES
n1        voter  up     healthy  -      v1.0.0   1h30m  -        0    3        0
node-two  relay  up     healthy  -      v1.0.0   -      420µs    0    0        0
`)
	var nodes []admin.Node
	if got := o.run(t, "", "ls", "nodes", "-o", "json"); json.Unmarshal([]byte(got.out), &nodes) != nil || len(nodes) != 2 {
		t.Errorf("ls nodes -o json: %+v", got)
	}
}

func TestUnhealthyStatus(t *testing.T) {
	o := startOperated(t, true) // in a cluster, and no leader of it
	got := o.run(t, "", "status")
	got.wantErr(t, exitUnhealthy, "region local: unhealthy: no quorum")
	for _, part := range []string{"PROBLEMS\ncluster (unhealthy): no quorum", "  do: wait for the election", "no leader"} {
		if !strings.Contains(got.out, part) {
			t.Errorf("the screen lacks %q:\n%s", part, got.out)
		}
	}
	o.run(t, "", "admin", "remove-node", "node-two").wantErr(t, exitRefused, "is up", "try: ripstop admin drain node-two")
	o.run(t, "", "admin", "evacuate", "n1").wantErr(t, exitUnreachable, "without a quorum")
}

func TestDrawStatus(t *testing.T) {
	now := time.Now()
	s := admin.Status{
		Region: "eu", Mode: "clustered", Answered: "n1", Health: admin.Degraded, MetaLeader: "n1", Quorum: true, Voters: 3, VotersUp: 2,
		Nodes: []admin.Node{
			{Name: "n1", Role: "voter", State: "up", Health: admin.Healthy, Software: "v1.0.0", Started: now.Add(-26 * time.Hour)},
			{Name: "n2", Role: "voter", State: "up", Health: admin.Degraded, Draining: true, Software: "v1.1.0", Started: now.Add(-time.Minute), Latency: 0.0123456, Lag: 17},
			{Name: "n3", Role: "voter", State: "down", Health: admin.Unhealthy, LastSeen: now.Add(-5 * time.Second)},
			{Name: "n4", State: "down", Health: admin.Unhealthy},
		},
		Groups: []admin.Group{
			{Name: admin.MetaGroup, Leader: "n1", Replicas: []admin.Replica{{Node: "n1", Current: true}, {Node: "n2", Lag: 17}, {Node: "n3", Offline: true}}},
			{Name: "KV_a", Leader: "n1", Replicas: []admin.Replica{{Node: "n1", Current: true}}},
			{Name: "KV_b"},
		},
		Problems: []admin.Problem{{Severity: admin.Degraded, About: "n3", What: "down:\nit \x1b[31mbroke", Do: "start it"}},
	}
	var out bytes.Buffer
	if err := drawStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	const want = "region eu: degraded, 2 of 3 voters up, n1 leads, as n1 sees it\n" + `
NODE  ROLE   STATE     HEALTH     LEADS   VERSION  UP           LATENCY  LAG  CLIENTS  INSTANCES
n1    voter  up        healthy    meta+1  v1.0.0   1d2h         -        0    0        0
n2    voter  draining  degraded   -       v1.1.0   1m0s         12.35ms  17   0        0
n3    voter  down      unhealthy  -       -        seen 5s ago  -        -    -        -
n4    -      down      unhealthy  -       -        never seen   -        -    -        -

GROUP  LEADER  REPLICAS
meta   n1      n1 n2(-17) n3!
KV_a   n1      n1
KV_b   -` + "\n\nPROBLEMS\nn3 (degraded): down:; it \uFFFD[31mbroke\n  do: start it\n"
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

// cancelling ends a context when n lines were written.
type cancelling struct {
	bytes.Buffer
	n      int
	cancel context.CancelFunc
}

func (c *cancelling) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if strings.Count(c.String(), "\n") >= c.n {
		c.cancel()
	}
	return n, err
}

func TestWatch(t *testing.T) {
	o := startOperated(t, false)
	for name, tt := range map[string]struct {
		args  []string
		lines int
		want  string
	}{
		"text": {[]string{"status", "--watch"}, 1, "healthy, 1 of 1 voters up, leader -, n1=up node-two=up"},
		"json": {[]string{"status", "-w", "--interval", "100ms", "-o", "json"}, 2, `"health":"healthy"`},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		out := &cancelling{n: tt.lines, cancel: cancel}
		root := newRoot(nil, nil)
		root.SetOut(out)
		root.SetErr(io.Discard)
		root.SetArgs(append(tt.args, o.flags...))
		code := execute(ctx, root)
		if code != 0 || !strings.Contains(out.String(), tt.want) || strings.Count(out.String(), "\n") != tt.lines {
			t.Errorf("%s: exit code %d:\n%s", name, code, out.String())
		}
		cancel()
	}
	// What does not change is said once, and what fails does not end it.
	var out bytes.Buffer
	w := &watch{out: &out}
	for _, err := range []error{nil, nil, errors.New("it\nfailed"), nil} {
		if err := w.show(admin.Status{Health: admin.Healthy}, err, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != 3 || !strings.Contains(out.String(), "no answer: it; failed") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

func TestWhoMayAdminister(t *testing.T) {
	o := startOperated(t, false)
	bad := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(bad, []byte("not-the-operator-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(t, nil, "", "status", "--server", o.url, "--operator-token-file", bad).wantErr(t, exitUnreachable, `it refuses the token of user "operator"`)
	cli(t, nil, "", "status", "--server", o.url).wantErr(t, exitUnreachable, `it wants the token of user "operator"`, "--operator-token-file FILE")
	began := time.Now()
	cli(t, nil, "", "status", "--server", o.url, "--user", "client").wantErr(t, exitUnreachable, `user "client" may not run operator's commands`)
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("a refusal took %s", d)
	}
	cli(t, nil, "", "status", "--server", "nats://127.0.0.1:1").wantErr(t, exitUnreachable, "can't be reached")
	cli(t, nil, "", "status", "--operator-token-file", "/nowhere").wantErr(t, exitUsage, "--operator-token-file")
}

func TestDrain(t *testing.T) {
	o := startOperated(t, false)
	got := o.run(t, "n1\n", "admin", "drain", "n1") // what is typed counts at a terminal only
	got.wantErr(t, exitRefused, "drain n1: not confirmed; nothing was done", "try: ripstop admin drain n1 --confirm ")
	if !strings.HasPrefix(got.out, "drain n1 will:\n  - ") || !strings.Contains(got.out, "\nwarning: it is the only node") {
		t.Errorf("the plan:\n%s", got.out)
	}
	_, token, _ := strings.Cut(strings.TrimSpace(got.err), "--confirm ")
	o.run(t, "", "admin", "drain", "n1", "--confirm", "aaaaaaaa").wantErr(t, exitRefused, "the plan has changed")
	t.Setenv("RIPSTOP_YES", "true")
	t.Setenv("RIPSTOP_CONFIRM", token)
	got = o.run(t, "", "admin", "drain", "n1", "-o", "json")
	got.wantErr(t, exitRefused, "not confirmed")
	var p admin.Plan
	if err := json.Unmarshal([]byte(got.out), &p); err != nil || p.Confirm != token {
		t.Errorf("plan %s (%v), token %s", got.out, err, token)
	}
	select {
	case <-o.drained:
		t.Fatal("drained without confirmation")
	default:
	}
	o.run(t, "", "admin", "drain", "n1", "--confirm", token).want(t, "n1 drains, and then stops\nfollow it: ripstop status --watch\n")
	<-o.drained
	got = o.run(t, "", "admin", "drain", "n1", "--yes", "-o", "json")
	var r admin.Result
	if err := json.Unmarshal([]byte(got.out), &r); err != nil || got.code != 0 || len(r.Done) != 1 {
		t.Errorf("got %+v (%v)", got, err)
	}
	<-o.drained
	o.run(t, "", "admin", "drain", "node-tow").wantErr(t, exitNotFound, `no node is called "node-tow"; did you mean "node-two"?`, "try: ripstop ls nodes")
	o.run(t, "", "admin", "drain", "node-two", "--yes").wantErr(t, exitNotFound, "node-two does not answer: nothing was done")
}

func TestAdminMistakes(t *testing.T) {
	o := startOperated(t, false)
	o.run(t, "", "admin", "drain").wantErr(t, exitUsage, "NODE is missing")
	cli(t, nil, "", "admin", "drian").wantErr(t, exitUsage, `did you mean "drain"?`)
	o.run(t, "", "admin", "step-down", "meta", "--node", "n1").wantErr(t, exitUsage, "exclude each other")
	o.run(t, "", "admin", "step-down").wantErr(t, exitRefused, "not part of a cluster")
	o.run(t, "", "status", "--watch", "--interval", "1ms").wantErr(t, exitUsage, "--interval")
	o.run(t, "", "ls", "nodes", "--kind", "tools").wantErr(t, exitUsage, "--kind")
	o.run(t, "", "ls", "nods").wantErr(t, exitUsage, `did you mean "nodes"?`)
}

func TestExportImport(t *testing.T) {
	o := startOperated(t, false)
	dir := t.TempDir()
	file := filepath.Join(dir, "out.jsonl")
	o.run(t, "", "admin", "export", file).want(t, file+": 11 bytes\n")
	if data, err := os.ReadFile(file); err != nil || string(data) != "the export\n" {
		t.Errorf("exported %q (%v)", data, err)
	}
	o.run(t, "", "admin", "export", "-").want(t, "the export\n")
	o.run(t, "", "admin", "import", file).want(t, "1 entry added\n")
	o.wantImported(t, "the export\n")
	o.run(t, "from stdin", "admin", "import", "-").want(t, "1 entry added\n")
	o.wantImported(t, "from stdin")
	o.run(t, "", "admin", "import", filepath.Join(dir, "none")).wantErr(t, exitUsage, "none")
	o.mu.Lock()
	o.exportFail = errors.New("the disk is gone")
	o.mu.Unlock()
	o.run(t, "", "admin", "export", filepath.Join(dir, "broken")).wantErr(t, exitFailure, "the disk is gone")
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d files in the directory (%v), want the first export", len(files), err)
	}
}

func TestAdminCompletion(t *testing.T) {
	o := startOperated(t, false)
	args := func(words ...string) []string {
		return append(append([]string{"__complete", "admin"}, words[:len(words)-1]...), append(o.flags, words[len(words)-1])...)
	}
	for _, words := range [][]string{{"drain", ""}, {"step-down", "--to", ""}} {
		a := args(words...)
		if words[0] == "step-down" { // the flag's value comes last
			a = append(append([]string{"__complete", "admin", "step-down"}, o.flags...), "--to", "")
		}
		if got := cli(t, nil, "", a...); !strings.Contains(got.out, "n1\tvoter up healthy\n") || !strings.Contains(got.out, "node-two\t") {
			t.Errorf("%v: %+v", words, got)
		}
	}
	if got := cli(t, nil, "", args("drain", "n1", "")...); strings.Contains(got.out, "n1\t") {
		t.Errorf("a second node was offered: %+v", got)
	}
}
