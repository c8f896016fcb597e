package fabric

import (
	"fmt"
	"slices"

	"github.com/nats-io/nats-server/v2/server"
)

// Roster returns who votes as this node has it on disk; nil before it has heard.
func (n *Node) Roster() []string {
	n.rosterMu.Lock()
	defer n.rosterMu.Unlock()
	return slices.Clone(n.dir.identity.Voters)
}

// SetRoster keeps who votes for the next start, and starts JetStream on a relay
// that is named. A node that votes and is named no more was removed: its server
// goes on until it is stopped, and does not start again under this name.
func (n *Node) SetRoster(voters []string, removed bool) error {
	n.rosterMu.Lock()
	defer n.rosterMu.Unlock()
	if id := n.dir.identity; !slices.Equal(id.Voters, voters) || id.Removed != removed {
		err := n.dir.update(func(id *identity) { id.Voters, id.Removed = slices.Clone(voters), removed })
		if err != nil {
			return err
		}
	}
	if n.Voter() || !slices.Contains(voters, n.Name()) {
		return nil
	}
	n.log.Info("this relay becomes a voter: JetStream starts")
	err := n.srv.EnableJetStream(&server.JetStreamConfig{StoreDir: n.storeDir()})
	if err != nil {
		return fmt.Errorf("start JetStream on node %s: %w", n.Name(), err)
	}
	n.voter.Store(true)
	return nil
}
