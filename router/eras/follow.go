package eras

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

const (
	methodListen       = "subscriptions/listen"
	methodAcknowledged = "notifications/subscriptions/acknowledged"
	methodUpdated      = "notifications/resources/updated"

	ackPatience = 5 * time.Second // from subscriptions/listen to its acknowledgement
	retryMin    = 100 * time.Millisecond
	retryMax    = 30 * time.Second
	maxMail     = 1024 // messages that wait for a client's stream
)

// mailbox is what waits for the session's own stream. These messages say that
// something changed, so each waits only once, and a client that reads slowly
// holds up nobody.
type mailbox struct {
	wake chan struct{} // holds a token when something waits

	mu       sync.Mutex
	waiting  [][]byte
	listener context.CancelFunc // of the one that takes what waits; nil = none
	seat     int                // counts listeners
}

func (b *mailbox) init() { b.wake = make(chan struct{}, 1) }

func (b *mailbox) add(msg []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.ContainsFunc(b.waiting, func(m []byte) bool { return bytes.Equal(m, msg) }) {
		if len(b.waiting) >= maxMail {
			b.waiting = b.waiting[1:]
		}
		b.waiting = append(b.waiting, msg)
	}
	nudge(b.wake)
}

func (b *mailbox) take() (all [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, b.waiting = b.waiting, nil
	return all
}

// send sends what waits; what could not be sent waits on.
func (b *mailbox) send(ctx context.Context, out router.Stream) error {
	all := b.take()
	for i, msg := range all {
		if err := out.Send(ctx, msg); err != nil {
			b.mu.Lock()
			b.waiting = append(all[i:], b.waiting...)
			b.mu.Unlock()
			nudge(b.wake)
			return err
		}
	}
	return nil
}

// flush sends what waits on the stream of a request if the client has no other.
func (b *mailbox) flush(ctx context.Context, out router.Stream) error {
	b.mu.Lock()
	idle := b.listener == nil && len(b.waiting) > 0
	b.mu.Unlock()
	if !idle {
		return nil
	}
	return b.send(ctx, out)
}

// sit makes the caller the one listener; the one before it ends.
func (b *mailbox) sit(ctx context.Context) (_ context.Context, rise func()) {
	ctx, cancel := context.WithCancel(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listener != nil {
		b.listener()
	}
	b.seat++
	mine := b.seat
	b.listener = cancel
	return ctx, func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.seat == mine {
			b.listener = nil
		}
	}
}

// listen serves the session's own stream until the client leaves, another
// listener takes over, or the session ends.
func (s *session) listen(ctx context.Context, out router.Stream) (*router.Reply, error) {
	seat, rise := s.mail.sit(ctx)
	defer rise()
	if err := out.Send(seat, nil); err != nil {
		return nil, err
	}
	if len(s.offers.lists) > 0 {
		s.w.spawn(func() { _ = s.follow.change(s.ctx, func(w *wanted) { w.lists = true }) }) // it goes on trying by itself
	}
	for {
		if err := s.mail.send(seat, out); err != nil && seat.Err() == nil {
			return nil, err
		}
		select {
		case <-s.mail.wake:
			continue
		case <-s.ctx.Done():
		case <-seat.Done():
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return &router.Reply{Status: http.StatusOK}, nil
	}
}

// subscribe serves resources/subscribe and resources/unsubscribe.
func (s *session) subscribe(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	switch {
	case !s.offers.subscribe:
		return nil, refuse(jsonrpc.CodeMethodNotFound, http.StatusOK, "method not found: this server offers no subscriptions")
	case !m.Named:
		return nil, refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "invalid params: uri is missing")
	}
	err := s.follow.change(ctx, func(w *wanted) {
		w.uris = slices.DeleteFunc(w.uris, func(uri string) bool { return uri == m.Name })
		if m.Method == "resources/subscribe" {
			w.uris = append(w.uris, m.Name)
		}
	})
	if err != nil {
		return nil, err
	}
	return result(m.ID, emptyObject), nil
}

// wanted is what the session's client wants to hear of.
type wanted struct {
	lists bool
	uris  []string
}

// follow keeps one subscriptions/listen going for what is wanted.
type follow struct {
	s    *session
	turn sync.Mutex // held while what is wanted changes

	mu      sync.Mutex
	wanted  wanted
	current *listening
	count   int
}

// change applies f to what is wanted, and returns when the server has granted
// it. If the server refuses, everything stays as it was.
func (f *follow) change(ctx context.Context, by func(*wanted)) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	before, old := f.wanted, f.current
	next := wanted{before.lists, slices.Clone(before.uris)}
	by(&next)
	f.count++
	n := f.count
	f.mu.Unlock()
	if old != nil && next.lists == before.lists && slices.Equal(next.uris, before.uris) {
		return nil
	}
	var l *listening
	if next.lists || len(next.uris) > 0 {
		l = &listening{s: f.s, wanted: next, n: n, settled: make(chan struct{})}
		var c context.Context
		c, l.cancel = context.WithCancel(f.s.ctx)
		if !f.s.w.spawn(func() { l.run(c) }) {
			return f.s.w.errClosing()
		}
		if err := l.await(ctx); err != nil {
			l.cancel()
			return err
		}
	}
	f.mu.Lock()
	f.wanted, f.current = next, l
	f.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	return nil
}

