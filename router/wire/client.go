package wire

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
)

// Timings of wire v1, seen from a caller. An instance says "alive" every
// AliveEvery while it works, so three missed ones mean that it, or the way to
// it, is gone; a caller says "keep" every KeepEvery, so that an instance stops
// working for a caller that is gone after LeaseFor.
const (
	AliveEvery  = 5 * time.Second
	SilentAfter = 3*AliveEvery + time.Second
	KeepEvery   = 10 * time.Second
	LeaseFor    = 3*KeepEvery + time.Second
)

// maxQueued bounds the bytes of frames that wait for a slow reader of one
// request; past it the request is cancelled.
const maxQueued = 64 << 20

// Client sends requests over NATS. It is a router.Handler: a request that names
// an instance goes to it, any other to whichever instance of its server the
// queue group picks. One subscription takes the frames of all requests.
type Client struct {
	nc     *nats.Conn
	sub    *nats.Subscription
	gone   *nats.Subscription
	inbox  string // "<inbox prefix>.<nuid>."
	prefix string // of request tokens
	next   atomic.Uint64

	stop chan struct{}
	done chan struct{}

	began     time.Time
	patrolled time.Duration // the last look at what is silent
	echo      atomic.Int64  // when the NATS server last was known to answer, as since
	flushing  atomic.Bool   // it is being found out
	ctx       context.Context
	cancel    context.CancelFunc
	work      sync.WaitGroup
	onSilent  func(server, instance string)
	onDeaf    func()

	mu      sync.Mutex
	pending map[string]*call
	backups []*nats.Subscription
	targets map[place]*target
	doubts  []*target // silent, and being asked
	silent  []*target // held to be hung
}

var _ router.Handler = (*Client)(nil)

// NewClient starts a client on nc, which stays the caller's to close.
func NewClient(nc *nats.Conn) (*Client, error) {
	c := &Client{
		nc:      nc,
		inbox:   nc.NewInbox() + ".",
		pending: map[string]*call{},
		targets: map[place]*target{},
		began:   time.Now(),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	id := strings.TrimSuffix(c.inbox, ".")
	c.prefix = id[strings.LastIndexByte(id, '.')+1:] + "-"
	sub, err := nc.Subscribe(c.inbox+"*", c.onFrame)
	if err != nil {
		c.cancel()
		return nil, err
	}
	// Frames are bounded by call and by bytes, in call.push.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		c.cancel()
		return nil, err
	}
	c.sub = sub
	if c.gone, err = nc.Subscribe(SubjectGone, c.onGone); err != nil {
		c.cancel()
		return nil, errors.Join(err, sub.Unsubscribe())
	}
	c.watchRefusals()
	go c.watch()
	return c, nil
}

// backupDelay is how long a reply that came another way waits for the one way
// that keeps the order of frames.
const backupDelay = 100 * time.Millisecond

// Backup has the last frames of requests in flight come over nc too, while the
// client's own connection may be lost and made again: no reply is then missed.
func (c *Client) Backup(nc *nats.Conn) error {
	sub, err := nc.Subscribe(c.inbox+"*", func(msg *nats.Msg) {
		switch msg.Header.Get(hdrFrame) {
		case frameMsg, frameAlive:
		default:
			time.AfterFunc(backupDelay, func() { c.onFrame(msg) }) // of no effect if the request is over
		}
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.backups = append(c.backups, sub)
	c.mu.Unlock()
	return nc.Flush()
}

// Close fails the requests in flight and stops the client.
func (c *Client) Close() {
	c.mu.Lock()
	subs := append(c.backups, c.sub, c.gone)
	c.mu.Unlock()
	for _, s := range subs {
		_ = s.Unsubscribe() // fails only when the connection is closed already
	}
	close(c.stop)
	<-c.done
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.work.Wait()
	c.giveUp(func(*call) bool { return true }, func(*call) string { return "the caller ends" })
}

// call is a request in flight.
type call struct {
	req      *router.Request
	token    string
	subject  string
	target   *target
	own      target // if no instance was named
	server   string
	instance string // "" until known
	started  time.Time
	opens    bool // its caller waits to hear that the stream is open
	stream   bool // ends only when one side ends it

	mu      sync.Mutex
	frames  []*nats.Msg
	bytes   int
	heard   time.Time // the last frame; zero = none yet
	answers bool      // whoever has it answers probes
	kept    time.Time // the last "keep" sent
	lost    error     // why no more frames will come
	wake    chan struct{}
}

func (k *call) push(msg *nats.Msg, now time.Time) {
	k.mu.Lock()
	k.heard = now
	if k.instance == "" {
		k.instance = msg.Header.Get(hdrInstance)
	}
	if msg.Header.Get(hdrFrame) != frameAlive || k.opens {
		k.opens = false
		if k.bytes += len(msg.Data); k.bytes > maxQueued && len(k.frames) > 0 {
			k.lost = router.Errorf(router.ErrOutcomeUnknown, "outcome unknown: more than %d MiB of this call's messages wait for its reader, and it was given up", maxQueued>>20)
		} else {
			k.frames = append(k.frames, msg)
		}
	}
	k.mu.Unlock()
	k.signal()
}

func (k *call) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *call) fail(err error) {
	k.mu.Lock()
	if k.lost == nil {
		k.lost = err
	}
	k.mu.Unlock()
	k.signal()
}

// take returns the next frame, or why there will be none.
func (k *call) take() (*nats.Msg, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.frames) > 0 {
		msg := k.frames[0]
		k.frames[0] = nil
		k.frames = k.frames[1:]
		k.bytes -= len(msg.Data)
		return msg, nil
	}
	return nil, k.lost
}

