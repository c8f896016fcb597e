package fabric

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// access is what may change about who gets in, while the node runs.
type access struct {
	logins *logins
	routes *TLS // nil = in clear

	mu      sync.Mutex
	options *server.Options // as the server was last given them
	trusted *Certificates   // whose CA the side that connects a route verifies with
}

// guard makes the node itself decide who gets in. It is called between
// NewServer and Start.
func (n *Node) guard(srv *server.Server, so *server.Options, opts Options) {
	n.access.logins = newLogins(srv, so)
	n.access.options = so.Clone()
	if opts.Cluster != nil && opts.Cluster.TLS != nil {
		n.access.routes = opts.Cluster.TLS
		n.access.trusted = opts.Cluster.TLS.now.Load()
	}
	so.CustomClientAuthentication = n.access.logins
}

func (o Options) clientAuth() tls.ClientAuthType {
	if o.Verify {
		return tls.RequireAndVerifyClientCert
	}
	return tls.NoClientCert
}

func scheme(so *server.Options) string {
	if so.TLSConfig != nil {
		return "tls://"
	}
	return "nats://"
}

// Reload replaces tokens and users. Connections live on, but for those of users
// that are gone or may do something else now. It also makes new routes trust
// the CA that Cluster.TLS uses by now; listeners need no telling.
//
// On error nothing has changed, unless it says otherwise.
func (n *Node) Reload(tokens Tokens, users []User) error {
	so, err := n.parse(tokens, users)
	if err != nil {
		return err
	}
	next, last := tableOf(so), n.access.logins.now.Load()
	switch {
	case next.open != "" && last.open == "":
		return errors.New("reload: without a token and users everyone could connect; restart the node if that is meant")
	case next.open == "" && last.open != "":
		return errors.New("reload: the node was started open to all; restart it to demand tokens, since those connected have none")
	}
	if err := n.trust(); err != nil {
		return err
	}
	return n.access.logins.use(next)
}

// trust makes new routes verify with the CA in use by now.
func (n *Node) trust() error {
	a := &n.access
	if a.routes == nil || a.routes.now.Load().SameCA(a.trusted) {
		return nil
	}
	now := a.routes.now.Load()
	err := n.reloadOptions(func(so *server.Options) { so.Cluster.TLSConfig = a.routes.Routes() })
	if err != nil {
		return fmt.Errorf("use new CA for routes: %w", err)
	}
	a.trusted = now
	return nil
}

// reloadOptions changes the server's options while it runs. Connections are
// kept: see logins.
func (n *Node) reloadOptions(change func(*server.Options)) error {
	a := &n.access
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.options.Clone()
	if addr, ok := n.srv.Addr().(*net.TCPAddr); ok { // it may have been left to the system
		next.Port = addr.Port
	}
	if addr := n.srv.ClusterAddr(); addr != nil {
		next.Cluster.Port = addr.Port
	}
	change(next)
	if err := n.srv.ReloadOptions(next.Clone()); err != nil {
		return fmt.Errorf("reload NATS server: %w", err)
	}
	a.options = next
	return nil
}
