package fabric

import "github.com/nats-io/nats-server/v2/server"

// SendAway tells the clients of this node, other than its own, that it will shut
// down (NATS lame duck mode), so that they connect to another one while this one
// still serves them. It returns how many were told. A node on its own tells
// nobody: there is nowhere to go.
func (n *Node) SendAway() int {
	if !n.Clustered() {
		return 0
	}
	z, err := n.srv.Connz(&server.ConnzOptions{Username: true, State: server.ConnOpen, Limit: n.srv.NumClients() + 1024})
	if err != nil {
		n.log.Warn("clients are not told that the node stops", "err", err)
		return 0
	}
	told := 0
	for _, c := range z.Conns {
		switch c.AuthorizedUser {
		case userSystem, userFabric, userEdge:
			continue
		}
		if n.srv.LDMClientByID(c.Cid) == nil { // else it is gone, or too old a client
			told++
		}
	}
	return told
}
