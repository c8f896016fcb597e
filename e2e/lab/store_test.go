package lab_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/e2e/lab"
)

// TestReadStore compares what is read from the disk with what was written
// through the server: values, overwritten and removed ones.
func TestReadStore(t *testing.T) {
	dir := t.TempDir()
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Shutdown()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]lab.Entry{}
	for i := range 200 {
		key := fmt.Sprintf("k.%d", i%50)
		rev, err := kv.Put(t.Context(), key, fmt.Appendf(nil, "v%d", i))
		if err != nil {
			t.Fatal(err)
		}
		want[key] = lab.Entry{Seq: rev, Value: fmt.Sprintf("v%d", i)}
	}
	for i := range 10 {
		key := fmt.Sprintf("k.%d", i)
		remove := kv.Purge
		if i%2 == 0 {
			remove = kv.Delete
		}
		if err := remove(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		want[key] = lab.Entry{Seq: uint64(201 + i), Deleted: true}
	}
	nc.Close()
	s.Shutdown()
	s.WaitForShutdown()
	got, err := lab.ReadStore(filepath.Join(dir, "jetstream", "$G", "streams", "KV_b"), "$KV.b.")
	if err != nil {
		t.Fatal(err)
	}
	if diff := lab.Same(map[string]map[string]lab.Entry{"want": want, "got": got}); diff != nil {
		t.Errorf("%q", diff)
	}
	if _, err := lab.ReadStore(t.TempDir(), ""); err == nil {
		t.Error("a store without blocks was read")
	}
}