// listening is one subscriptions/listen, made again when it breaks off.
type listening struct {
	s       *session
	wanted  wanted
	n       int
	cancel  context.CancelFunc
	settled chan struct{} // closed when the server acknowledged, or refused

	once sync.Once
	mu   sync.Mutex
	acks int
	live bool     // the last acknowledgement granted something
	uris []string // granted
	err  error    // why it was refused
}

func (l *listening) settle(err error) {
	l.once.Do(func() {
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		close(l.settled)
	})
}

// await waits until the server has said what it grants, and returns an error if a
// resource is not in it. A server that takes long may do so: it is asked on.
func (l *listening) await(ctx context.Context) error {
	timer := time.NewTimer(ackPatience)
	defer timer.Stop()
	select {
	case <-l.settled:
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return legacyError(l.err)
	}
	for _, uri := range l.wanted.uris {
		if !slices.Contains(l.uris, uri) {
			return refuse(jsonrpc.CodeInvalidParams, http.StatusOK, "the server grants no subscription to %.200q", uri)
		}
	}
	return nil
}

func (l *listening) run(ctx context.Context) {
	defer l.cancel()
	s, delay := l.s, retryMin
	for {
		start := time.Now()
		m, err := jsonrpc.Parse(l.message())
		if err == nil {
			_, err = answered(s.w.inner.Serve(ctx, s.request(m), l))
		}
		if ctx.Err() != nil {
			l.settle(ctx.Err())
			return
		}
		l.settle(err)
		l.mu.Lock()
		first, live := l.acks == 0, l.live
		l.mu.Unlock()
		if first && err != nil || err == nil && !live {
			return // it will say so again
		}
		if time.Since(start) > retryMax {
			delay = retryMin
		}
		if pause(ctx, delay) != nil {
			return
		}
		delay = min(2*delay, retryMax)
	}
}

func (l *listening) message() []byte {
	var set []jsonrpc.Member
	if l.wanted.lists {
		for _, key := range l.s.offers.lists {
			set = append(set, member(key, []byte("true")))
		}
	}
	if len(l.wanted.uris) > 0 {
		set = append(set, member("resourceSubscriptions", quotedList(l.wanted.uris)))
	}
	id := []byte(`"ripstop-listen-` + strconv.Itoa(l.n) + `"`)
	params := build(member("_meta", build(l.s.meta()...)), member("notifications", build(set...)))
	return jsonrpc.NewRequest(id, methodListen, params)
}

// Send implements [router.Stream].
func (l *listening) Send(_ context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	m, err := jsonrpc.Parse(msg)
	if err != nil {
		l.s.w.log.Warn("message dropped: it can't be read", "server", l.s.server, "err", err)
		return nil
	}
	switch {
	case m.Method == methodAcknowledged:
		l.acknowledged(m)
	case m.Kind == jsonrpc.Notification:
		l.s.mail.add(slices.Clone(m.Raw))
	}
	return nil
}

// acknowledged notes what the server grants. One that does so again was away, so
// the client is told of everything it may have missed.
func (l *listening) acknowledged(m *jsonrpc.Message) {
	granted := field(m.Params, "notifications")
	uris := stringsOf(field(granted, "resourceSubscriptions"))
	live := len(uris) > 0
	jsonrpc.EachMember(granted, func(_ string, v []byte) { live = live || string(v) == "true" })
	l.mu.Lock()
	l.acks++
	l.uris, l.live = uris, live
	again := l.acks > 1
	l.mu.Unlock()
	l.settle(nil)
	if !again {
		return
	}
	for _, c := range listChanges {
		if string(field(granted, c.key)) == "true" {
			l.s.mail.add(jsonrpc.NewRequest(nil, c.method, nil))
		}
	}
	for _, uri := range uris {
		l.s.mail.add(jsonrpc.NewRequest(nil, methodUpdated, build(quoted("uri", uri))))
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
