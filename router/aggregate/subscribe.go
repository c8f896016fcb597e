package aggregate

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

const (
	methodAcknowledged = "notifications/subscriptions/acknowledged"
	methodUpdated      = "notifications/resources/updated"
)

// subscription is one subscriptions/listen request of a modern client (MCP
// 2026-07-28, "Subscriptions"). Each modern member gets a request of its own
// with the same id, so that the subscription ids in what it sends are right.
// What legacy members send comes through feeds.
type subscription struct {
	b   *Backend
	c   modernCaller
	out router.Stream
	id  []byte

	lists []wantedList        // what list changes are wanted
	asked []string            // the URIs asked for, as the client names them
	uris  map[string][]string // the same by member, as that one names them

	ready chan struct{} // closed when the client has its acknowledgement
	wake  chan struct{} // news is not empty
	wg    sync.WaitGroup

	mu      sync.Mutex
	news    []string           // what feeds heard: methods of list changes, and URIs
	granted map[string]bool    // of asked
	sources map[string]*source // by member
}

// wantedList is one kind of list change.
type wantedList struct{ key, method string }

var listKeys = []wantedList{
	{"toolsListChanged", listChanges[0]},
	{"promptsListChanged", listChanges[1]},
	{"resourcesListChanged", listChanges[2]},
}

// source is a member's part in a subscription.
type source struct {
	settled chan struct{} // closed when it acknowledged, or can't
	once    sync.Once

	// guarded by subscription.mu
	acks int
	live bool // the last acknowledgement granted something
}

func (s *source) settle() { s.once.Do(func() { close(s.settled) }) }

// subscriptionsListen serves until ctx ends, or the backend closes.
func (b *Backend) subscriptionsListen(ctx context.Context, c modernCaller, out router.Stream) (*router.Reply, error) {
	sub, err := b.newSubscription(c, out)
	if err != nil {
		return nil, err
	}
	if err := out.Send(ctx, nil); err != nil { // it is open
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer sub.wg.Wait()
	defer cancel()
	_, version := b.change()
	sub.followAll(ctx)
	sub.await(ctx)
	if err := out.Send(ctx, sub.acknowledgement()); err != nil {
		return nil, err
	}
	close(sub.ready)
	if len(sub.lists) > 0 || len(sub.asked) > 0 {
		err = sub.run(ctx, version)
	}
	if err != nil && b.ctx.Err() == nil {
		return nil, err
	}
	result := []byte(`{"resultType":"complete","_meta":{"` + metaSubscription + `":` + string(sub.id) +
		`,"` + metaServerInfo + `":` + string(b.info) + `}}`)
	return &router.Reply{Body: jsonrpc.NewResult(sub.id, result)}, nil
}

func (b *Backend) newSubscription(c modernCaller, out router.Stream) (*subscription, error) {
	m := c.req.Message
	e := edit(m.Raw)
	wanted := e.field(e.root(), "params", "notifications")
	if !e.is(wanted, '{') {
		return nil, invalidParams("subscriptions/listen needs params.notifications, an object")
	}
	sub := &subscription{
		b: b, c: c, out: out, id: m.ID,
		uris: map[string][]string{}, ready: make(chan struct{}), wake: make(chan struct{}, 1),
		granted: map[string]bool{}, sources: map[string]*source{},
	}
	for _, l := range listKeys {
		if string(e.text(e.field(wanted, l.key))) == "true" {
			sub.lists = append(sub.lists, l)
		}
	}
	e.items(e.field(wanted, "resourceSubscriptions"), func(v span) {
		joined, _ := e.str(v)
		server, uri, ok := SplitURI(joined)
		if ok && b.known(server) {
			sub.asked = append(sub.asked, joined)
			sub.uris[server] = append(sub.uris[server], uri)
		}
	})
	return sub, nil
}

// await waits until the members have said what they grant, for ListTimeout at
// the most.
func (sub *subscription) await(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sub.b.opts.ListTimeout)
	defer cancel()
	sub.mu.Lock()
	sources := make([]*source, 0, len(sub.sources))
	for _, src := range sub.sources {
		sources = append(sources, src)
	}
	sub.mu.Unlock()
	for _, src := range sources {
		select {
		case <-src.settled:
		case <-ctx.Done():
			return
		}
	}
}

// acknowledgement returns what the client is granted: list changes in any case,
// since the set of servers changes too, and the URIs that members granted.
func (sub *subscription) acknowledgement() []byte {
	var fields, uris [][]byte
	for _, l := range sub.lists {
		fields = append(fields, entry(l.key, []byte("true")))
	}
	sub.mu.Lock()
	for _, uri := range sub.asked {
		if sub.granted[uri] {
			uris = append(uris, []byte(jsonrpc.Quote(uri)))
		}
	}
	sub.mu.Unlock()
	if len(uris) > 0 {
		fields = append(fields, entry("resourceSubscriptions", slices.Concat([]byte("["), join(uris...), []byte("]"))))
	}
	return sub.notification(methodAcknowledged, slices.Concat([]byte(`"notifications":{`), join(fields...), []byte("}")))
}

// notification returns one of the subscription's own. fields are raw members of
// its params.
func (sub *subscription) notification(method string, fields []byte) []byte {
	meta := []byte(`"_meta":{"` + metaSubscription + `":` + string(sub.id) + `}`)
	return jsonrpc.NewRequest(nil, method, slices.Concat([]byte("{"), join(meta, fields), []byte("}")))
}

