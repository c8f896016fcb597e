package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// registryStream is the stream of the registry's bucket.
const registryStream = "KV_registry_local_g1"

// streamInfo is what JetStream says of a stream (server.StreamInfo), as far as
// the tests need it.
type streamInfo struct {
	Cluster struct {
		Leader   string `json:"leader"`
		Replicas []struct {
			Name    string `json:"name"`
			Current bool   `json:"current"`
			Offline bool   `json:"offline"`
			Lag     uint64 `json:"lag"`
		} `json:"replicas"`
	} `json:"cluster"`
	Config struct {
		Replicas int `json:"num_replicas"`
	} `json:"config"`
	State struct {
		Messages uint64 `json:"messages"`
		Last     uint64 `json:"last_seq"`
	} `json:"state"`
	Error *struct {
		Description string `json:"description"`
	} `json:"error"`
}

// behind says what keeps a node's replica from being current, or "".
func (i streamInfo) behind(node string) string {
	if i.Cluster.Leader == node {
		return ""
	}
	for _, r := range i.Cluster.Replicas {
		if r.Name == node {
			if r.Current && !r.Offline && r.Lag == 0 {
				return ""
			}
			return fmt.Sprintf("replica of %s: current %v, offline %v, lag %d", node, r.Current, r.Offline, r.Lag)
		}
	}
	return fmt.Sprintf("%s has no replica; leader %q, replicas %v", node, i.Cluster.Leader, i.Cluster.Replicas)
}

// operator connects to m as the built-in role, who may read buckets.
func (c *cluster) operator(m *member) (*nats.Conn, error) {
	return nats.Connect("nats://"+m.nats, nats.UserInfo("operator", "operator"), nats.NoReconnect(), nats.Timeout(time.Second))
}

// stream asks for the registry's stream, at whichever node answers.
func (c *cluster) stream() (streamInfo, error) {
	err := errors.New("no node is up")
	for _, m := range c.members {
		if !m.up {
			continue
		}
		var info streamInfo
		if info, err = c.streamAt(m); err == nil {
			return info, nil
		}
	}
	return streamInfo{}, err
}

func (c *cluster) streamAt(m *member) (streamInfo, error) { return c.streamOf(m, registryStream) }

// streamOf asks m for a stream.
func (c *cluster) streamOf(m *member, name string) (streamInfo, error) {
	var info streamInfo
	nc, err := c.operator(m)
	if err != nil {
		return info, fmt.Errorf("ask %s: %w", m.name, err)
	}
	defer nc.Close()
	msg, err := nc.Request("$JS.API.STREAM.INFO."+name, nil, time.Second)
	if err != nil {
		return info, fmt.Errorf("ask %s for stream %s: %w", m.name, name, err)
	}
	if err := json.Unmarshal(msg.Data, &info); err != nil {
		return info, err
	}
	if info.Error != nil {
		return info, fmt.Errorf("ask %s for stream %s: %s", m.name, name, info.Error.Description)
	}
	if info.Cluster.Leader == "" {
		return info, fmt.Errorf("%s knows no leader of stream %s", m.name, name)
	}
	return info, nil
}

// leader is the node that leads the registry's bucket.
func (c *cluster) leader() *member {
	c.t.Helper()
	var leader *member
	eventually(c.t, clusterTimeout, func() string {
		info, err := c.stream()
		if err != nil {
			return err.Error()
		}
		leader = c.byName(info.Cluster.Leader)
		return ""
	})
	return leader
}
