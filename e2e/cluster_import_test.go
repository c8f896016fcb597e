package e2e

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/addrtest"
	"ripstop/kv"
)

// kept is what a standalone node has when it is to become a cluster: enough for
// several chunks of a transfer.
func kept() map[string]string {
	values := map[string]string{}
	for i := range 150 {
		values[fmt.Sprintf("key.%d", i)] = fmt.Sprintf(`{"n":%d,"text":%q}`, i, strings.Repeat("☃ value ", 400))
	}
	return values
}

// keep writes values into a bucket of the node whose data are in dir, which does
// not run. No command does: what lasts is written by what uses the fabric.
func keep(t testing.TB, dir string, values map[string]string) {
	t.Helper()
	f, err := fabric.Open(t.Context(), fabric.Options{Name: "alone", Addr: "127.0.0.1:0", DataDir: dir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := kv.NewBucket(f.Fabric(), kv.BucketConfig{Kind: "notes"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, value := range values {
		have, err := b.Get(t.Context(), key)
		if err == nil {
			_, err = b.Update(t.Context(), key, []byte(value), have.Rev)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFromOneNodeToSeveral moves a standalone node's data into a cluster, the
// way that the refusal to start it as a cluster's node says.
func TestFromOneNodeToSeveral(t *testing.T) {
	if !all() {
		t.Skip("starts four nodes; run it with RIPSTOP_E2E=all go test -run TestFromOneNodeToSeveral ./e2e")
	}
	values := kept()
	home := t.TempDir()
	dir := filepath.Join(home, "data")
	keep(t, dir, values)
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo"}})

	first := append([]string{"start", "--data-dir", dir}, addresses(t)...)
	peers := strings.Join(c.members[0].peers, ",")
	refused := run(t, 20*time.Second, "", ripstop(t), append(first, "--cluster-addr", addrtest.Reserve(t), "--peers", peers)...)
	if refused.code == 0 {
		t.Fatal("a standalone node's directory was opened as a cluster's")
	}
	refused.says(t, "belongs to a node on its own", "Start it without --cluster-addr", "`ripstop admin export FILE`", "`ripstop admin import FILE`")

	file := filepath.Join(home, "backup.jsonl")
	alone := startNode(t, "--data-dir", dir)
	alone.cli(t, "admin", "export", file).ok(t).says(t, file, " bytes")
	if code := alone.stop(t); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if left, err := filepath.Glob(filepath.Join(home, "*.partial")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := c.members[2].node()
	for name, bad := range map[string]struct{ text, says string }{
		"cut in a line":    {string(text[:len(text)/2]), "cut short"},
		"without its end":  {string(text[:slices.Index(text, '\n')+1]), "cut short"},
		"changed":          {strings.Replace(string(text), `"n":7,`, `"n":8,`, 1), "its sum does not hold"},
		"no export at all": {`{"mcpServers":{}}` + "\n", "no file that `ripstop admin export` wrote"},
		"empty":            {"", "cut short"},
	} {
		path := writeFile(t, filepath.Join(home, "bad.jsonl"), bad.text)
		if r := at.cli(t, "admin", "import", path); r.code == 0 || !strings.Contains(r.err, bad.says) || strings.Contains(r.out, "added") {
			t.Errorf("%s: exit %d, want an error that says %q\n%s%s", name, r.code, bad.says, r.out, r.err)
		}
	}
	if have, err := c.notes(t, c.members[0]); err != nil || len(have) > 0 {
		t.Errorf("%d entries of files that were refused, %v", len(have), err)
	}
	if r := at.cli(t, "admin", "import", filepath.Join(home, "none.jsonl")); r.code == 0 {
		t.Error("a file that is not there was imported")
	}

	at.cli(t, "admin", "import", file).ok(t).says(t, "150 entries of node alone added, 0 were there already")
	at.cli(t, "admin", "import", file).ok(t).says(t, "0 entries of node alone added, 150 were there already")
	keep(t, dir, map[string]string{"key.7": `{"n":"another"}`, "key.new": `{"n":"new"}`})
	alone = startNode(t, "--data-dir", dir)
	again := alone.cli(t, "admin", "export", "-").ok(t).out
	at.importing(t, again).ok(t).says(t, "1 entries of node alone added, 149 were there already", "left as it is, since it has another value here: notes key.7")
	values["key.new"] = `{"n":"new"}`
	c.kill(c.members[2]) // what was acknowledged is on the others
	for _, m := range c.members[:2] {
		eventually(t, 10*time.Second, func() string { // the killed node may have led the bucket
			have, err := c.notes(t, m)
			if err != nil || len(have) != len(values) {
				return fmt.Sprintf("%d entries at %s, want %d; %v", len(have), m.name, len(values), err)
			}
			for key, want := range values {
				if have[key] != want {
					return fmt.Sprintf("%s at %s is %.80q, want %.80q", key, m.name, have[key], want)
				}
			}
			return ""
		})
	}

	refused = run(t, 20*time.Second, "", ripstop(t), append([]string{"start", "--data-dir", filepath.Join(c.dir, "n3")}, addresses(t)...)...)
	if refused.code == 0 {
		t.Error("a cluster's directory was opened by a node on its own")
	}
	refused.says(t, "belongs to a clustered node", "--cluster-addr and --peers")
}

func addresses(t testing.TB) []string {
	return []string{"--nats-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}
}

// importing runs `ripstop admin import -` on text.
func (n *node) importing(t testing.TB, text string) result {
	t.Helper()
	return run(t, 30*time.Second, text, ripstop(t), "admin", "import", "-", "--nats", n.nats)
}

// notes reads the imported bucket through m, as the operator may; nil if there is
// none.
func (c *cluster) notes(t testing.TB, m *member) (map[string]string, error) {
	nc, err := c.operator(m)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	b, err := js.KeyValue(t.Context(), "notes_local_g1")
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := b.Status(t.Context())
	if err != nil {
		return nil, err
	}
	if info := st.(*jetstream.KeyValueBucketStatus).StreamInfo(); info.Config.Replicas != 3 {
		return nil, fmt.Errorf("the imported bucket has %d replicas", info.Config.Replicas)
	}
	have := map[string]string{}
	for key := range kept() {
		if err := note(t, b, key, have); err != nil {
			return nil, err
		}
	}
	return have, note(t, b, "key.new", have)
}

func note(t testing.TB, b jetstream.KeyValue, key string, have map[string]string) error {
	e, err := b.Get(t.Context(), key)
	if err == nil {
		have[key] = string(e.Value())
	}
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	return err
}
