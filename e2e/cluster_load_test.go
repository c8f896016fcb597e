package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/e2e/lab"
)

// Kinds of operations of the load.
const (
	kindNATS   = "nats"   // a plain NATS request
	kindHTTP   = "http"   // a call in an HTTP session
	kindPut    = "kv"     // an exclusive registration: a compare-and-set in the registry's bucket
	kindRemove = "kv-del" // its end
)

// Pace of the load: each stream offers one operation a tick, whether or not the
// last has returned, and is invalid below floor acknowledged ones a second.
const (
	callEvery  = 50 * time.Millisecond
	writeEvery = 40 * time.Millisecond
	callFloor  = 10.0 // of 20 a second
	writeFloor = 12.0 // of 25 a second
	inFlight   = 100  // of one stream; more are not offered
	opTimeout  = 2 * time.Second
)

// manyServer has an instance on every node; ownServer is one node's alone.
const manyServer = "many"

func ownServer(node string) string { return "only-" + node }

// load is continuous traffic against a cluster.
type load struct {
	h      *lab.History
	feed   *feed
	cancel context.CancelFunc
	wg     sync.WaitGroup
	log    func(format string, args ...any)
}

// startLoad offers, at each node: NATS requests and calls in HTTP sessions to
// the server with an instance on every node and to each that is one node's
// alone, and registrations.
func startLoad(c *cluster) *load {
	ctx, cancel := context.WithCancel(context.Background())
	h := lab.NewHistory()
	l := &load{h: h, feed: &feed{h: h, keys: map[string][]change{}, seqs: map[string]map[uint64]string{}}, cancel: cancel, log: c.t.Logf}
	targets := []string{manyServer}
	var urls, pages []string
	for _, m := range c.members {
		targets = append(targets, ownServer(m.name))
		urls = append(urls, "nats://"+m.nats)
		pages = append(pages, "http://"+m.http)
	}
	for i, m := range c.members {
		first := func(list []string) []string { return append(append([]string{}, list[i:]...), list[:i]...) }
		l.natsClient(ctx, m.name, first(urls), targets)
		for k, target := range []string{manyServer, targets[1+(i+1)%len(c.members)]} {
			h := &httpClient{l: l, name: m.name, target: target, urls: first(pages)}
			h.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight, DialContext: (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext}}
			l.stream(ctx, callEvery, time.Duration(i*2+k)*7*time.Millisecond, h.call)
		}
		l.writer(ctx, m, i)
		l.feed.follow(ctx, l, m)
	}
	return l
}

// stop ends the load and waits for what is in flight.
func (l *load) stop() []lab.Op {
	l.cancel()
	l.wg.Wait()
	return l.h.Ops()
}

// stream calls f once a tick until ctx ends, each time on a goroutine of its
// own. The context that f gets ends by itself, not with ctx: what has begun is
// let finish.
func (l *load) stream(ctx context.Context, every, phase time.Duration, f func(ctx context.Context, n int)) {
	l.paced(ctx, every, phase, inFlight, f)
}

// paced is stream with at most this many calls at once.
func (l *load) paced(ctx context.Context, every, phase time.Duration, atOnce int, f func(ctx context.Context, n int)) {
	l.wg.Go(func() {
		slots := make(chan struct{}, atOnce)
		select {
		case <-time.After(phase):
		case <-ctx.Done():
			return
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case slots <- struct{}{}:
			default:
				continue
			}
			l.wg.Go(func() {
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
				defer cancel()
				f(ctx, n)
			})
		}
	})
}

