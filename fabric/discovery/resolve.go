package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Resolver looks up the addresses of a name. [net.DefaultResolver] is one.
type Resolver interface {
	LookupHost(ctx context.Context, host string) (addrs []string, err error)
}

var _ Resolver = (*net.Resolver)(nil)

// maxAddresses bounds how many addresses behind one name are tried.
const maxAddresses = 32

// lookup returns the addresses (host:port) behind p, sorted. A literal address
// needs no lookup. The error says what to check.
func lookup(ctx context.Context, r Resolver, p Peer, timeout time.Duration) ([]string, error) {
	if !p.IsName() {
		return []string{p.String()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	hosts, err := r.LookupHost(ctx, p.Host)
	if err != nil {
		return nil, explainLookup(p.Host, timeout, err)
	}
	var addrs []string
	for _, h := range hosts {
		ip, err := netip.ParseAddr(h)
		if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
			continue // a resolver that sinks a name answers 0.0.0.0, which would dial this very host
		}
		addrs = append(addrs, net.JoinHostPort(ip.Unmap().String(), strconv.Itoa(p.Port)))
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: no usable address in the answer %q; check the name's records", p.Host, hosts)
	}
	return addrs[:min(len(addrs), maxAddresses)], nil
}

func explainLookup(host string, timeout time.Duration, err error) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("resolve %s: there is no such name; check the entry in --peers (in Kubernetes: a headless service with publishNotReadyAddresses): %w", host, err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &dns) && dns.IsTimeout:
		return fmt.Errorf("resolve %s: no answer within %s; check this machine's name servers: %w", host, timeout, err)
	}
	return fmt.Errorf("resolve %s: %w", host, err)
}

func resolverOr(r Resolver) Resolver {
	if r == nil {
		return net.DefaultResolver
	}
	return r
}
