package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/micro"

	"ripstop/fabric/admin"
)

const bucket = "KV_things_local_g1"

func (l *lab) export(_ context.Context, w io.Writer) error {
	if _, err := w.Write(l.exported); err != nil {
		return err
	}
	return l.failWith
}

func (l *lab) importFrom(_ context.Context, r io.ReadSeeker) ([]string, error) {
	data, err := io.ReadAll(r)
	if bytes.HasPrefix(data, []byte("bad")) {
		return nil, errors.New("line 1 is no entry")
	}
	l.imported = string(data)
	return []string{"1 entry added"}, err
}

func wantError(t testing.TB, err error, code admin.Code, parts ...string) {
	t.Helper()
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("error %v, want code %s", err, code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(e.Text+" "+e.Try, p) {
			t.Errorf("error %q (try %q) lacks %q", e.Text, e.Try, p)
		}
	}
}

// The subtests follow each other: the last one costs the cluster a node.
func TestCluster(t *testing.T) {
	l := startLab(t, 3)
	full := func(s admin.Status) bool { return s.Health == admin.Healthy && len(group(s, bucket).Replicas) == 3 }
	l.awaitStatus(t, "a healthy cluster", full)
	t.Run("status", l.testStatus)
	t.Run("discovery", l.testDiscovery)
	t.Run("step-down", l.testStepDown)
	l.awaitStatus(t, "a healthy cluster again", full)
	t.Run("drain", l.testDrain)
	t.Run("evacuate", l.testEvacuatePlan)
	t.Run("bad requests", l.testBadRequests)
	t.Run("remove-node", l.testRemove)
	t.Run("no quorum", l.testNoQuorum)
}

func (l *lab) testStatus(t *testing.T) {
	s, err := l.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != "clustered" || s.Region != "local" || !s.Quorum || s.Voters != 3 || s.VotersUp != 3 || s.MetaLeader == "" || s.Answered != "n1" || s.At.IsZero() {
		t.Errorf("status %+v", s)
	}
	leaders := 0
	for _, n := range s.Nodes {
		if n.Leader {
			leaders++
			if n.Name != s.MetaLeader {
				t.Errorf("%s leads, the meta leader is %s", n.Name, s.MetaLeader)
			}
		}
	}
	if leaders != 1 || len(s.Nodes) != 3 || len(s.Problems) != 0 {
		t.Errorf("%d leaders of %d nodes, problems %v", leaders, len(s.Nodes), s.Problems)
	}
	for _, name := range []string{admin.MetaGroup, bucket} {
		g := group(s, name)
		if g.Leader == "" || len(g.Replicas) != 3 || !slices.ContainsFunc(g.Replicas, func(r admin.Replica) bool { return r.Node == g.Leader && r.Current }) {
			t.Errorf("group %s: %+v", name, g)
		}
	}
	if g := s.Groups[0]; g.Name != admin.MetaGroup {
		t.Errorf("the first group is %s", g.Name)
	}
}

// testDiscovery: the service is one that `nats micro ls` shows, and each node
// answers under its own name too.
func (l *lab) testDiscovery(t *testing.T) {
	sub, err := l.client.Conn.SubscribeSync("_INBOX.services")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.client.Conn.PublishRequest("$SRV.PING."+admin.ServiceName, "_INBOX.services", nil); err != nil {
		t.Fatal(err)
	}
	var found []string
	for range 3 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatalf("after %q: %v", found, err)
		}
		var ping micro.Ping
		if err := json.Unmarshal(m.Data, &ping); err != nil {
			t.Fatal(err)
		}
		found = append(found, ping.Metadata["node"])
	}
	slices.Sort(found)
	if !slices.Equal(found, []string{"n1", "n2", "n3"}) {
		t.Errorf("services of %q", found)
	}
	m, err := l.client.Conn.Request("ripstop.v1.admin.n3.get-cluster-status", nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var s admin.Status
	if err := json.Unmarshal(m.Data, &s); err != nil || s.Answered != "n3" {
		t.Errorf("%s answered (%v)", s.Answered, err)
	}
}

