package fabric_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
)

// as connects as a role, and returns what the server refuses.
func as(t *testing.T, n *fabric.Node, user, token string) (*nats.Conn, chan error) {
	t.Helper()
	refused := make(chan error, 16)
	nc, err := nats.Connect(n.ClientURL(), nats.UserInfo(user, token), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, refused
}

// TestRolesMayWhatTheyNeed tries, for each role, what it is for and what it is
// kept from, on a real server.
func TestRolesMayWhatTheyNeed(t *testing.T) {
	n := open(t, fabric.Options{Tokens: fabric.Tokens{Client: "client-token", Agent: "agent-token", Operator: "operator-token"}})
	for _, tt := range []struct {
		user, subject  string
		subscribe, may bool
	}{
		{"client", "mcp.v1.req.demo.tools.call.echo", false, true},
		{"client", "ripstop.v1.registry.list", false, true},
		{"client", "mcp.v1.inst.demo.abcdefghij.tools.call.echo", false, false}, // only edges say who a caller is
		{"client", "ripstop.v1.agent.X.put", false, false},
		{"client", "mcp.v1.req.>", true, false}, // would see, and answer, others' calls
		{"agent", "mcp.v1.req.demo.>", true, true},
		{"agent", "ripstop.v1.agent.X.put", false, true},
		{"agent", "ripstop.v1.admin.drain", false, false},
		{"operator", "ripstop.v1.admin.drain", false, true},
		{"operator", "$JS.API.STREAM.DELETE.KV_registry", false, false},
		{"operator", "$KV.registry.demo.x", false, false},
	} {
		nc, refused := as(t, n, tt.user, tt.user+"-token")
		var err error
		if tt.subscribe {
			_, err = nc.SubscribeSync(tt.subject)
		} else {
			err = nc.Publish(tt.subject, nil)
		}
		if err == nil {
			err = nc.Flush() // a refusal comes before the answer to this
		}
		if err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
			t.Fatal(err)
		}
		select {
		case err = <-refused:
		case <-time.After(50 * time.Millisecond):
		}
		if (err == nil) != tt.may {
			t.Errorf("%s, %s (subscribe: %v): %v, want allowed = %v", tt.user, tt.subject, tt.subscribe, err, tt.may)
		}
	}
}

// TestBucketsAreNotTheClients: neither a client nor an agent reaches a bucket;
// the operator reads it.
func TestBucketsAreNotTheClients(t *testing.T) {
	n := open(t, fabric.Options{})
	js, err := jetstream.New(n.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	for user, may := range map[string]bool{"client": false, "agent": false, "operator": true} {
		password := map[bool]string{true: "operator"}[may]
		nc, _ := as(t, n, user, password)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.KeyValue(t.Context(), "b")
		if (err == nil) != may {
			t.Errorf("%s opens a bucket: %v", user, err)
		}
		if err != nil {
			continue
		}
		if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value()) != "v" {
			t.Errorf("%s reads %v, %v", user, e, err)
		}
	}
}

func TestClusterRefuses(t *testing.T) {
	three := []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}
	for name, tt := range map[string]struct {
		c    fabric.Cluster
		want string
	}{
		"no peers":    {fabric.Cluster{Addr: "127.0.0.1:0"}, "--peers"},
		"one":         {fabric.Cluster{Addr: "127.0.0.1:0", Peers: three[:1]}, "elects nobody"},
		"one name":    {fabric.Cluster{Addr: "127.0.0.1:0", Peers: []string{"nodes.example:6222"}}, "--voters"},
		"two":         {fabric.Cluster{Addr: "127.0.0.1:0", Peers: three[:2]}, "name 3 or 5"},
		"four voters": {fabric.Cluster{Addr: "127.0.0.1:0", Peers: three, Voters: []string{"a", "b", "c", "d"}}, "3 or 5"},
		"voter twice": {fabric.Cluster{Addr: "127.0.0.1:0", Peers: three, Voters: []string{"a", "b", "a"}}, "twice"},
		"bad peer":    {fabric.Cluster{Addr: "127.0.0.1:0", Peers: []string{"x:y:z"}}, "x:y:z"},
		"bad address": {fabric.Cluster{Addr: "nowhere", Peers: three}, "host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := fabric.Open(t.Context(), fabric.Options{Name: "a", Addr: "127.0.0.1:0", DataDir: t.TempDir(), Cluster: &tt.c, Logger: quiet()})
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

// TestModeIsKept: a directory written in one mode is not opened in the other,
// which would delete or hide its data.
func TestModeIsKept(t *testing.T) {
	dir := t.TempDir()
	n, err := fabric.Open(t.Context(), fabric.Options{Name: "a", Addr: "127.0.0.1:0", DataDir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if n.Incarnation() != 1 {
		t.Errorf("first incarnation = %d", n.Incarnation())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	c := &fabric.Cluster{Addr: "127.0.0.1:0", Peers: []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}}
	_, err = fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: dir, Cluster: c, Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "admin export") {
		t.Errorf("opened clustered: %v", err)
	}
	_, err = fabric.Open(t.Context(), fabric.Options{Region: "eu", Addr: "127.0.0.1:0", DataDir: dir, Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "--region local") {
		t.Errorf("opened in another region: %v", err)
	}
	again := open(t, fabric.Options{DataDir: dir})
	if again.Incarnation() != 2 {
		t.Errorf("second incarnation = %d", again.Incarnation())
	}
}
