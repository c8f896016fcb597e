package kv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/kv"
)

// alone is a connection to a NATS server without JetStream: what a node has that
// starts alone, or a relay that reaches no voter.
func alone(t testing.TB) *nats.Conn {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(5 * time.Second) {
		t.Fatal("no server")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// onDisk makes an index file with records a and b of a far node, and an old one
// of n1 itself.
func onDisk(t testing.TB) string {
	t.Helper()
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "index.db")
	n := l.nodeWith(t, nodeOptions{name: "n2", file: file})
	l.write(t, foreign("demo", "b"))
	l.write(t, foreign("demo", "gone"))
	old := foreign("demo", "old")
	old.Node = "n1"
	l.write(t, old)
	n.shows(t, "demo", "b gone old")
	n.synced(t) // the updates may be heard before it could be compared
	if err := kv.Flush(n.Registry); err != nil {
		t.Fatal(err)
	}
	l.write(t, foreign("demo", "a"))
	if err := l.bucket(t).Purge(t.Context(), "demo.gone"); err != nil {
		t.Fatal(err)
	}
	n.shows(t, "demo", "a b old")
	n.stop(t)
	return file
}

func TestAloneWithAFile(t *testing.T) {
	file := onDisk(t)
	nc := alone(t)
	l := &lab{region: "local"}
	begun := time.Now()
	n := l.nodeWith(t, nodeOptions{name: "n1", file: file, fabric: nc, agents: nc})
	if took := time.Since(begun); took > time.Second {
		t.Errorf("opened after %s", took)
	}
	if got := ids(n, "demo"); got != "a b" { // what it finds of itself is of an earlier run
		t.Errorf("shows %q, want a and b", got)
	}
	if !n.Stale() || n.AsOf().IsZero() || n.Age() > time.Minute {
		t.Errorf("stale %t, as of %s", n.Stale(), n.AsOf())
	}
	n.put(t, n.instance("demo", "own"))
	if got := ids(n, "demo"); got != "a b own" {
		t.Errorf("shows %q after a registration", got)
	}
	if n.registrar.Pending() == 0 {
		t.Error("claims to have written the bucket")
	}
	if err := n.Sync(short(t)); err == nil {
		t.Error("claims to have asked the bucket")
	}
}

// TestFileOfAnEarlierStart: the bucket changed while the node was down.
func TestFileOfAnEarlierStart(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "index.db")
	n := l.nodeWith(t, nodeOptions{name: "n1", file: file})
	l.write(t, foreign("demo", "a"))
	l.write(t, foreign("demo", "b"))
	n.shows(t, "demo", "a b")
	n.stop(t)
	l.write(t, foreign("demo", "c"))
	if err := l.bucket(t).Purge(t.Context(), "demo.a"); err != nil {
		t.Fatal(err)
	}
	n = l.nodeWith(t, nodeOptions{name: "n1", file: file})
	n.shows(t, "demo", "b c")
	n.stop(t)
	nc := alone(t)
	n = l.nodeWith(t, nodeOptions{name: "n1", file: file, fabric: nc, agents: nc})
	if got := ids(n, "demo"); got != "b c" {
		t.Errorf("on disk: %q, want b and c", got)
	}
}

// TestDamagedFiles: whatever happened to the file, the node starts, with nothing
// that is wrong, and the file is good again.
func TestDamagedFiles(t *testing.T) {
	good, err := os.ReadFile(onDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"junk":      func([]byte) []byte { return []byte("this is no database, but a text of some length") },
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"one page":  func(b []byte) []byte { return b[:4096] },
		"zeroed":    func(b []byte) []byte { clear(b[8192:]); return b },
	}
	for at := 0; at < len(good); at += 509 {
		damage[fmt.Sprint("flip ", at)] = func(b []byte) []byte { b[at] ^= 0xff; return b }
	}
	nc := alone(t)
	l := &lab{region: "local"}
	for name, f := range damage {
		file := filepath.Join(t.TempDir(), "index.db")
		if err := os.WriteFile(file, f(append([]byte(nil), good...)), 0o600); err != nil {
			t.Fatal(err)
		}
		n := l.nodeWith(t, nodeOptions{name: "n1", file: file, fabric: nc, agents: nc})
		// Without the last write's page the one before stands: a cache may lose that.
		if got := ids(n, "demo"); got != "a b" && got != "b gone" && got != "" {
			t.Errorf("%s: shows %q", name, got)
		}
		n.stop(t)
	}
}

// TestFileIsFilledAgain: the index knows more than a file made anew.
func TestFileIsFilledAgain(t *testing.T) {
	l := newLab(t)
	l.node(t, "n2")
	l.write(t, foreign("demo", "a"))
	file := filepath.Join(t.TempDir(), "index.db")
	if err := os.WriteFile(file, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := l.nodeWith(t, nodeOptions{name: "n1", file: file})
	n.shows(t, "demo", "a")
	n.stop(t)
	nc := alone(t)
	n = l.nodeWith(t, nodeOptions{name: "n1", file: file, fabric: nc, agents: nc})
	if got := ids(n, "demo"); got != "a" {
		t.Errorf("on disk: %q, want a", got)
	}
}
