// Package discovery finds the other nodes of a cluster and keeps looking.
//
// Peers are given as addresses and DNS names. Nothing a name service says is
// believed: every address behind a name is dialed and asked who it is (a NATS
// route listener introduces itself before any login), names are resolved again
// at every attempt, and peers that were seen are remembered on disk for the day
// DNS is down.
//
// Two mechanisms connect the nodes, and either suffices for most faults:
//
//   - nats-server solicits the routes it is started with ([Routes]). It resolves
//     a route's host at every attempt, picks one of the addresses at random,
//     tries again every second for ever, and learns of further nodes by gossip.
//   - The [Finder] adds what that can't do. Where one name stands for many nodes,
//     nats-server gives a route up as soon as it leads to a node it has a route
//     to, so parts of a cluster may never meet; and it has no memory. The Finder
//     probes what is not connected and hands the running server a route to each
//     member found.
package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DefaultPort is the cluster port of an entry that names none.
const DefaultPort = 6222

// MaxEntries bounds how many peers can be configured.
const MaxEntries = 64

// Peer is one configured entry: an address, or a name that stands for one node
// or for many.
type Peer struct {
	Host string // IP address in canonical form, or a lower-case DNS name
	Port int
}

// String is the entry as host:port, IPv6 in brackets.
func (p Peer) String() string { return net.JoinHostPort(p.Host, strconv.Itoa(p.Port)) }

// IsName reports whether the host is a DNS name rather than an IP address.
func (p Peer) IsName() bool {
	_, err := netip.ParseAddr(p.Host)
	return err != nil
}

// Peers are the configured entries, in the order given, without duplicates.
type Peers []Peer

// Contains reports whether one of addrs (host:port, as an entry would be
// written) is an entry. It resolves nothing.
func (ps Peers) Contains(addrs ...string) bool {
	own := normalize(addrs)
	return slices.ContainsFunc(ps, func(p Peer) bool { return own[p.String()] })
}

// Strings returns the entries as host:port.
func (ps Peers) Strings() []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}

// Parse reads entries such as 10.0.0.5:6222, n1.example:6222, [fd00::5]:6222 or
// any of them without a port. An error names the entry at fault.
func Parse(entries []string) (Peers, error) {
	if len(entries) > MaxEntries {
		return nil, fmt.Errorf("%d peers are listed, %d at most; list the voters, or one DNS name for all", len(entries), MaxEntries)
	}
	var peers Peers
	for _, e := range entries {
		p, err := parsePeer(strings.TrimSpace(e))
		if err != nil {
			return nil, fmt.Errorf("peer %q: %w", e, err)
		}
		if slices.Contains(peers, p) {
			return nil, fmt.Errorf("peer %q: %s is listed twice", e, p)
		}
		peers = append(peers, p)
	}
	return peers, nil
}

var errForm = errors.New("give host:port, such as 10.0.0.5:6222, n1.example:6222 or [fd00::5]:6222")

func parsePeer(entry string) (Peer, error) {
	if entry == "" {
		return Peer{}, fmt.Errorf("empty entry; %w", errForm)
	}
	if strings.ContainsAny(entry, "/@?# \t") {
		return Peer{}, fmt.Errorf("not an address (no scheme, user or path); %w", errForm)
	}
	host, port := entry, DefaultPort
	switch addr, err := netip.ParseAddr(unbracket(entry)); {
	case err == nil: // an IP address alone; an IPv6 one without brackets can't carry a port
		host = addr.String()
	case strings.Contains(entry, ":"):
		h, p, err := net.SplitHostPort(entry)
		if err != nil {
			return Peer{}, fmt.Errorf("%w; %w", err, errForm)
		}
		if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
			return Peer{}, fmt.Errorf("port %q is not between 1 and 65535", p)
		}
		host = h
	}
	host, err := parseHost(host)
	return Peer{host, port}, err
}

// unbracket takes the brackets off "[...]", and leaves anything else as it is.
func unbracket(s string) string {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1]
	}
	return s
}

func parseHost(host string) (string, error) {
	if host == "" {
		return "", fmt.Errorf("no host; %w", errForm)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		if addr.IsUnspecified() || addr.IsMulticast() {
			return "", fmt.Errorf("%s is not an address of one node; give the one others reach it by", addr)
		}
		return addr.String(), nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Trim(name, "0123456789.") == "" {
		return "", fmt.Errorf("%s is neither an IP address nor a name", host)
	}
	if len(name) > 253 || !validName(name) {
		return "", fmt.Errorf("%s is not a DNS name", host)
	}
	return name, nil
}

// validName accepts what resolvers do in practice: letters, digits, '-' and '_'
// in labels of 1 to 63 bytes.
func validName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

// normalize returns the entries that addrs would be, leaving out what is none.
func normalize(addrs []string) map[string]bool {
	set := make(map[string]bool, len(addrs))
	for _, a := range addrs {
		if p, err := parsePeer(a); err == nil {
			set[p.String()] = true
		}
	}
	return set
}