func (c *Client) onFrame(msg *nats.Msg) {
	token := msg.Subject[len(c.inbox):]
	c.mu.Lock()
	k := c.pending[token]
	c.mu.Unlock()
	if k == nil {
		c.onProbed(token, msg)
		return
	}
	now := time.Now()
	k.target.heard.Store(int64(now.Sub(c.began)))
	k.push(msg, now)
}

// Serve sends req and passes on what comes back. See router.Handler.
func (c *Client) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	token := strconv.FormatUint(c.next.Add(1), 36)
	msg, err := encodeRequest(req, c.prefix+token, c.inbox+token)
	if err != nil {
		return nil, err
	}
	k := &call{req: req, token: token, subject: msg.Subject, server: req.Server, instance: req.Instance, started: time.Now(), opens: req.Op == router.OpListen, wake: make(chan struct{}, 1)}
	k.stream = k.opens || req.Method() == "subscriptions/listen"
	if err := c.enter(k); err != nil {
		return nil, err
	}
	defer c.leave(k)
	if err := c.nc.PublishMsg(msg); err != nil {
		return nil, publishError(req, len(msg.Data), err)
	}
	reply, err := c.receive(ctx, k, req, out)
	if over, ok := err.(overError); ok {
		return nil, over.error
	}
	if err != nil && !errors.Is(err, router.ErrRefused) { // what was refused did not get anywhere
		c.control(req.Server, c.prefix+token, controlCancel)
	}
	return reply, err
}

// enter notes a call in flight. It fails if the call's instance hangs.
func (c *Client) enter(k *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.target = &k.own
	if k.instance == "" {
		k.own.server = k.server
	} else {
		k.target = c.targetOf(place{k.server, k.instance})
		if err := k.target.hangs(c.since()); err != nil {
			return err
		}
	}
	k.target.calls++
	c.pending[k.token] = k
	return nil
}

func (c *Client) leave(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.target.calls--
	delete(c.pending, k.token)
}

// overError is an error after which there is nothing to cancel.
type overError struct{ error }

func publishError(req *router.Request, size int, err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return router.Errorf(router.ErrTooLarge, "a message of %d bytes for %s is larger than the fabric carries", size, req.Server)
	}
	switch {
	case errors.Is(err, nats.ErrHeadersNotSupported), errors.Is(err, nats.ErrReconnectBufExceeded):
		// What nats.go says of a connection that was never made, or is lost.
		return router.Errorf(router.ErrUnavailable, "can't send to %s: not connected to NATS; nothing was executed", req.Server)
	}
	return router.Errorf(router.ErrUnavailable, "can't send to %s: %v; nothing was executed", req.Server, err)
}