func (l *lab) testStepDown(t *testing.T) {
	s, err := l.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", bucket} {
		was := group(s, cmpOr(name, admin.MetaGroup)).Leader
		to := map[string]string{"n1": "n2", "n2": "n3", "n3": "n1"}[was]
		r, err := l.client.StepDown(t.Context(), name, "", to)
		if err != nil {
			t.Fatalf("step-down %q: %v", name, err)
		}
		if len(r.Done) != 1 || !strings.Contains(r.Done[0], was) {
			t.Errorf("done %q", r.Done)
		}
		l.awaitStatus(t, to+" leads "+name, func(s admin.Status) bool { return group(s, cmpOr(name, admin.MetaGroup)).Leader == to })
	}
	s = l.awaitStatus(t, "leaders", func(s admin.Status) bool { return group(s, bucket).Leader != "" })
	lead := group(s, bucket).Leader
	r, err := l.client.StepDown(t.Context(), "", lead, "")
	if err != nil || len(r.Done) == 0 {
		t.Errorf("step-down of all that %s leads: %v, %v", lead, r, err)
	}
	_, err = l.client.StepDown(t.Context(), "KV_nothing", "", "")
	wantError(t, err, admin.CodeNotFound, "KV_nothing")
	_, err = l.client.StepDown(t.Context(), "", "n9", "")
	wantError(t, err, admin.CodeNotFound, "n9")
	_, err = l.client.StepDown(t.Context(), "", "", "n9")
	wantError(t, err, admin.CodeNotFound, "n9")
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (l *lab) testDrain(t *testing.T) {
	p, err := l.client.Plan(t.Context(), admin.VerbDrain, "n2")
	if err != nil {
		t.Fatal(err)
	}
	if p.Target != "n2" || len(p.Effects) < 3 || p.Confirm == "" || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "2 of 3 voters") {
		t.Errorf("plan %+v", p)
	}
	_, err = l.client.Confirm(t.Context(), admin.VerbDrain, "n2", "wrong")
	wantError(t, err, admin.CodeRefused, "plan has changed")
	_, err = l.client.Confirm(t.Context(), admin.VerbDrain, "n3", p.Confirm) // of another plan
	wantError(t, err, admin.CodeRefused, "plan has changed")
	select {
	case n := <-l.drained:
		t.Fatalf("%s drains without confirmation", n)
	default:
	}
	if _, err := l.client.Confirm(t.Context(), admin.VerbDrain, "n2", p.Confirm); err != nil {
		t.Fatal(err)
	}
	if n := <-l.drained; n != "n2" {
		t.Errorf("%s drains", n)
	}
}

func (l *lab) testEvacuatePlan(t *testing.T) {
	p, err := l.client.Plan(t.Context(), admin.VerbEvacuate, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(p.Effects, "\n"), bucket) || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "one fewer") {
		t.Errorf("plan %+v", p)
	}
}

