package fabric

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Accounts of the embedded server. Buckets and control traffic between nodes
// are in an account that no MCP client or agent has a user of, so that nothing
// can be written behind a node's back.
const (
	accountSystem = "SYS"
	accountFabric = "FABRIC"
	accountMCP    = "MCP"
)

// Users of the node itself, with passwords made anew at every start.
const (
	userSystem = "system"
	userFabric = "fabric"
	userEdge   = "edge"
)

// Users of others: the roles.
const (
	roleClient   = "client"
	roleAgent    = "agent"
	roleOperator = "operator"
)

// How a node of a cluster takes leave of its clients: leaders move, then the
// clients hear of it, have the grace to finish what is under way, and are
// closed over the spread, so that they don't all reconnect at once.
const (
	lameDuckGrace  = 500 * time.Millisecond
	lameDuckSpread = 500 * time.Millisecond
)

type m = map[string]any

// accounts is the part of the configuration that Options fields can't say:
// JetStream for one account.
func (n *Node) accounts(t Tokens, users []User) m {
	open := t.Client == "" && len(users) == 0
	if t.Agent == "" {
		t.Agent = t.Client
	}
	if t.Operator == "" {
		t.Operator = t.Client
	}
	if t.Operator == "" && open { // the nats CLI takes a user without a password for a token
		t.Operator = roleOperator
	}
	// A role without a token is there only where all are open.
	role := func(name, token string, may m) []any {
		if token == "" && !open {
			return nil
		}
		return []any{m{"user": name, "password": token, "permissions": may}}
	}
	conf := m{
		"system_account": accountSystem,
		"accounts": m{
			accountSystem: m{"users": []any{m{"user": userSystem, "password": n.user.system}}},
			accountFabric: m{"jetstream": "enabled", "users": append(
				role(roleOperator, t.Operator, operatorMay),
				m{"user": userFabric, "password": n.user.fabric},
			)},
			accountMCP: m{"users": slices.Concat(
				[]any{m{"user": userEdge, "password": n.user.edge}},
				role(roleClient, t.Client, may(open, clientMay)),
				role(roleAgent, t.Agent, may(open, agentMay)),
				usersConfig(users),
			)},
		},
	}
	if open {
		conf["no_auth_user"] = roleClient
	}
	return conf
}

// may is what a role is allowed. Where everyone is let in, and is the role
// client, agents too, the roles tell nobody apart.
func may(open bool, role m) m {
	if open {
		return m{"publish": ">", "subscribe": ">"}
	}
	return role
}

// Permissions of the roles (docs/wire.md, "Permissions").
var (
	clientMay = m{
		"publish":   []string{"mcp.v1.req.>", "mcp.v1.ctl.>", "ripstop.v1.registry.list", "ripstop.v1.registry.list.*", "ripstop.v1.registry.suspect.*", "$SRV.>"},
		"subscribe": rolesMayRead("ripstop.v1.registry.gone"),
	}
	agentMay = m{
		"publish":   []string{"mcp.v1.>", "ripstop.v1.agent.>", "ripstop.v1.registry.>", "ripstop.v1.session.>", "$SRV.>", "_INBOX.>"},
		"subscribe": rolesMayRead("mcp.v1.>", "ripstop.v1.registry.census", "ripstop.v1.registry.gone", "$SRV.>"),
	}
	// The operator reads, and asks nodes to act; what it may not do is write a
	// bucket.
	operatorMay = m{
		"publish": []string{
			"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.>",
			"$JS.API.STREAM.MSG.GET.>", "$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.>", "$JS.ACK.>", "$JS.FC.>",
			"$SRV.>", "ripstop.v1.admin.>",
		},
		"subscribe": []string{"_INBOX.>", "ripstop.v1.events.>", "ripstop.feed.>"},
	}
)

func (n *Node) serverOptions(opts Options, host string, port int) (*server.Options, error) {
	so, err := n.parse(opts.Tokens, opts.Users)
	if err != nil {
		return nil, err
	}
	so.ServerName = n.Name()
	so.Host, so.Port = host, port
	so.NoSigs = true
	so.MaxPayload = MaxPayload
	so.MaxPending = 4 * MaxPayload
	// A client that hangs is dropped after (MaxPingsOut+1) x PingInterval = 15 s.
	so.PingInterval, so.MaxPingsOut = 5*time.Second, 2
	so.LameDuckGracePeriod, so.LameDuckDuration = lameDuckGrace, lameDuckGrace+lameDuckSpread
	so.JetStream = n.Voter()
	so.StoreDir = n.storeDir()
	so.SyncAlways = true // an acknowledged write survives power loss
	if opts.TLS != nil {
		so.TLSConfig = opts.TLS.Listener(opts.clientAuth())
	}
	if opts.Cluster == nil {
		return so, nil
	}
	return so, clusterOptions(so, opts.Cluster, n.Region())
}

func (n *Node) storeDir() string { return filepath.Join(n.dir.path, "jetstream") }

func clusterOptions(so *server.Options, c *Cluster, region string) error {
	host, port, err := splitAddr("cluster", c.Addr)
	if err != nil {
		return err
	}
	so.Cluster = server.ClusterOpts{
		Name: clusterName(region), Host: host, Port: port, Advertise: c.Advertise,
		Username: "route", Password: c.password(region),
	}
	if c.TLS != nil {
		so.Cluster.TLSConfig = c.TLS.Routes()
	}
	c.Timing.Configure(so)
	return nil
}

func clusterName(region string) string { return "ripstop-" + region }

// Generation counts how often a region's history was forced or rebuilt. Buckets
// and the credentials of routes carry it: a server of an older one can't join.
const Generation = 1

// password is what routes authenticate with. It differs with the region, its
// generation and who may vote, so that a node which was told otherwise can't
// join, and form a second history.
func (c *Cluster) password(region string) string {
	voters := c.Voters
	if len(voters) == 0 {
		voters = c.Peers
	}
	mac := hmac.New(sha256.New, []byte(c.Secret))
	fmt.Fprintf(mac, "route\n%s\ng%d\n%s", region, Generation, strings.Join(slices.Sorted(slices.Values(voters)), "\n")) // a hash takes everything
	return hex.EncodeToString(mac.Sum(nil))
}