// dialLoad connects as a careful client does: nothing is buffered while there
// is no connection, and a silent server is left within a second.
func dialLoad(urls []string, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect(strings.Join(urls, ","), append([]nats.Option{
		nats.DontRandomize(), nats.IgnoreDiscoveredServers(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(50 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond),
		nats.Timeout(500 * time.Millisecond), nats.ReconnectBufSize(-1),
		nats.PingInterval(300 * time.Millisecond), nats.MaxPingsOutstanding(2),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
}

// natsClient calls each target from a connection that begins at urls[0]. When
// its server says that it will shut down, it connects to another, calls there,
// and lets the old connection have its replies.
func (l *load) natsClient(ctx context.Context, name string, urls, targets []string) {
	var at atomic.Pointer[nats.Conn]
	var connect func(urls []string) error
	var mu sync.Mutex // of connect
	connect = func(urls []string) error {
		nc, err := dialLoad(urls, nats.Name("load/"+name), nats.LameDuckModeHandler(func(nc *nats.Conn) {
			mu.Lock()
			defer mu.Unlock()
			if at.Load() != nc || ctx.Err() != nil {
				return
			}
			if err := connect(append(append([]string{}, urls[1:]...), urls[0])); err != nil {
				l.log("move %s: %v", name, err)
			}
		}))
		if err != nil {
			return err
		}
		if old := at.Swap(nc); old != nil {
			l.wg.Go(func() { sleepOr(ctx, opTimeout); old.Close() })
		}
		l.closeAfter(ctx, nc)
		return nil
	}
	if err := connect(urls); err != nil {
		l.log("connect %s: %v", name, err) // its streams are below their floor
		return
	}
	for k, target := range targets {
		l.stream(ctx, callEvery, time.Duration(k)*11*time.Millisecond, func(ctx context.Context, n int) {
			id := fmt.Sprintf("nats-%s-%s-%d", name, target, n)
			end := l.h.Begin(kindNATS, name, target, id)
			msg, err := at.Load().RequestWithContext(ctx, "mcp.v1.req."+target+".tools.call.work", []byte(workBody(id)))
			if err != nil {
				end(outcomeOf(err), "", err)
				return
			}
			o, err := judgeReply(msg.Data, id)
			end(o, msg.Header.Get("Mcp-Instance"), err)
		})
	}
}

func sleepOr(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// closeAfter closes nc once ctx has ended and what was in flight had its time.
func (l *load) closeAfter(ctx context.Context, nc *nats.Conn) {
	l.wg.Go(func() {
		<-ctx.Done()
		deadline := time.NewTimer(opTimeout)
		defer deadline.Stop()
		<-deadline.C
		nc.Close()
	})
}

// outcomeOf tells errors of nats.go that say that nothing was sent, or that
// nobody was there to get it.
func outcomeOf(err error) lab.Outcome {
	for _, refused := range []error{nats.ErrNoResponders, nats.ErrReconnectBufExceeded, nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrInvalidConnection} {
		if errors.Is(err, refused) {
			return lab.Refused
		}
	}
	return lab.Unknown
}

// judgeReply reads the outcome of a call from its JSON-RPC response.
func judgeReply(data []byte, id string) (lab.Outcome, error) {
	var m struct {
		Result *struct {
			Content []struct{ Text string }
		}
		Error *struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return lab.Unknown, fmt.Errorf("reply does not decode: %w", err)
	}
	switch {
	case m.Error != nil:
		err := fmt.Errorf("%d %s", m.Error.Code, m.Error.Message)
		switch m.Error.Code {
		case -32010, -32011, -32012, -32014, -32016, -32017: // docs/wire.md: not executed
			return lab.Refused, err
		}
		return lab.Unknown, err
	case m.Result != nil && len(m.Result.Content) == 1 && m.Result.Content[0].Text == "did "+id:
		return lab.OK, nil
	}
	return lab.Unknown, fmt.Errorf("not the answer to %s: %.200s", id, data)
}

// httpClient is a session with one server, through a list of addresses: on
// failure it takes the next, and begins anew where its session is not known. It
// makes a call again only when it is sure that nothing was executed.
type httpClient struct {
	l            *load
	name, target string
	http         *http.Client
	urls         []string

	mu      sync.Mutex
	at      int    // into urls
	turn    int    // counts changes of at and session
	session string // "" = none yet
}

// attemptTimeout is when a client gives an address up.
const attemptTimeout = time.Second

func (h *httpClient) call(ctx context.Context, n int) {
	id := fmt.Sprintf("http-%s-%s-%d", h.name, h.target, n)
	end := h.l.h.Begin(kindHTTP, h.name, h.target, id)
	var last error
	for {
		o, moveOn, err := h.attempt(ctx, id)
		if o != lab.Refused || !moveOn {
			end(o, "", err)
			return
		}
		last = err
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			end(lab.Refused, "", last)
			return
		}
	}
}

// attempt makes the call once; moveOn says that another attempt makes sense.
func (h *httpClient) attempt(ctx context.Context, id string) (o lab.Outcome, moveOn bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	url, session, turn, err := h.open(ctx)
	if err != nil {
		h.next(turn, true)
		return lab.Refused, true, fmt.Errorf("initialize at %s: %w", url, err)
	}
	status, _, body, err := h.post(ctx, url, session, workBody(id))
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		h.next(turn, true)
		return lab.Refused, true, err
	case err != nil:
		h.next(turn, true)
		return lab.Unknown, false, err
	case status == http.StatusNotFound: // the session is not known
		h.next(turn, false)
		return lab.Refused, true, fmt.Errorf("%s: %d %s", url, status, body)
	}
	o, err = judgeReply(body, id)
	if o != lab.OK {
		if status == http.StatusServiceUnavailable || status == http.StatusBadGateway {
			h.next(turn, true)
		}
		return o, true, fmt.Errorf("%s: %d %w", url, status, err)
	}
	return o, false, nil
}

// open returns the session, begun if need be, and the turn it belongs to.
func (h *httpClient) open(ctx context.Context) (url, session string, turn int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	url = h.urls[h.at]
	if h.session != "" {
		return url, h.session, h.turn, nil
	}
	status, header, body, err := h.post(ctx, url, "", initialize)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d %.200s", status, body)
	}
	if err != nil {
		return url, "", h.turn, err
	}
	session = header.Get("Mcp-Session-Id")
	status, _, body, err = h.post(ctx, url, session, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	if err == nil && status != http.StatusAccepted {
		err = fmt.Errorf("initialized: %d %.200s", status, body)
	}
	if err != nil {
		return url, "", h.turn, err
	}
	h.session = session
	h.turn++
	return url, session, h.turn, nil
}

// next drops the session, and the address if move says so, unless another call
// has done so since turn.
func (h *httpClient) next(turn int, move bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turn != turn {
		return
	}
	h.turn++
	h.session = ""
	if move {
		h.at = (h.at + 1) % len(h.urls)
	}
}

func (h *httpClient) post(ctx context.Context, url, session, body string) (int, http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/mcp/"+h.target, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.GetBody = nil // the transport must not send it again by itself
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
		req.Header.Set("Mcp-Protocol-Version", "2025-11-25")
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, nil, err
	}
	return resp.StatusCode, resp.Header, unframe(data), nil
}

// unframe returns the last message of an event stream, or data itself.
func unframe(data []byte) []byte {
	if at := bytes.LastIndex(data, []byte("data: {")); at >= 0 {
		data, _, _ = bytes.Cut(data[at+len("data: "):], []byte("\n"))
	}
	return data
}
