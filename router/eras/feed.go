package eras

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// openPatience is how long a subscription waits for the legacy stream that feeds
// it, before it tells its client what it is granted.
const openPatience = 5 * time.Second

// errNoStream says that the server has nothing to feed a subscription with.
var errNoStream = errors.New("the server offers no stream")

// feeds are the legacy sessions behind the subscriptions of modern clients, by
// principal.
type feeds struct {
	w *wrapper

	mu     sync.Mutex
	byName map[string]*feed
}

// feed is one legacy session whose own stream serves the subscriptions of one
// principal. It lives while there are any.
type feed struct {
	w         *wrapper
	server    string
	principal string
	ctx       context.Context
	cancel    context.CancelFunc
	opened    chan struct{} // closed when the stream is open, or can't be
	once      sync.Once

	turn sync.Mutex // held while the server is told about a resource

	mu      sync.Mutex
	err     error // why it can't be
	session *own
	subs    map[*subscription]struct{}
	uris    map[string]int // subscribed to at the server, and by how many
}

// subscription is one subscriptions/listen.
type subscription struct {
	id    []byte
	lists []string // methods of list changes
	uris  []string
	mail  mailbox
}

// subscriptionsListen serves until ctx ends, or the backend closes.
func (w *wrapper) subscriptionsListen(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	m := req.Message
	asked := field(m.Params, "notifications")
	if !isObject(asked) {
		return nil, refuse(jsonrpc.CodeInvalidParams, http.StatusBadRequest, "invalid params: subscriptions/listen needs notifications, an object")
	}
	hello, err := w.greet(ctx, req.Server, req.Principal)
	if err != nil {
		return nil, err
	}
	sub := newSubscription(m.ID, asked, offersOf(field(hello, "capabilities")))
	done := jsonrpc.NewResult(m.ID, w.modernResult(build(member("_meta", build(member(metaSubscription, m.ID)))), methodListen))
	if len(sub.lists) == 0 && len(sub.uris) == 0 {
		return &router.Reply{Body: done}, out.Send(ctx, sub.acknowledgement())
	}
	f, err := w.feeds.join(req.Server, req.Principal, sub)
	if err != nil {
		return nil, err
	}
	defer f.leave(sub)
	if err := f.await(ctx); err != nil && !errors.Is(err, errNoStream) {
		return nil, err
	} else if err != nil {
		return &router.Reply{Body: done}, out.Send(ctx, (&subscription{id: m.ID}).acknowledgement())
	}
	f.subscribe(ctx, sub)
	if err := out.Send(ctx, sub.acknowledgement()); err != nil {
		return nil, err
	}
	for {
		if err := sub.mail.send(ctx, out); err != nil {
			return nil, err
		}
		select {
		case <-sub.mail.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-f.ctx.Done():
			return &router.Reply{Body: done}, nil
		}
	}
}

func newSubscription(id, asked []byte, offers offers) *subscription {
	sub := &subscription{id: slices.Clone(id)}
	sub.mail.init()
	for _, c := range listChanges {
		if string(field(asked, c.key)) == "true" && slices.Contains(offers.lists, c.key) {
			sub.lists = append(sub.lists, c.method)
		}
	}
	if offers.subscribe {
		sub.uris = stringsOf(field(asked, "resourceSubscriptions"))
		slices.Sort(sub.uris)
		sub.uris = slices.Compact(sub.uris)
	}
	return sub
}

// acknowledgement says what is granted.
func (sub *subscription) acknowledgement() []byte {
	var granted []jsonrpc.Member
	for _, c := range listChanges {
		if slices.Contains(sub.lists, c.method) {
			granted = append(granted, member(c.key, []byte("true")))
		}
	}
	if len(sub.uris) > 0 {
		granted = append(granted, member("resourceSubscriptions", quotedList(sub.uris)))
	}
	return jsonrpc.NewRequest(nil, methodAcknowledged, sub.params(build(member("notifications", build(granted...)))))
}

// params puts the subscription's id into a notification's params.
func (sub *subscription) params(raw []byte) []byte {
	if !isObject(raw) {
		raw = emptyObject
	}
	return with(raw, member("_meta", with(field(raw, "_meta"), member(metaSubscription, sub.id))))
}

// join adds a subscription to its principal's feed.
func (fs *feeds) join(server, principal string, sub *subscription) (*feed, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.byName[principal]
	if f == nil {
		f = &feed{w: fs.w, server: server, principal: principal, opened: make(chan struct{}),
			subs: map[*subscription]struct{}{}, uris: map[string]int{}}
		f.ctx, f.cancel = context.WithCancel(fs.w.ctx)
		if !fs.w.spawn(f.run) {
			f.cancel()
			return nil, fs.w.errClosing()
		}
		if fs.byName == nil {
			fs.byName = map[string]*feed{}
		}
		fs.byName[principal] = f
	}
	f.mu.Lock()
	f.subs[sub] = struct{}{}
	f.mu.Unlock()
	return f, nil
}

// leave takes it out again; the last one ends the feed.
func (f *feed) leave(sub *subscription) {
	fs := &f.w.feeds
	fs.mu.Lock()
	f.mu.Lock()
	delete(f.subs, sub)
	last := len(f.subs) == 0
	f.mu.Unlock()
	if last {
		f.cancel()
		if fs.byName[f.principal] == f {
			delete(fs.byName, f.principal)
		}
	}
	fs.mu.Unlock()
	if !last {
		f.unsubscribe(sub)
	}
}

