package lab

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Link says how a proxy treats what passes, each way. The zero Link is a good
// one.
type Link struct {
	Delay    time.Duration // added to every chunk
	Jitter   time.Duration // more, up to this; order is kept
	Stalls   float64       // share of chunks that are held up, and all behind them
	StallFor time.Duration // for how long
	Rate     int           // bytes a second; 0 = unlimited
	Stopped  bool          // nothing passes, nothing is lost: as packets that are sent again until they arrive
}

// Proxy is a TCP proxy for one address. Unlike a cut of the network it takes
// new connections while it is stopped, and only then lets them wait.
type Proxy struct {
	target string
	l      net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	link    Link
	changed chan struct{} // closed when link changes
	conns   map[net.Conn]struct{}
	rng     *rand.Rand
}

// NewProxy listens on addr, host:port, and passes on to target. Stalls and
// jitter follow the seed, as far as the chunks do.
func NewProxy(addr, target string, seed uint64) (*Proxy, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, l: l, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}, rng: rand.New(rand.NewPCG(seed, 1))}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Set changes the link, for what is on its way too.
func (p *Proxy) Set(l Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = l
	close(p.changed)
	p.changed = make(chan struct{})
}

// Reset ends every connection.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Close stops the proxy and waits for its goroutines.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.l.Close()
	p.Reset()
	p.wg.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.wg.Go(func() { p.serve(c) })
		}
	}
}

func (p *Proxy) serve(c net.Conn) {
	defer c.Close()
	if p.await() != nil { // a stopped link reaches nobody
		return
	}
	d, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer d.Close()
	if !p.hold(c, d) {
		return
	}
	defer p.release(c, d)
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, d}, {d, c}} {
		both.Go(func() {
			p.pass(way[0], way[1])
			way[0].Close()
			way[1].Close()
		})
	}
	both.Wait()
}

// hold lists connections for Reset; false if the proxy has closed.
func (p *Proxy) hold(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return p.ctx.Err() == nil
}

func (p *Proxy) release(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// await returns when the link is not stopped.
func (p *Proxy) await() error {
	for {
		p.mu.Lock()
		stopped, changed := p.link.Stopped, p.changed
		p.mu.Unlock()
		if !stopped {
			return p.ctx.Err()
		}
		select {
		case <-changed:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}

type chunk struct {
	data []byte
	due  time.Time
}

// pass reads from one side at once and writes to the other when it is due, so
// that a delay does not lower the rate.
func (p *Proxy) pass(from, to net.Conn) {
	queue := make(chan chunk, 1024)
	var reader sync.WaitGroup
	defer reader.Wait()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	defer from.Close() // ends the reader
	reader.Go(func() {
		defer close(queue)
		var last time.Time
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if n > 0 {
				last = p.due(n, last)
				select {
				case queue <- chunk{buf[:n], last}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range queue {
		if sleep(ctx, time.Until(c.due)) != nil || p.await() != nil {
			return
		}
		if _, err := to.Write(c.data); err != nil {
			return
		}
	}
	if c, ok := to.(*net.TCPConn); ok && !errors.Is(c.CloseWrite(), net.ErrClosed) {
		_, _ = io.Copy(io.Discard, from) // wait for the other way to end
	}
}

// due is when n bytes read now arrive, not before last.
func (p *Proxy) due(n int, last time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.link
	at := time.Now().Add(l.Delay)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(p.rng.Int64N(int64(l.Jitter))))
	}
	if l.Stalls > 0 && p.rng.Float64() < l.Stalls {
		at = at.Add(l.StallFor)
	}
	if at.Before(last) {
		at = last
	}
	if l.Rate > 0 {
		at = at.Add(time.Duration(n) * time.Second / time.Duration(l.Rate))
	}
	return at
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
