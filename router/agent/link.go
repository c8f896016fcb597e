package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/wire"
)

// Link is the way of a process outside a node into the fabric: a NATS
// connection, and a client on it. When its server says that it will shut down
// (lame duck mode), the link connects to another server of the cluster and sends
// what is new there; what is under way ends over the connection it began on.
type Link struct {
	dial func(urls string, stubborn bool, opts ...nats.Option) (*nats.Conn, error)
	c    Connection

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	repeat router.Repeater

	mu     sync.Mutex
	at     *leg
	legs   map[*leg]struct{} // at, and those that still have calls
	moving bool
	follow func(ctx context.Context, nc *nats.Conn) error
	closed bool
}

var _ router.Handler = (*Link)(nil)

// leg is one connection of a link.
type leg struct {
	nc     *nats.Conn
	client *wire.Client
	calls  int           // in flight
	left   bool          // no more will come
	idle   chan struct{} // closed when left and calls is 0
}

// Link connects to the fabric, as Dial does.
func (c Connection) Link(stubborn bool, opts ...nats.Option) (*Link, error) {
	l := &Link{c: c, legs: map[*leg]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.repeat.Send = l.send
	opts = append(opts, nats.LameDuckModeHandler(l.leave))
	l.dial = func(urls string, stubborn bool, more ...nats.Option) (*nats.Conn, error) {
		c := c
		c.URLs = urls
		return c.Dial(stubborn, append(slices.Clone(opts), more...)...)
	}
	nc, err := l.dial(c.URLs, stubborn)
	if err != nil {
		l.cancel()
		return nil, err
	}
	if _, err := l.step(nc); err != nil {
		nc.Close()
		l.cancel()
		return nil, fmt.Errorf("connect to %s: %w", c.URLs, err)
	}
	return l, nil
}

// Conn is the connection now. It may be replaced at any time.
func (l *Link) Conn() *nats.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at.nc
}

// Follow has move called, one call at a time, with each connection that takes
// the place of nc and its successors; they are given up when it returns.
func (l *Link) Follow(nc *nats.Conn, move func(ctx context.Context, nc *nats.Conn) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.follow = move
	if l.at.nc != nc && !l.closed {
		l.wg.Go(func() { l.tell(l.Conn()) })
	}
}

func (l *Link) tell(nc *nats.Conn) {
	l.mu.Lock()
	move := l.follow
	l.mu.Unlock()
	if move == nil {
		return
	}
	if err := move(l.ctx, nc); err != nil && l.ctx.Err() == nil {
		l.c.Logger.Warn("not moved", "err", err)
	}
}

// Serve sends req, again if it may be executed twice and its outcome is unknown.
// See wire.Client.
func (l *Link) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Instance != "" { // an agent passes it on, and its caller decides
		return l.send(ctx, req, out)
	}
	return l.repeat.Serve(ctx, req, out)
}

func (l *Link) send(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	l.mu.Lock()
	at := l.at
	at.calls++
	l.mu.Unlock()
	defer l.done(at)
	return at.client.Serve(ctx, req, out)
}

func (l *Link) done(g *leg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.calls--; g.calls == 0 && g.left {
		close(g.idle)
	}
}

