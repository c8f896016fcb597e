package kv_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/kv"
)

func exportLab(t *testing.T) jetstream.JetStream {
	t.Helper()
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	js, err := jetstream.New(n.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func exportBucket(t *testing.T, js jetstream.JetStream, name string, values map[string]string) {
	t.Helper()
	b, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: name})
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range values {
		if _, err := b.Put(t.Context(), k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExportIntoAnother moves data from one node into another, which has some
// of it, and something else under one key.
func TestExportIntoAnother(t *testing.T) {
	from, to := exportLab(t), exportLab(t)
	exportBucket(t, from, "sessions_local_g1", map[string]string{"a": `{"v":1}`, "b": `{"v":2}`, "c": `{"v":3}`})
	exportBucket(t, from, "registry_local_g1", map[string]string{"demo.x": `{"live":true}`})
	exportBucket(t, to, "sessions_eu_g4", map[string]string{"b": `{"v":2}`, "c": `{"v":"mine"}`})

	var file bytes.Buffer
	n, err := kv.Export(t.Context(), from, kv.ExportHeader{Node: "n1", Region: "local"}, &file)
	if err != nil || n != 3 {
		t.Fatalf("exported %d, %v; want the 3 sessions and not the registry", n, err)
	}
	open := func(ctx context.Context, kind string) (jetstream.KeyValue, error) {
		return to.KeyValue(ctx, kind+"_eu_g4")
	}
	res, err := kv.Import(t.Context(), bytes.NewReader(file.Bytes()), open)
	if err != nil || res.Added != 1 || res.Same != 1 || len(res.Conflicts) != 1 || res.Header.Node != "n1" {
		t.Fatalf("import: %+v, %v", res, err)
	}
	b, _ := to.KeyValue(t.Context(), "sessions_eu_g4")
	for key, want := range map[string]string{"a": `{"v":1}`, "c": `{"v":"mine"}`} {
		if e, err := b.Get(t.Context(), key); err != nil || string(e.Value()) != want {
			t.Errorf("%s = %v, %v; want %s", key, e, err, want)
		}
	}
	res, err = kv.Import(t.Context(), bytes.NewReader(file.Bytes()), open)
	if err != nil || res.Added != 0 || res.Same != 2 {
		t.Errorf("repeated: %+v, %v", res, err)
	}
}

func TestDamagedExportsAreRefusedWhole(t *testing.T) {
	js := exportLab(t)
	exportBucket(t, js, "sessions_local_g1", map[string]string{"a": `{"v":1}`, "b": `{"v":2}`})
	var file bytes.Buffer
	if _, err := kv.Export(t.Context(), js, kv.ExportHeader{Node: "n1"}, &file); err != nil {
		t.Fatal(err)
	}
	text := file.String()
	lines := strings.SplitAfter(text, "\n")
	open := func(context.Context, string) (jetstream.KeyValue, error) {
		t.Error("a bucket was opened for a file that does not hold")
		return nil, context.Canceled
	}
	for name, tt := range map[string]struct{ text, want string }{
		"empty":        {"", "cut short"},
		"no export":    {"{}\n", "no file"},
		"cut":          {strings.Join(lines[:2], ""), "cut short"},
		"cut in line":  {text[:len(text)-5], "cut short"},
		"changed":      {strings.Replace(text, `"v":1`, `"v":7`, 1), "sum"},
		"line missing": {lines[0] + lines[2] + lines[3], "sum"},
		"goes on":      {text + lines[1], "after its end"},
		"newer":        {strings.Replace(text, `"ripstop_export":1`, `"ripstop_export":9`, 1), "format 9"},
	} {
		_, err := kv.Import(t.Context(), strings.NewReader(tt.text), open)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
