package fabric_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, opts fabric.Options) *fabric.Node {
	t.Helper()
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1:0"
	}
	if opts.DataDir == "" {
		opts.DataDir = t.TempDir()
	}
	opts.Logger = quiet()
	n, err := fabric.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestStoreSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	put := func(n *fabric.Node) {
		js, err := jetstream.New(n.Fabric())
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Create(t.Context(), "k", []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	opts := fabric.Options{Addr: "127.0.0.1:0", DataDir: dir, Logger: quiet()}
	n, err := fabric.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	name := n.Name()
	put(n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, fabric.Options{DataDir: dir})
	if again.Name() != name {
		t.Errorf("name = %q after restart, was %q", again.Name(), name)
	}
	js, _ := jetstream.New(again.Fabric())
	kv, err := js.KeyValue(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value()) != "v" {
		t.Errorf("Get = %v, %v", e, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	held := open(t, fabric.Options{DataDir: t.TempDir()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	damaged := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	named := t.TempDir()
	clustered := t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(damaged, "node.json"):   "{",
		filepath.Join(named, "node.json"):     `{"name":"a","mode":"standalone","region":"local"}`,
		filepath.Join(clustered, "node.json"): `{"name":"a","mode":"clustered","region":"local"}`,
		file:                                  "x",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_ = held
	for name, tt := range map[string]struct {
		opts fabric.Options
		want string
	}{
		"port in use":     {fabric.Options{Addr: l.Addr().String()}, "--nats-addr"},
		"bad address":     {fabric.Options{Addr: "nonsense"}, "host:port"},
		"bad port":        {fabric.Options{Addr: "127.0.0.1:99999"}, "host:port"},
		"not a directory": {fabric.Options{DataDir: file}, "--data-dir"},
		"damaged":         {fabric.Options{DataDir: damaged}, "damaged"},
		"renamed":         {fabric.Options{DataDir: named, Name: "b"}, `belongs to node "a"`},
		"clustered":       {fabric.Options{DataDir: clustered}, "clustered"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.opts.Logger = quiet()
			if tt.opts.Addr == "" {
				tt.opts.Addr = "127.0.0.1:0"
			}
			if tt.opts.DataDir == "" {
				tt.opts.DataDir = t.TempDir()
			}
			n, err := fabric.Open(t.Context(), tt.opts)
			if err == nil {
				n.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func TestSecondNodeOnOneDirectoryRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, fabric.Options{DataDir: dir})
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: dir, Logger: quiet()})
	if err == nil {
		n.Close()
		t.Fatal("opened a locked directory")
	}
	if !strings.Contains(err.Error(), "in use") {
		t.Errorf("error = %q", err)
	}
}

func TestTokenIsDemanded(t *testing.T) {
	n := open(t, fabric.Options{Tokens: fabric.Tokens{Client: "s3cret"}})
	if nc, err := nats.Connect(n.ClientURL()); err == nil {
		nc.Close()
		t.Error("connected without a token")
	}
	nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("client", "s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestDisconnectIsReported(t *testing.T) {
	n := open(t, fabric.Options{})
	gone := make(chan uint64, 16)
	if err := n.OnDisconnect(func(_ string, id uint64) { gone <- id }); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(n.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	id, _ := nc.GetClientID()
	if !n.Connected(nc.ConnectedServerId(), id) {
		t.Error("an open connection is not Connected")
	}
	server := nc.ConnectedServerId()
	nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	for {
		select {
		case got := <-gone:
			if got == id {
				if n.Connected(server, id) {
					t.Error("a closed connection is Connected")
				}
				return
			}
		case <-ctx.Done():
			t.Fatal("no disconnect event")
		}
	}
}