func (l *lab) testBadRequests(t *testing.T) {
	for _, verb := range []string{admin.VerbDrain, admin.VerbRemove, admin.VerbEvacuate} {
		_, err := l.client.Plan(t.Context(), verb, "n9")
		wantError(t, err, admin.CodeNotFound, "n9", "ripstop ls nodes")
		_, err = l.client.Plan(t.Context(), verb, "")
		wantError(t, err, admin.CodeUsage)
	}
	_, err := l.client.Plan(t.Context(), admin.VerbRemove, "n2")
	wantError(t, err, admin.CodeRefused, "n2 is up", "ripstop admin drain n2")
	for _, body := range []string{"{", "[]", "7", `{"node":7}`} {
		m, err := l.client.Conn.Request(admin.Prefix+".drain", []byte(body), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if code := m.Header.Get(micro.ErrorCodeHeader); code != string(admin.CodeUsage) {
			t.Errorf("body %s: code %q, %s", body, code, m.Header.Get(micro.ErrorHeader))
		}
	}
	nobody := &admin.Client{Conn: connect(t, l.servers[1], "nobody", "n")}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if s, err := nobody.Status(ctx); err == nil {
		t.Errorf("a user without permission was told %+v", s)
	}
}

func (l *lab) testRemove(t *testing.T) {
	l.servers[2].Shutdown()
	l.servers[2].WaitForShutdown()
	s := l.awaitStatus(t, "n3 is missed", func(s admin.Status) bool {
		return s.Quorum && s.VotersUp == 2 && group(s, bucket).Leader != "" && group(s, bucket).Leader != "n3"
	})
	i := slices.IndexFunc(s.Problems, func(p admin.Problem) bool { return p.About == "n3" })
	if s.Health != admin.Degraded || i < 0 || !strings.Contains(s.Problems[i].Do, "ripstop admin remove-node n3") {
		t.Errorf("health %s, problems %+v", s.Health, s.Problems)
	}
	_, err := l.client.Plan(t.Context(), admin.VerbDrain, "n3")
	wantError(t, err, admin.CodeRefused, "not up")
	p, err := l.client.Plan(t.Context(), admin.VerbRemove, "n3")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(append(p.Effects, p.Warnings...), "\n")
	for _, part := range []string{"2 nodes vote instead of 3", bucket, "new --name", "even number", "nobody votes in its place"} {
		if !strings.Contains(text, part) {
			t.Errorf("the plan lacks %q:\n%s", part, text)
		}
	}
	res, err := l.client.Confirm(t.Context(), admin.VerbRemove, "n3", p.Confirm)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Done) != 3 || <-l.removed != "n3" {
		t.Errorf("done %q", res.Done)
	}
	if _, ok := l.forgotten.Load("n3"); !ok {
		t.Error("n3 was not forgotten")
	}
	l.awaitStatus(t, "two voters", func(s admin.Status) bool { return len(group(s, admin.MetaGroup).Replicas) == 2 })
	// What is left can be written, and the removal can be repeated.
	l.servers = l.servers[:2]
	l.makeBucket(t, 3)
	_, err = l.client.Plan(t.Context(), admin.VerbRemove, "n3")
	wantError(t, err, admin.CodeNotFound, "n3")
}

func (l *lab) testNoQuorum(t *testing.T) {
	l.servers[1].Shutdown()
	l.servers[1].WaitForShutdown()
	s := l.awaitStatus(t, "no quorum", func(s admin.Status) bool { return !s.Quorum && s.MetaLeader == "" })
	if s.Health != admin.Unhealthy || s.Problems[0].Severity != admin.Unhealthy || !strings.Contains(s.Problems[0].Do, "n2") {
		t.Errorf("health %s, problems %+v", s.Health, s.Problems)
	}
	_, err := l.client.Plan(t.Context(), admin.VerbRemove, "n2")
	wantError(t, err, admin.CodeNoQuorum, "n2")
	_, err = l.client.Plan(t.Context(), admin.VerbEvacuate, "n1")
	wantError(t, err, admin.CodeNoQuorum)
}

