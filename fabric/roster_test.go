package fabric_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/raft"
)

// TestARelayTakesTheVoteOfOneThatIsGone: three voters and a relay; a voter is
// lost for good, the relay votes in its place, and holds what it held.
func TestARelayTakesTheVoteOfOneThatIsGone(t *testing.T) {
	peers := freePorts(t, 4)
	voters := []string{"n1", "n2", "n3"}
	dirs := map[string]string{}
	member := func(name, addr string) *fabric.Node {
		if dirs[name] == "" {
			dirs[name] = t.TempDir()
		}
		n, err := fabric.Open(t.Context(), fabric.Options{
			Name: name, Addr: "127.0.0.1:0", DataDir: dirs[name], Logger: quiet(),
			Cluster: &fabric.Cluster{Addr: addr, Peers: peers, Voters: voters},
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n1, n2, n3, n4 := member("n1", peers[0]), member("n2", peers[1]), member("n3", peers[2]), member("n4", peers[3])
	defer func() {
		for _, n := range []*fabric.Node{n4, n2, n1} {
			n.Close()
		}
	}()
	js, err := jetstream.New(n1.Fabric())
	if err != nil {
		t.Fatal(err)
	}
	var kv jetstream.KeyValue
	eventually(t, 20*time.Second, func() error {
		kv, err = js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
		return err
	})
	if _, err := kv.Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := n3.Close(); err != nil {
		t.Fatal(err)
	}
	next := []string{"n1", "n2", "n4"}
	if err := n4.SetRoster(next, false); err != nil {
		t.Fatal(err)
	}
	if !n4.Voter() {
		t.Error("the relay was not promoted")
	}
	eventually(t, 20*time.Second, func() error {
		for _, g := range raft.Groups(n1.Server()) {
			for _, p := range g.Peers {
				if g.Name == raft.MetaGroup && p.Name == "n4" {
					return nil
				}
			}
		}
		return fmt.Errorf("n4 is not in the meta group: %+v", raft.Groups(n1.Server()))
	})
	remove, err := json.Marshal(server.JSApiMetaServerRemoveRequest{Peer: raft.PeerID("n3")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		msg, err := n1.System().Request(server.JSApiRemoveServer, remove, time.Second)
		if err == nil && strings.Contains(string(msg.Data), `"error"`) {
			err = fmt.Errorf("%s", msg.Data)
		}
		return err
	})
	eventually(t, 20*time.Second, func() error {
		s, err := js.Stream(t.Context(), "KV_b")
		if err != nil {
			return err
		}
		c := s.CachedInfo().Cluster
		names := []string{c.Leader}
		for _, r := range c.Replicas {
			if r.Current {
				names = append(names, r.Name)
			}
		}
		for _, want := range next {
			if !strings.Contains(strings.Join(names, " "), want) {
				return fmt.Errorf("replicas that are current: %v, want %v", names, next)
			}
		}
		return nil
	})
	// What was promoted starts as a voter, whatever it is told; what was removed
	// does not start.
	if err := n4.Close(); err != nil {
		t.Fatal(err)
	}
	n4 = member("n4", peers[3])
	if !n4.Voter() {
		t.Error("the promoted relay starts as a relay again")
	}
}
