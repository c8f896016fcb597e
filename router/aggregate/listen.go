package aggregate

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// A member whose stream ends is listened to again after retryMin, then after
// twice as long each time up to retryMax, or at once when members change.
const (
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
)

// listener is a legacy client's own stream (GET): what its members send outside
// of calls, as one.
type listener struct {
	s      *session
	out    router.Stream
	cancel context.CancelFunc
	over   chan struct{} // closed when Serve is about to return
	wake   chan struct{} // something below is new
	wg     sync.WaitGroup

	mu       sync.Mutex
	changed  bool // the lists are others than the client knows
	followed map[*memberSession]*follower
}

// follower listens to one member.
type follower struct {
	again context.CancelFunc // ends the present stream
	ended bool               // and no other is wanted
}

// listChanges are the notifications that make a client ask for its lists again.
var listChanges = []string{
	"notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/resources/list_changed",
}

// listen serves the session's stream until ctx ends. A newer one takes the
// place of an older, whose client may be gone without a word.
func (s *session) listen(ctx context.Context, cancel context.CancelFunc, out router.Stream) (*router.Reply, error) {
	l := &listener{
		s: s, out: out, cancel: cancel,
		over: make(chan struct{}), wake: make(chan struct{}, 1), followed: map[*memberSession]*follower{},
	}
	if err := s.takeOver(ctx, l); err != nil {
		return nil, err
	}
	defer func() {
		cancel()
		l.wg.Wait()
		s.mu.Lock()
		s.listener = nil
		s.mu.Unlock()
		close(l.over)
	}()
	err := l.run(ctx)
	if s.ctx.Err() != nil {
		err = nil // the session ended, and so does its stream
	}
	return &router.Reply{}, err
}

// takeOver makes l the session's listener.
func (s *session) takeOver(ctx context.Context, l *listener) error {
	for {
		s.mu.Lock()
		before := s.listener
		if before == nil {
			s.listener = l
		}
		s.mu.Unlock()
		if before == nil {
			return nil
		}
		before.cancel()
		select {
		case <-before.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *listener) run(ctx context.Context) error {
	_, version := l.s.b.change()
	if err := l.out.Send(ctx, nil); err != nil { // it is open
		return err
	}
	for {
		changed, now := l.s.b.change()
		l.mu.Lock()
		tell := l.changed || now != version
		l.changed, version = false, now
		l.mu.Unlock()
		if tell {
			for _, method := range listChanges {
				if err := l.out.Send(ctx, jsonrpc.NewRequest(nil, method, nil)); err != nil {
					return err
				}
			}
		}
		l.followAll(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-l.wake:
		}
	}
}

// followAll listens to the members that are open and not listened to yet.
func (l *listener) followAll(ctx context.Context) {
	for _, ms := range l.s.openMembers() {
		if !ms.modern && ms.id == "" {
			continue // it has no session, so no stream of one
		}
		l.mu.Lock()
		f := l.followed[ms]
		if f == nil {
			f = &follower{again: func() {}}
			l.followed[ms] = f
			l.wg.Go(func() { l.follow(ctx, ms, f) })
		}
		l.mu.Unlock()
	}
}

func (l *listener) follow(ctx context.Context, ms *memberSession, f *follower) {
	b, delay := l.s.b, retryMin
	for {
		inner, again := context.WithCancel(ctx)
		l.mu.Lock()
		ended := f.ended
		f.again = again
		l.mu.Unlock()
		if ended {
			again()
			return
		}
		changed, _ := b.change()
		start := time.Now()
		reply, err := l.stream(inner, ms)
		restarted := inner.Err() != nil
		again()
		switch {
		case ctx.Err() != nil:
			return
		case restarted:
			delay = retryMin
			continue
		case gone(reply, err) && !ms.modern && l.lost(ctx, ms), refused(reply, err):
			return
		}
		if time.Since(start) > retryMax {
			delay = retryMin
		}
		if !pause(ctx, delay, changed) {
			return
		}
		delay = min(2*delay, retryMax)
	}
}

// pause waits for delay, or for a change, or for the end of ctx, when it
// returns false.
func pause(ctx context.Context, delay time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
		return false
	}
	return true
}

// stream serves one stream of a member.
func (l *listener) stream(ctx context.Context, ms *memberSession) (*router.Reply, error) {
	s := l.s
	if !ms.modern {
		return s.b.handler.Serve(ctx, ms.listen(s.principal), s.relay(ms, l.out))
	}
	req, err := s.modernRequest(ms.server, internal(s.b.ownID(), "subscriptions/listen", l.wanted(ms)))
	if err != nil {
		return nil, err
	}
	return s.b.handler.Serve(ctx, req, unacknowledged{&relay{b: s.b, server: ms.server, out: l.out}})
}

// wanted returns the params of subscriptions/listen for what a legacy client
// gets without asking, and what it subscribed to.
func (l *listener) wanted(ms *memberSession) []byte {
	var uris [][]byte
	s := l.s
	s.mu.Lock()
	if at := s.seats[ms.server]; at != nil {
		for uri := range at.subs {
			uris = append(uris, []byte(jsonrpc.Quote(uri)))
		}
	}
	s.mu.Unlock()
	return []byte(`{"notifications":{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true,` +
		`"resourceSubscriptions":[` + string(join(uris...)) + `]}}`)
}

// unacknowledged drops the acknowledgement of a subscription, which a legacy
// client knows nothing of.
type unacknowledged struct{ *relay }

func (u unacknowledged) Send(ctx context.Context, msg []byte) error {
	if isAcknowledgement(msg) {
		return nil
	}
	return u.relay.Send(ctx, msg)
}

// lost reports whether a member has lost the session, and opens another if so.
func (l *listener) lost(ctx context.Context, ms *memberSession) bool {
	s := l.s
	if !s.b.forgotten(ctx, ms, s.principal) {
		return false
	}
	at, err := s.seat(ms.server)
	if err != nil {
		return true
	}
	s.drop(at, ms)
	// Whoever subscribed expects to hear more.
	if _, err := s.open(ctx, ms.server, at); err != nil {
		s.b.log.Debug("session with server not opened again", "server", ms.server, "err", err)
	}
	return true
}

// refused reports whether a member has no stream to offer, ever.
func refused(reply *router.Reply, err error) bool {
	if e, ok := errors.AsType[*router.Error](err); ok {
		return !passing(err) && e.Status >= 400 && e.Status < 500
	}
	if err != nil || reply == nil {
		return false
	}
	if reply.Status >= 400 && reply.Status < 500 && reply.Status != http.StatusTooManyRequests {
		return true
	}
	_, err = answer("", reply, nil)
	return len(reply.Body) > 0 && err != nil && !passing(err)
}

// poke makes run look again; changed, that the client asks for its lists again.
func (l *listener) poke(changed bool) {
	l.mu.Lock()
	l.changed = l.changed || changed
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// unfollow stops listening to a session that is no more.
func (l *listener) unfollow(ms *memberSession) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.followed[ms]; f != nil {
		f.ended = true
		f.again()
		delete(l.followed, ms)
	}
}

// restart asks a member for another stream, because what is wanted changed.
func (l *listener) restart(ms *memberSession) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.followed[ms]; f != nil {
		f.again()
	}
}
