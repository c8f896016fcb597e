package aggregate

import (
	"context"
	"slices"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// feed listens to a legacy member on its anonymous session, for all the modern
// subscriptions that share the session. It runs while there are any.
type feed struct {
	a *anonymous

	mu   sync.Mutex
	subs map[*subscription]struct{}
	uris map[string]*feedURI // subscribed to at the member
	stop context.CancelFunc
	over chan struct{} // closed when the last run has ended
}

type feedURI struct {
	wanted int // subscriptions
	ok     bool
}

// streamLegacy takes part in the feed of a legacy member until ctx ends or the
// member becomes a modern one.
func (sub *subscription) streamLegacy(ctx context.Context, server string, src *source) (retry bool) {
	m := sub.b.member(server)
	a, done := m.borrow(sub.c.req.Principal)
	defer done()
	uris := sub.uris[server]
	if !a.feed.join(sub, uris) {
		return false
	}
	defer a.feed.leave(sub, uris)
	granted := a.feed.subscribe(ctx, uris)
	sub.mu.Lock()
	for _, uri := range granted {
		sub.granted[JoinURI(server, uri)] = true
	}
	sub.mu.Unlock()
	src.settle()
	for {
		changed, _ := sub.b.change()
		if sub.b.member(server) != m {
			return true // it left, and perhaps came back
		}
		if f, err := m.discover(ctx); err == nil && f.modern {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// join adds a subscription, and starts listening with the first.
func (f *feed) join(sub *subscription, uris []string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.subs) == 0 && !f.start() {
		return false
	}
	f.subs[sub] = struct{}{}
	for _, uri := range uris {
		if f.uris[uri] == nil {
			f.uris[uri] = &feedURI{}
		}
		f.uris[uri].wanted++
	}
	return true
}

func (f *feed) start() bool {
	b, before, over := f.a.m.b, f.over, make(chan struct{})
	ctx, stop := context.WithCancel(b.ctx)
	started := b.spawn(func() {
		defer close(over)
		if before != nil {
			<-before // two streams of one session are one too many
		}
		f.run(ctx)
	})
	if !started {
		stop()
		return false
	}
	f.subs, f.uris = map[*subscription]struct{}{}, map[string]*feedURI{}
	f.stop, f.over = stop, over
	return true
}

// leave takes it out again.
func (f *feed) leave(sub *subscription, uris []string) {
	f.mu.Lock()
	delete(f.subs, sub)
	var unwanted []string
	for _, uri := range uris {
		u := f.uris[uri]
		if u.wanted--; u.wanted == 0 {
			delete(f.uris, uri)
			if u.ok {
				unwanted = append(unwanted, uri)
			}
		}
	}
	if len(f.subs) == 0 {
		f.stop()
	}
	f.mu.Unlock()
	if ms := f.a.open.peek(); ms != nil && len(unwanted) > 0 {
		ctx, cancel := f.a.m.b.ending()
		defer cancel()
		for _, uri := range unwanted {
			f.tell(ctx, ms, "resources/unsubscribe", uri)
		}
	}
}

// subscribe subscribes to uris at the member, and returns those it granted.
func (f *feed) subscribe(ctx context.Context, uris []string) (granted []string) {
	for _, uri := range uris {
		ms, err := f.a.get(ctx)
		if err != nil || !f.tell(ctx, ms, "resources/subscribe", uri) {
			continue
		}
		f.mu.Lock()
		if u := f.uris[uri]; u != nil {
			u.ok = true
		}
		f.mu.Unlock()
		granted = append(granted, uri)
	}
	return granted
}

func (f *feed) tell(ctx context.Context, ms *memberSession, method, uri string) (ok bool) {
	b, a := f.a.m.b, f.a
	reply, err := b.handler.Serve(ctx, ms.request(internal(b.ownID(), method, uriData(uri)), a.principal), router.Discard)
	if _, err = answer(a.m.name, reply, err); err != nil {
		b.log.Debug("not told", "server", a.m.name, "method", method, "err", err)
	}
	return err == nil
}

// run listens until ctx ends.
func (f *feed) run(ctx context.Context) {
	b, a := f.a.m.b, f.a
	delay, before := retryMin, (*memberSession)(nil)
	for {
		changed, _ := b.change()
		ms, err := a.get(ctx)
		var reply *router.Reply
		if err == nil {
			if before != nil && ms != before {
				f.renew(ctx)
			}
			before = ms
			if ms.id == "" {
				return // no session, no stream
			}
			reply, err = b.handler.Serve(ctx, ms.listen(a.principal), &feedStream{f, ms})
		}
		switch {
		case ctx.Err() != nil:
			return
		case ms != nil && gone(reply, err) && b.forgotten(ctx, ms, a.principal):
			a.open.drop(ms)
			continue
		case refused(reply, err):
			return // it offers no stream
		}
		if !pause(ctx, delay, changed) {
			return
		}
		delay = min(2*delay, retryMax)
	}
}

// renew subscribes again after the member lost the session, and has the clients
// look at everything anew.
func (f *feed) renew(ctx context.Context) {
	f.mu.Lock()
	uris := make([]string, 0, len(f.uris))
	for uri := range f.uris {
		uris = append(uris, uri)
	}
	f.mu.Unlock()
	for _, uri := range f.subscribe(ctx, uris) {
		f.heard(methodUpdated, uri)
	}
	for _, method := range listChanges {
		f.heard(method, "")
	}
}

// heard passes a member's news to the subscriptions that want it.
func (f *feed) heard(method, uri string) {
	server := f.a.m.name
	f.mu.Lock()
	defer f.mu.Unlock()
	for sub := range f.subs {
		switch {
		case method == methodUpdated && slices.Contains(sub.uris[server], uri):
			sub.add(JoinURI(server, uri))
		case slices.ContainsFunc(sub.lists, func(l wantedList) bool { return l.method == method }):
			sub.add(method)
		}
	}
}

// add notes news for the client. The same news waits only once, so a client
// that reads slowly holds up nobody.
func (sub *subscription) add(news string) {
	sub.mu.Lock()
	if !slices.Contains(sub.news, news) {
		sub.news = append(sub.news, news)
	}
	sub.mu.Unlock()
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

func (sub *subscription) sendNews(ctx context.Context) error {
	sub.mu.Lock()
	news := sub.news
	sub.news = nil
	sub.mu.Unlock()
	for _, what := range news {
		var err error
		if slices.Contains(listChanges, what) {
			err = sub.out.Send(ctx, sub.notification(what, nil))
		} else {
			err = sub.sendUpdated(ctx, what)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// feedStream takes what the member sends on its stream.
type feedStream struct {
	*feed
	ms *memberSession
}

// Send implements router.Stream.
func (f *feedStream) Send(_ context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	m, err := jsonrpc.Parse(msg)
	switch {
	case err != nil:
		f.a.m.b.log.Warn("message dropped: it can't be read", "server", f.a.m.name, "err", err)
	case m.Kind == jsonrpc.Request:
		f.a.refuse(f.ms, m)
	case m.Kind == jsonrpc.Notification:
		e := edit(m.Raw)
		uri, _ := e.str(e.field(e.root(), "params", "uri"))
		f.heard(m.Method, uri)
	}
	return nil
}