// A fourth voter takes what is evacuated.
func TestEvacuate(t *testing.T) {
	if testing.Short() {
		t.Skip("five servers")
	}
	l := startLab(t, 5)
	l.awaitStatus(t, "a healthy cluster", func(s admin.Status) bool {
		return s.Health == admin.Healthy && len(group(s, admin.MetaGroup).Replicas) == 5 && len(group(s, bucket).Replicas) == 5
	})
	js := connect(t, l.servers[0], "fabric", "f")
	m, err := js.Request("$JS.API.STREAM.CREATE.small", []byte(`{"name":"small","subjects":["small"],"num_replicas":1,"storage":"file","retention":"limits","discard":"old"}`), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var resp server.JSApiStreamCreateResponse
	if err := json.Unmarshal(m.Data, &resp); err != nil || resp.Error != nil {
		t.Fatalf("create: %s (%v)", m.Data, err)
	}
	s := l.awaitStatus(t, "the stream", func(s admin.Status) bool { return group(s, "small").Leader != "" })
	from := group(s, "small").Leader
	p, err := l.client.Plan(t.Context(), admin.VerbEvacuate, from)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.client.Confirm(t.Context(), admin.VerbEvacuate, from, p.Confirm); err != nil {
		t.Fatal(err)
	}
	l.awaitStatus(t, "nothing is left on "+from, func(s admin.Status) bool {
		return !slices.ContainsFunc(s.Groups, func(g admin.Group) bool {
			return g.Name != admin.MetaGroup && slices.ContainsFunc(g.Replicas, func(r admin.Replica) bool { return r.Node == from })
		})
	})
}

func TestStandalone(t *testing.T) {
	l := startLab(t, 1)
	s, err := l.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != "standalone" || s.Health != admin.Healthy || !s.Quorum || group(s, bucket).Leader != "n1" {
		t.Errorf("status %+v", s)
	}
	for _, verb := range []string{admin.VerbRemove, admin.VerbEvacuate} {
		_, err := l.client.Plan(t.Context(), verb, "n1")
		wantError(t, err, admin.CodeRefused, "not part of a cluster")
	}
	_, err = l.client.StepDown(t.Context(), "", "", "")
	wantError(t, err, admin.CodeRefused, "not part of a cluster")
	p, err := l.client.Plan(t.Context(), admin.VerbDrain, "n1")
	if err != nil || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "the only node") {
		t.Errorf("plan %+v, %v", p, err)
	}
}

func TestTransfer(t *testing.T) {
	l := startLab(t, 1)
	big := make([]byte, 3<<18+17) // three chunks and a bit
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(big) // never fails
	for _, data := range [][]byte{big, big[:1<<19], nil} {
		l.exported = data
		var out bytes.Buffer
		n, err := l.client.Export(t.Context(), &out)
		if err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("exported %d of %d bytes: %v", n, len(data), err)
		}
		res, err := l.client.Import(t.Context(), bytes.NewReader(data))
		if err != nil || l.imported != string(data) || !slices.Equal(res.Done, []string{"1 entry added"}) {
			t.Errorf("imported %d of %d bytes: %v, %v", len(l.imported), len(data), res, err)
		}
	}
	l.exported, l.failWith = big, errors.New("the disk is gone")
	_, err := l.client.Export(t.Context(), io.Discard)
	wantError(t, err, admin.CodeFailed, "the disk is gone")
	_, err = l.client.Import(t.Context(), strings.NewReader("bad"))
	wantError(t, err, admin.CodeFailed, "line 1 is no entry")
	for _, verb := range []string{"export-read", "import"} {
		m, err := l.client.Conn.Request(admin.Prefix+".n1."+verb, []byte(`{"transfer":"x"}`), 5*time.Second)
		if err != nil || m.Header.Get(micro.ErrorCodeHeader) != string(admin.CodeNotFound) {
			t.Errorf("%s of an unknown transfer: %v %v", verb, m, err)
		}
	}
}

// What nobody goes on with is cleaned up when the service closes.
func TestAbandonedTransfers(t *testing.T) {
	l := startLab(t, 1)
	dir := t.TempDir()
	l.exported = make([]byte, 1<<20)
	svc, err := admin.Open(admin.Options{
		Conn: connect(t, l.servers[0], "fabric", "f"), System: connect(t, l.servers[0], "sys", "s"), Node: "other.node",
		Nodes: l, Export: l.export, Import: l.importFrom, SpoolDir: dir, Logger: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"export", "import-begin", "export", "import-begin"} {
		m, err := l.client.Conn.Request(admin.Prefix+"."+admin.Token("other.node")+"."+verb, nil, 5*time.Second)
		if err != nil || m.Header.Get(micro.ErrorCodeHeader) != "" {
			t.Fatalf("%s: %v %v", verb, m, err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 2 {
		t.Errorf("%d files are kept (%v)", len(files), err)
	}
	for range 2 {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("%d files were left (%v)", len(files), err)
	}
}