func (c *Client) receive(ctx context.Context, k *call, req *router.Request, out router.Stream) (*router.Reply, error) {
	began := false // the server has said something
	for {
		msg, err := k.take()
		if msg == nil && err == nil {
			select {
			case <-k.wake:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err != nil {
			return nil, err
		}
		if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
			return nil, overError{noResponders(req)}
		}
		switch msg.Header.Get(hdrFrame) {
		case frameMsg, frameAlive: // an alive frame is empty: the stream is open
			began = true
			if err := pass(ctx, out, msg); err != nil {
				return nil, err
			}
		case frameErr:
			if e := fabricError(msg); e != nil && (!began || e.Code == router.CodeOutcomeUnknown) {
				return nil, overError{e}
			}
			return decodeReply(msg), nil
		default:
			return decodeReply(msg), nil
		}
	}
}

// pass hands a frame's message on, with its event id to whoever knows those.
func pass(ctx context.Context, out router.Stream, msg *nats.Msg) error {
	if id := msg.Header.Get(hdrEvent); id != "" {
		if events, ok := out.(router.EventStream); ok {
			return events.SendEvent(ctx, id, msg.Data)
		}
	}
	return out.Send(ctx, msg.Data)
}

// noResponders is the answer of nats-server itself: nobody subscribes, so
// nothing was executed.
func noResponders(req *router.Request) error {
	if req.Instance != "" {
		e := router.Errorf(router.ErrUnavailable, "instance %s of %s can't be reached; nothing was executed", req.Instance, req.Server)
		e.Unreached = true
		return e
	}
	return router.Errorf(router.ErrServerNotFound, "no instance of server %q is attached; `ripstop ls` shows what is", req.Server)
}

// control publishes a control message. It is best effort: the instance's own
// lease ends what a lost cancel would leave.
func (c *Client) control(server, token, what string) {
	_ = c.nc.PublishMsg(&nats.Msg{Subject: ControlSubject(server, token), Header: nats.Header{hdrControl: {what}}})
}

// SubjectGone is where nodes say that an instance is gone, so that its callers
// need not wait for silence to tell.
const SubjectGone = "ripstop.v1.registry.gone"

// Gone is the body of a message on SubjectGone.
type Gone struct {
	Server   string `json:"server"`
	Instance string `json:"instance"`
}

func (c *Client) onGone(msg *nats.Msg) {
	var g Gone
	if json.Unmarshal(msg.Data, &g) == nil && g.Instance != "" {
		c.Lost(g.Server, g.Instance)
	}
}

// Lost fails the requests in flight to an instance that is known to be gone, so
// that their callers need not wait for silence to tell.
func (c *Client) Lost(server, instance string) {
	c.mu.Lock()
	if t := c.targets[place{server, instance}]; t != nil {
		t.gone(c.since())
	}
	c.mu.Unlock()
	c.giveUp(func(k *call) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.server == server && k.instance == instance
	}, func(*call) string { return "it died, or lost its connection, while it worked on this call" })
}

// giveUp fails calls whose outcome nobody will tell, and says why.
func (c *Client) giveUp(which func(*call) bool, why func(*call) string) {
	c.mu.Lock()
	var hit []*call
	for _, k := range c.pending {
		if which(k) {
			hit = append(hit, k)
		}
	}
	c.mu.Unlock()
	for _, k := range hit {
		k.fail(k.unknown(why(k)))
	}
}

// watch keeps long calls alive towards their instance, and gives up those that
// have gone silent. One ticker serves all calls.
func (c *Client) watch() {
	defer close(c.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	patrol := time.NewTicker(patrolEvery)
	defer patrol.Stop()
	for {
		select {
		case <-c.stop:
			return
		case now := <-tick.C:
			c.sweep(now)
		case <-patrol.C:
			c.patrol()
		}
	}
}

func (c *Client) sweep(now time.Time) {
	c.mu.Lock()
	var keep []string
	var servers []string
	var silent []*call
	for token, k := range c.pending {
		k.mu.Lock()
		last := k.heard
		if last.IsZero() {
			last = k.started
		}
		switch {
		case now.Sub(last) > SilentAfter:
			silent = append(silent, k)
		case now.Sub(k.started) > KeepEvery && now.Sub(k.kept) >= KeepEvery:
			k.kept = now
			keep, servers = append(keep, token), append(servers, k.server)
		}
		c.suspect(k, now.Sub(last))
		k.mu.Unlock()
	}
	for p, t := range c.targets {
		if t.calls == 0 && t.silent == 0 && t.doubt == nil && c.since()-time.Duration(t.heard.Load()) > forgetAfter {
			delete(c.targets, p)
		}
	}
	c.mu.Unlock()
	for i, token := range keep {
		c.control(servers[i], c.prefix+token, controlKeep)
	}
	for _, k := range silent {
		k.fail(k.unknown("nothing was heard of the call for " + SilentAfter.String()))
	}
}
