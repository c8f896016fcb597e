package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	idleTimeout = time.Minute     // an unused connection is closed after this
	restTimeout = 5 * time.Second // and one whose last response doesn't end, after this
	maxIdle     = 512             // unused connections
	maxHeader   = 1 << 20         // bytes of a response's head
)

// defaultTransport returns the transport for u: the package's own where it can
// do it, net/http's for TLS and through proxies.
func defaultTransport(u *url.URL) http.RoundTripper {
	if plainSupported && u.Scheme == "http" {
		if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); proxy == nil && err == nil {
			return newPlain(u)
		}
	}
	return newStandard()
}

// standard is net/http's transport, whose calls Close can abort and whose
// bodies can be settled.
type standard struct {
	*http.Transport
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	drains sync.WaitGroup // added to under mu while open
}

func newStandard() *standard {
	t := &standard{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment, // which leaves loopback addresses out
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // messages are small, and pass through as they are
	}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// RoundTrip sends r. The context of the exchange is its own, so that the rest of
// a body can be read after the caller's context ended with the call.
func (t *standard) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	unlink := context.AfterFunc(r.Context(), cancel)
	unclose := context.AfterFunc(t.ctx, cancel)
	resp, err := t.Transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		unlink()
		unclose()
		cancel()
		return nil, err
	}
	resp.Body = &standardBody{ReadCloser: resp.Body, t: t, major: resp.ProtoMajor, cancel: cancel, unlink: unlink, unclose: unclose}
	return resp, nil
}

// Close aborts all exchanges.
func (t *standard) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.drains.Wait()
	t.CloseIdleConnections()
	return nil
}

type standardBody struct {
	io.ReadCloser
	t       *standard
	major   int
	cancel  context.CancelFunc
	unlink  func() bool
	unclose func() bool
	settled bool
}

func (b *standardBody) Close() error {
	if b.settled {
		return nil
	}
	b.settled = true
	return b.end()
}

func (b *standardBody) end() error {
	err := b.ReadCloser.Close()
	b.unlink()
	b.unclose()
	b.cancel()
	return err
}

// settle reads the rest in the background: the connection cost a TLS handshake.
// Over HTTP/2 there is nothing to save.
func (b *standardBody) settle() {
	b.t.mu.Lock()
	defer b.t.mu.Unlock()
	if b.major > 1 || b.t.closed || b.settled {
		b.Close()
		return
	}
	b.settled = true
	b.unlink()
	b.t.drains.Go(func() {
		stop := time.AfterFunc(restTimeout, b.cancel)
		_, _ = io.CopyN(io.Discard, b.ReadCloser, 4<<10) // what comes is of no interest
		stop.Stop()
		b.end()
	})
}
