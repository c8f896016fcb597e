// Package addrtest gives tests addresses to listen on that must be known before
// anybody listens there: those of a cluster's nodes.
package addrtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
)

// Ports are given out from below the range that the kernel takes the ports of
// outgoing connections from (net.ipv4.ip_local_port_range), so that none can take
// one before its node listens. Processes that run at the same time use different
// parts of it, mostly.
const (
	lowest = 12000
	part   = 500
	parts  = 40
)

var (
	mu    sync.Mutex
	taken = map[int]bool{}
)

// Reserve returns a loopback address that nobody listens on, and that no other
// call in this process returns.
func Reserve(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", ReservePort(t))
}

// ReservePort is Reserve for the port alone.
func ReservePort(t testing.TB) int {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	base := lowest + os.Getpid()%parts*part
	for range 10 * part {
		port := base + rand.IntN(part)
		if taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			continue
		}
		taken[port] = true
		return port
	}
	t.Fatalf("no free port between %d and %d", base, base+part)
	return 0
}
