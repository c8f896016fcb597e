package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// RouteConfig is what a server's routes follow from.
type RouteConfig struct {
	Peers    Peers
	Own      []string  // this node's cluster addresses, host:port: what it listens at, first, and what others may call it
	Voters   int       // how many voters the cluster begins with; 0 on a relay
	Found    []Finding // of CheckBeforeStart
	Username string    // route credentials
	Password string

	strangers map[string]bool // addresses known to lead elsewhere; see direct

	// TLS says that certificates are verified on routes. Then the server is given
	// names as they are, since it verifies by them, and resolves them itself.
	TLS bool
}

// ErrAlone is returned by [Routes] when no other node is listed.
var ErrAlone = errors.New("--peers lists no node but this one; list the cluster addresses of all voters, or a DNS name for them")

// Routes returns what to put into a server's Options.Routes when it starts: the
// entries that are addresses, and the members found behind those that are names.
// Names themselves stay with the [Finder], unless c.TLS: nats-server would send
// this node's credentials to whatever a name leads to before it asks whose it is,
// and its Shutdown waits for its lookups, 10 s with a resolver that hangs.
//
// On a voter there are exactly c.Voters routes. nats-server takes their number for
// the number of voters when the meta group is made (raft.go, bootstrapRaftNode: at
// least 2), whatever they lead to: with too few, some voters would elect a leader
// among themselves; with too many, nobody could. It is made up with routes to this
// node itself, which end at once when the server meets its own id.
//
// The result is sorted: a reload sorts the slice in place while the server's
// goroutines read it, and sorting what is sorted writes nothing.
func Routes(c RouteConfig) ([]*url.URL, error) {
	if len(c.others()) == 0 {
		return nil, ErrAlone
	}
	c.strangers = strangers(c.Found)
	direct, found := c.initial()
	return c.fill(direct, found), nil
}

// initial returns the routes to start with, apart from those that only count.
func (c RouteConfig) initial() (direct []string, found links) {
	direct, found = c.direct(), links{}
	if c.Voters > 0 {
		direct = direct[:min(len(direct), c.Voters)]
	}
	if c.TLS { // an address can't be verified by its name
		return direct, found
	}
	for _, x := range c.Found {
		if room := c.Voters == 0 || len(direct)+len(found) < c.Voters; room && x.Outcome == Member && !slices.Contains(direct, x.Addr) {
			found[x.Addr] = &link{round: 1, dial: x.Addr}
		}
	}
	return direct, found
}

// fill makes routes, on a voter at least as many as there are voters.
func (c RouteConfig) fill(direct []string, found links) []*url.URL {
	routes := found.routes(c.Username, c.Password)
	for _, e := range direct {
		routes = append(routes, routeURL(e, c.Username, c.Password, ""))
	}
	blanks := []string{c.self()}
	if c.TLS { // with itself a server may fail to shake hands, and would try for ever
		blanks = direct
		if len(blanks) == 0 { // better strangers than too few: they have other certificates
			c.strangers = nil
			blanks = c.direct()
		}
	}
	for i := 0; len(routes) < c.Voters; i++ {
		routes = append(routes, routeURL(blanks[i%len(blanks)], c.Username, c.Password, ""))
	}
	sortRoutes(routes)
	return routes
}

// others returns the peers other than this node.
func (c RouteConfig) others() Peers {
	own := normalize(c.Own)
	return slices.DeleteFunc(slices.Clone(c.Peers), func(p Peer) bool { return own[p.String()] })
}

// direct returns the peers whose connection the server sees to by itself: not
// those that lead to another cluster. One of the same name would be let in for
// the moment until it refuses the credentials, and that is enough for
// nats-server to tell every node of this cluster of it, each of which then tries
// for ever, ten times a second.
func (c RouteConfig) direct() []string {
	return slices.DeleteFunc(c.others(), func(p Peer) bool { return p.IsName() && !c.TLS || c.strangers[p.String()] }).Strings()
}

// strangers are the addresses at which something else was found.
func strangers(found []Finding) map[string]bool {
	m := map[string]bool{}
	for _, x := range found {
		if x.Outcome.stranger() {
			m[x.Addr] = true
		}
	}
	return m
}

// self is an address at which this server reaches itself.
func (c RouteConfig) self() string {
	port := strconv.Itoa(DefaultPort)
	for _, own := range c.Own {
		host, p, err := net.SplitHostPort(own)
		if err != nil {
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
			return net.JoinHostPort(ip.String(), p)
		}
		port = p
	}
	return net.JoinHostPort("127.0.0.1", port) // it listens on all interfaces
}

// roundPath tells apart the routes given to one address one after another.
func roundPath(round int) string { return fmt.Sprintf("/found%d", round) }

func routeURL(addr, user, password, path string) *url.URL {
	u := &url.URL{Scheme: "nats-route", Host: addr, Path: path}
	if user != "" {
		u.User = url.UserPassword(user, password)
	}
	return u
}

func sortRoutes(routes []*url.URL) {
	slices.SortFunc(routes, func(a, b *url.URL) int { return strings.Compare(a.String(), b.String()) })
}