// step puts the link onto nc and returns the leg it had.
func (l *Link) step(nc *nats.Conn) (old *leg, err error) {
	client, err := wire.NewClient(nc)
	if err != nil {
		return nil, err
	}
	client.OnDeaf(func() {
		l.c.Logger.Warn("the NATS server does not answer; connecting again", "url", nc.ConnectedUrlRedacted())
		_ = nc.ForceReconnect() // fails only when the connection is closed
	})
	g := &leg{nc: nc, client: client, idle: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	old, l.at = l.at, g
	l.legs[g] = struct{}{}
	if old != nil {
		if old.left = true; old.calls == 0 {
			close(old.idle)
		}
	}
	return old, nil
}

// leave is called when nc's server is about to shut down.
func (l *Link) leave(nc *nats.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil || l.at.nc != nc || l.moving || l.closed {
		return
	}
	l.moving = true
	l.wg.Go(func() {
		l.move(nc)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.moving = false
	})
}

// move connects to another server, unless nc itself does so first because its
// own is gone.
func (l *Link) move(nc *nats.Conn) {
	leaving := nc.ConnectedServerId()
	var next *nats.Conn
	for wait := 50 * time.Millisecond; next == nil; wait = min(2*wait, time.Second) {
		var err error
		if next, err = l.elsewhere(nc, leaving); err == nil {
			break
		}
		l.c.Logger.Debug("no other server yet", "err", err)
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
			return
		}
		if id := nc.ConnectedServerId(); id != "" && id != leaving {
			return
		}
	}
	l.c.Logger.Info("server shuts down; moved to another", "url", next.ConnectedUrlRedacted())
	old, err := l.step(next)
	if err != nil {
		l.c.Logger.Warn("not moved", "err", err)
		next.Close()
		return
	}
	l.back(next)
	l.tell(next)
	l.wg.Go(func() { l.retire(old) })
}

// back has the legs that still have calls get their replies over nc too.
func (l *Link) back(nc *nats.Conn) {
	l.mu.Lock()
	var clients []*wire.Client
	for g := range l.legs {
		if g.left && g.calls > 0 {
			clients = append(clients, g.client)
		}
	}
	l.mu.Unlock()
	for _, c := range clients {
		if err := c.Backup(nc); err != nil {
			l.c.Logger.Debug("replies under way have one way only", "err", err)
		}
	}
}

// retire closes a leg once its calls are over. If its server is gone before
// that, its connection is made again elsewhere, and messages follow; what is
// lost in between is no reply, since those come over the new leg too.
func (l *Link) retire(g *leg) {
	select {
	case <-g.idle:
	case <-l.ctx.Done():
		return // Close does it
	}
	l.mu.Lock()
	_, mine := l.legs[g]
	delete(l.legs, g)
	l.mu.Unlock()
	if mine {
		g.close()
	}
}

func (g *leg) close() {
	g.client.Close()
	g.nc.Close()
}

// elsewhere connects to a server other than leaving.
func (l *Link) elsewhere(nc *nats.Conn, leaving string) (*nats.Conn, error) {
	next, err := l.dial(l.others(nc), false, nats.DontRandomize(), nats.Timeout(time.Second))
	if err != nil {
		return nil, err
	}
	if l.awaitOther(next, leaving) {
		return next, nil
	}
	next.Close()
	return nil, errors.New("no server but the one that shuts down takes connections")
}

// awaitOther sends a connection that has come to the server that is left away
// from there, to those it has learned of.
func (l *Link) awaitOther(nc *nats.Conn, leaving string) bool {
	ctx, cancel := context.WithTimeout(l.ctx, moveTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		switch id := nc.ConnectedServerId(); {
		case id != "" && id != leaving:
			return true
		case id == leaving && nc.ForceReconnect() != nil:
			return false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return false
}

// others are the URLs of all servers known, in random order, with that of nc's
// own last. Under TLS it is those that were given: addresses that a server tells
// of itself stand in no certificate, unless they are learned from a name.
func (l *Link) others(nc *nats.Conn) string {
	own := host(nc.ConnectedUrl())
	list := strings.Split(l.c.URLs, ",")
	if _, err := nc.TLSConnectionState(); err != nil {
		list = append(list, nc.DiscoveredServers()...)
	}
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b string) int {
		return rank(host(a) == own) - rank(host(b) == own)
	})
	return strings.Join(slices.Compact(list), ",")
}

func rank(last bool) int {
	if last {
		return 1
	}
	return 0
}

func host(raw string) string {
	if !strings.Contains(raw, "://") {
		return raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}

// Close ends the link. What is in flight fails.
func (l *Link) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	legs := l.legs
	l.legs = map[*leg]struct{}{}
	l.mu.Unlock()
	for g := range legs {
		g.close()
	}
}