// retire makes the next subscription begin anew.
func (f *feed) retire(err error) {
	f.w.feeds.mu.Lock()
	if f.w.feeds.byName[f.principal] == f {
		delete(f.w.feeds.byName, f.principal)
	}
	f.w.feeds.mu.Unlock()
	f.settle(err)
	f.cancel()
}

func (f *feed) settle(err error) {
	f.once.Do(func() {
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
		close(f.opened)
	})
}

func (f *feed) await(ctx context.Context) error {
	timer := time.NewTimer(openPatience)
	defer timer.Stop()
	select {
	case <-f.opened:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// run keeps a session and its stream until ctx ends. What can't be opened the
// first time is given up; what breaks later is opened again, and everything is
// said to have changed.
func (f *feed) run() {
	delay := retryMin
	for again := false; ; again = true {
		s, err := f.w.pool.fresh(f.ctx, f.server, f.principal, &asking{caps: emptyObject})
		if err == nil {
			err = f.serve(s, again)
			s.end()
		}
		if f.ctx.Err() != nil {
			f.settle(f.ctx.Err())
			return
		}
		select {
		case <-f.opened:
		default:
			f.retire(err)
			return
		}
		if pause(f.ctx, delay) != nil {
			return
		}
		delay = min(2*delay, retryMax)
	}
}

// serve listens in a session until it is lost.
func (f *feed) serve(s *own, again bool) error {
	if s.id == "" {
		return errNoStream
	}
	f.mu.Lock()
	f.session = s
	f.mu.Unlock()
	if again {
		f.renew(s)
	}
	for delay := retryMin; ; delay = min(2*delay, retryMax) {
		req := s.request(nil)
		req.Op = router.OpListen
		reply, err := f.w.inner.Serve(f.ctx, req, feedStream{f, s})
		var e *router.Error
		switch {
		case f.ctx.Err() != nil:
			return f.ctx.Err()
		case errors.As(err, &e) && e.Status == http.StatusMethodNotAllowed, reply != nil && reply.Status >= 400:
			return errNoStream
		case errors.Is(err, router.ErrSessionNotFound):
			return err
		}
		if err := pause(f.ctx, delay); err != nil {
			return err
		}
	}
}

// renew subscribes again in a new session.
func (f *feed) renew(s *own) {
	f.turn.Lock()
	f.mu.Lock()
	uris := make([]string, 0, len(f.uris))
	for uri := range f.uris {
		uris = append(uris, uri)
	}
	f.mu.Unlock()
	for _, uri := range uris {
		if err := s.ask(f.ctx, "resources/subscribe", build(quoted("uri", uri))); err != nil {
			f.w.log.Debug("not subscribed again", "server", f.server, "uri", uri, "err", err)
		}
		f.heard(methodUpdated, build(quoted("uri", uri)))
	}
	f.turn.Unlock()
	for _, c := range listChanges {
		f.heard(c.method, nil)
	}
}

// subscribe asks the server for a subscription's resources, and leaves those in
// it that are granted.
func (f *feed) subscribe(ctx context.Context, sub *subscription) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	s := f.session
	f.mu.Unlock()
	var granted []string
	for _, uri := range sub.uris {
		f.mu.Lock()
		have := f.uris[uri] > 0
		f.mu.Unlock()
		if !have && (s == nil || s.ask(ctx, "resources/subscribe", build(quoted("uri", uri))) != nil) {
			continue
		}
		granted = append(granted, uri)
		f.mu.Lock()
		f.uris[uri]++
		f.mu.Unlock()
	}
	f.mu.Lock()
	sub.uris = granted
	f.mu.Unlock()
}

func (f *feed) unsubscribe(sub *subscription) {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	s := f.session
	var last []string
	for _, uri := range sub.uris {
		if f.uris[uri]--; f.uris[uri] <= 0 {
			delete(f.uris, uri)
			last = append(last, uri)
		}
	}
	f.mu.Unlock()
	ctx, cancel := f.w.ending()
	defer cancel()
	for _, uri := range last {
		if err := s.ask(ctx, "resources/unsubscribe", build(quoted("uri", uri))); err != nil {
			f.w.log.Debug("not unsubscribed", "server", f.server, "uri", uri, "err", err)
		}
	}
}

// heard passes news to the subscriptions that want it.
func (f *feed) heard(method string, params []byte) {
	uri := text(field(params, "uri"))
	f.mu.Lock()
	defer f.mu.Unlock()
	for sub := range f.subs {
		if method == methodUpdated && slices.Contains(sub.uris, uri) || slices.Contains(sub.lists, method) {
			sub.mail.add(jsonrpc.NewRequest(nil, method, sub.params(params)))
		}
	}
}

// feedStream takes what the server sends on the session's own stream.
type feedStream struct {
	*feed
	s *own
}

// Send implements [router.Stream].
func (f feedStream) Send(_ context.Context, msg []byte) error {
	f.settle(nil)
	if len(msg) == 0 {
		return nil
	}
	m, err := jsonrpc.Parse(msg)
	switch {
	case err != nil:
		f.w.log.Warn("message dropped: it can't be read", "server", f.server, "err", err)
	case m.Kind == jsonrpc.Request:
		f.s.inquired(m)
	case m.Kind == jsonrpc.Notification:
		f.heard(m.Method, m.Params)
	}
	return nil
}
