package fabric

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/discovery"
	"ripstop/fabric/raft"
)

// MaxPayload is the largest NATS message the fabric carries, in bytes: an MCP
// message of 16 MiB and its headers, with room to spare.
const MaxPayload = 20 << 20

// DefaultRegion is the region of a node that was given none.
const DefaultRegion = "local"

// Options configure a node's NATS server.
type Options struct {
	Name    string // server name; "" = the one kept in DataDir, or a new one
	Region  string // one token of a-z, 0-9 and '-'; "" = DefaultRegion
	Addr    string // client listener, host:port; port 0 picks a free one
	DataDir string // created if missing, locked while the node runs
	Tokens  Tokens
	Users   []User   // of account MCP, besides the roles
	TLS     *TLS     // of the client listener; nil = in clear
	Verify  bool     // with TLS: demand a certificate of clients
	Cluster *Cluster // nil = a node on its own
	Logger  *slog.Logger
}

// Tokens are the passwords of the built-in roles, which are NATS users of the
// same names. Without a client's token and users whoever can connect may use
// MCP.
type Tokens struct {
	Client   string // MCP: calls servers
	Agent    string // MCP: attaches servers, and calls them; "" = Client
	Operator string // FABRIC: reads buckets, runs admin commands; "" = Client, or "operator" without one
}

// Cluster makes a node one of several that form a region.
type Cluster struct {
	Addr      string   // listener for routes, host:port
	Advertise string   // host:port at which others reach it; "" = Addr
	Peers     []string // cluster addresses, host:port; one may stand for many
	Voters    []string // names of the first voters; nil = the nodes at Peers
	Secret    string   // shared by all nodes of the cluster; "" = none
	TLS       *TLS     // of routes, which both sides verify; nil = in clear

	Timing raft.Timing // the same on every node; zero = raft.LAN()
}

// votes are the sizes a cluster's meta group may have. An even number would
// tolerate no more failures than the odd one below it.
var votes = []int{3, 5}

// check refuses what can't become a cluster, and completes the peers' ports.
func (c *Cluster) check() error {
	if _, _, err := splitAddr("cluster", c.Addr); err != nil {
		return err
	}
	if c.Advertise != "" {
		if _, _, err := splitAddr("cluster", c.Advertise); err != nil {
			return err
		}
	}
	peers, err := discovery.Parse(c.Peers)
	if err != nil {
		return err
	}
	c.Peers = peers.Strings()
	n, what := len(c.Voters), "--voters"
	if n == 0 {
		n, what = len(c.Peers), "--peers"
	}
	switch {
	case len(c.Peers) == 0:
		return errors.New("a cluster needs --peers: the cluster addresses of its nodes, this one among them")
	case n == 1 && len(c.Voters) == 0 && peers[0].IsName():
		return fmt.Errorf("--peers %s is one DNS name, which may stand for many nodes: say who votes, with --voters n1,n2,n3", c.Peers[0])
	case n == 1:
		return fmt.Errorf("%s names one node: a cluster of one elects nobody; name 3 or 5, or leave --cluster-addr out for a node on its own", what)
	case n == 2:
		return fmt.Errorf("%s names two nodes: neither could go on without the other; name 3 or 5 (a third may be a small machine)", what)
	case !slices.Contains(votes, n):
		return fmt.Errorf("%s names %d nodes: 3 or 5 of them vote; name the voters with --voters, the rest become relays", what, n)
	}
	sorted := slices.Sorted(slices.Values(c.Voters))
	if len(slices.Compact(sorted)) != len(c.Voters) {
		return fmt.Errorf("--voters %s names a node twice", strings.Join(c.Voters, ","))
	}
	return nil
}

// size is how many nodes vote.
func (c *Cluster) size() int {
	if len(c.Voters) > 0 {
		return len(c.Voters)
	}
	return len(c.Peers)
}

// votes reports whether the node called name is one of the first voters.
func (c *Cluster) votes(name string) bool {
	if len(c.Voters) > 0 {
		return slices.Contains(c.Voters, name)
	}
	return slices.ContainsFunc(c.Peers, c.own)
}

// own reports whether a peer's address is this node's.
func (c *Cluster) own(peer string) bool {
	if peer == c.Addr || peer == c.Advertise {
		return true
	}
	host, port, err := net.SplitHostPort(c.Addr)
	peerHost, peerPort, err2 := net.SplitHostPort(peer)
	if err != nil || err2 != nil || port != peerPort || c.Advertise != "" {
		return false
	}
	// Listening on every interface: an address of one of them is this node's.
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return false
	}
	mine, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	addrs, err := net.LookupHost(peerHost)
	if err != nil {
		return false
	}
	for _, a := range mine {
		if n, ok := a.(*net.IPNet); ok && slices.Contains(addrs, n.IP.String()) {
			return true
		}
	}
	return false
}

func splitAddr(what, addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%s address %q is not host:port, such as 127.0.0.1:4222", what, addr)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// checkRegion checks a region's name: it becomes a token of subjects and
// buckets.
func checkRegion(region string) error {
	ok := region != "" && len(region) <= 32 && region[0] != '-' && region[len(region)-1] != '-'
	for _, c := range []byte(region) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("region %q: use up to 32 lower-case letters, digits and '-'", region)
	}
	return nil
}
