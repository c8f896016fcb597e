package fabric_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/addrtest"
	"ripstop/fabric/raft"
)

// freePorts returns loopback addresses nobody listens on.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		addrs = append(addrs, addrtest.Reserve(t))
	}
	return addrs
}

func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// TestThreeNodesAndARelay forms a cluster out of four nodes of which three
// vote, and writes through the relay, which holds nothing.
func TestThreeNodesAndARelay(t *testing.T) {
	peers := freePorts(t, 3)
	var nodes []*fabric.Node
	for i, addr := range append(peers, "127.0.0.1:0") {
		nodes = append(nodes, open(t, fabric.Options{
			Name: fmt.Sprintf("n%d", i+1), Region: "eu",
			Cluster: &fabric.Cluster{Addr: addr, Peers: peers, Voters: []string{"n1", "n2", "n3"}, Secret: "a secret that nodes share"},
		}))
	}
	relay := nodes[3]
	if relay.Voter() || !nodes[0].Voter() {
		t.Errorf("voters: %v %v, want the first and not the last", nodes[0].Voter(), relay.Voter())
	}
	js, err := jetstream.New(relay.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		_, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
		return err
	})
	eventually(t, 5*time.Second, func() error {
		if n := len(relay.Routes().Peers()); n != 3 {
			return fmt.Errorf("the relay has routes to %d nodes", n)
		}
		return nil
	})
	if leader := raft.MetaLeader(nodes[0].Server()); leader == "" {
		t.Error("no meta leader")
	}
}

// TestNameThatRunsIsRefused: a second node of one name does not start.
func TestNameThatRunsIsRefused(t *testing.T) {
	peers := freePorts(t, 3)
	open(t, fabric.Options{Name: "a", Cluster: &fabric.Cluster{Addr: peers[0], Peers: peers}})
	n, err := fabric.Open(t.Context(), fabric.Options{
		Name: "a", Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet(), Cluster: &fabric.Cluster{Addr: peers[1], Peers: peers},
	})
	if err == nil {
		n.Close()
		t.Fatal("started")
	}
	if !errors.Is(err, fabric.ErrDuplicate) || !strings.Contains(err.Error(), "--name") {
		t.Errorf("error = %q", err)
	}
}

// TestAnotherSecretStaysOut: a node that was told another secret, region or set
// of voters does not get in.
func TestAnotherSecretStaysOut(t *testing.T) {
	peers := freePorts(t, 3)
	member := func(name, addr, secret string, peers []string) *fabric.Node {
		return open(t, fabric.Options{Name: name, Cluster: &fabric.Cluster{Addr: addr, Peers: peers, Secret: secret}})
	}
	a := member("a", peers[0], "one", peers)
	b := member("b", peers[1], "one", peers)
	c := member("c", peers[2], "two", peers)
	eventually(t, 10*time.Second, func() error {
		if len(a.Routes().Peers()) != 1 || len(b.Routes().Peers()) != 1 {
			return fmt.Errorf("a sees %d, b %d", len(a.Routes().Peers()), len(b.Routes().Peers()))
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		if w := fmt.Sprint(c.Search().Warnings); !strings.Contains(w, "--secret-file") {
			return fmt.Errorf("the node with another secret is warned of %s", w)
		}
		return nil
	})
}