// run tells of changes in the set of servers until ctx ends.
func (sub *subscription) run(ctx context.Context, version int) error {
	for {
		changed, now := sub.b.change()
		if now != version {
			version = now
			if err := sub.sendListChanges(ctx); err != nil {
				return err
			}
		}
		if err := sub.sendNews(ctx); err != nil {
			return err
		}
		sub.followAll(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-sub.wake:
		}
	}
}

func (sub *subscription) sendListChanges(ctx context.Context) error {
	for _, l := range sub.lists {
		if err := sub.out.Send(ctx, sub.notification(l.method, nil)); err != nil {
			return err
		}
	}
	return nil
}

func (sub *subscription) sendUpdated(ctx context.Context, uri string) error {
	return sub.out.Send(ctx, sub.notification(methodUpdated, entry("uri", []byte(jsonrpc.Quote(uri)))))
}

// followAll subscribes to the members that are not subscribed to yet.
func (sub *subscription) followAll(ctx context.Context) {
	for _, server := range sub.b.opts.Servers() {
		if len(sub.lists) == 0 && len(sub.uris[server]) == 0 {
			continue
		}
		sub.mu.Lock()
		if sub.sources[server] == nil {
			src := &source{settled: make(chan struct{})}
			sub.sources[server] = src
			sub.wg.Go(func() { sub.follow(ctx, server, src) })
		}
		sub.mu.Unlock()
	}
}

// follow keeps a member subscribed to until ctx ends or the member leaves.
func (sub *subscription) follow(ctx context.Context, server string, src *source) {
	delay := retryMin
	for {
		changed, _ := sub.b.change()
		start := time.Now()
		retry := sub.stream(ctx, server, src)
		src.settle()
		if time.Since(start) > retryMax {
			delay = retryMin
		}
		wait := delay
		if !retry {
			wait = time.Duration(1<<63 - 1) // until something changes
		}
		if !pause(ctx, wait, changed) {
			return
		}
		delay = min(2*delay, retryMax)
		if !slices.Contains(sub.b.opts.Servers(), server) {
			sub.mu.Lock()
			delete(sub.sources, server)
			sub.mu.Unlock()
			return
		}
	}
}

// stream serves one request to a member, and reports whether another may do
// better.
func (sub *subscription) stream(ctx context.Context, server string, src *source) (retry bool) {
	b := sub.b
	f, err := b.member(server).discover(ctx)
	if err != nil {
		return true
	}
	if !f.modern {
		return sub.streamLegacy(ctx, server, src)
	}
	msg, err := jsonrpc.Parse(sub.share(server))
	if err != nil {
		return false
	}
	reply, err := b.handler.Serve(ctx, sub.c.request(server, msg), &subscriptionStream{
		relay: relay{b: b, server: server, out: sub.out}, sub: sub, src: src,
	})
	if err != nil || reply != nil && len(reply.Body) > 0 {
		if _, err = answer(server, reply, err); err != nil {
			b.log.Debug("subscription ended by server", "server", server, "err", err)
			return passing(err)
		}
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	return src.live // else the member has nothing to tell
}

// share returns the client's request with the URIs of one member only.
func (sub *subscription) share(server string) []byte {
	var uris [][]byte
	for _, uri := range sub.uris[server] {
		uris = append(uris, []byte(jsonrpc.Quote(uri)))
	}
	e := edit(sub.c.req.Message.Raw)
	if at := e.field(e.root(), "params", "notifications", "resourceSubscriptions"); at.some() {
		e.replace(at, slices.Concat([]byte("["), join(uris...), []byte("]")))
	}
	return e.done()
}

// subscriptionStream takes what a member sends on its request.
type subscriptionStream struct {
	relay
	sub *subscription
	src *source
}

// Send implements router.Stream. Nothing passes before the client has its one
// acknowledgement.
func (s *subscriptionStream) Send(ctx context.Context, msg []byte) error {
	switch {
	case len(msg) == 0:
		return nil // the client's stream is open already
	case isAcknowledgement(msg):
		return s.acknowledged(ctx, msg)
	}
	select {
	case <-s.sub.ready:
		return s.relay.Send(ctx, msg)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func isAcknowledgement(msg []byte) bool {
	if !bytes.Contains(msg, []byte(methodAcknowledged)) {
		return false
	}
	m, err := jsonrpc.Parse(msg)
	return err == nil && m.Method == methodAcknowledged
}

// acknowledged notes what the member grants. A member that grants again has
// been away, so what it would have told in between is made up for.
func (s *subscriptionStream) acknowledged(ctx context.Context, msg []byte) error {
	uris, live := grants(s.server, msg)
	s.sub.mu.Lock()
	for _, uri := range uris {
		s.sub.granted[uri] = true
	}
	s.src.acks++
	s.src.live = live
	again := s.src.acks > 1 && live
	s.sub.mu.Unlock()
	s.src.settle()
	if !again {
		return nil
	}
	select {
	case <-s.sub.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.sub.sendListChanges(ctx); err != nil {
		return err
	}
	for _, uri := range uris {
		if err := s.sub.sendUpdated(ctx, uri); err != nil {
			return err
		}
	}
	return nil
}

// grants returns the URIs a member's acknowledgement grants, as the client
// names them, and whether it grants anything at all.
func grants(server string, msg []byte) (uris []string, live bool) {
	e := edit(bytes.TrimSpace(msg))
	e.fields(e.field(e.root(), "params", "notifications"), func(key []byte, v span) {
		live = live || string(e.text(v)) == "true"
		if string(key) != "resourceSubscriptions" {
			return
		}
		e.items(v, func(v span) {
			if uri, ok := e.str(v); ok {
				uris = append(uris, JoinURI(server, uri))
			}
		})
	})
	return uris, live || len(uris) > 0
}
