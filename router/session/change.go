package session

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// changes are what the client of a session changed and the record does not say
// yet. There are some only while the record can't be written.
type changes struct {
	mu   sync.Mutex // held while they are written, so that they are in order
	list []Change
}

// changeTimeout bounds one attempt to write a change, while its client waits.
const changeTimeout = 5 * time.Second

// maxUnsaved bounds the changes of a session that wait for the record.
const maxUnsaved = 256

// changeOf returns what a client's message changes of its session, once the
// server has accepted it.
func changeOf(m *jsonrpc.Message) (c Change, ok bool) {
	switch m.Method {
	case "notifications/initialized":
		c.Initialized = true
		return c, m.Kind == jsonrpc.Notification
	case "logging/setLevel":
		c.LogLevel = json.RawMessage(slices.Clone(m.Params))
	case "resources/subscribe":
		c.URI, c.Subscribe = m.Name, json.RawMessage(slices.Clone(m.Params))
	case "resources/unsubscribe":
		c.URI, c.Unsubscribe = m.Name, true
	default:
		return c, false
	}
	return c, m.Kind == jsonrpc.Request && m.Params != nil
}

// changed notes what a message has changed, before its client hears that it was
// accepted. Where the record can't be written now, the change is kept until it
// can: the server has accepted it. The error is for the client.
func (l *Layer) changed(ctx context.Context, u use, m *jsonrpc.Message, reply *router.Reply) error {
	c, ok := changeOf(m)
	if !ok {
		return nil
	}
	if m.Kind == jsonrpc.Request {
		if _, err := result(reply); err != nil {
			return nil
		}
	} else if reply.Status >= 400 {
		return nil
	}
	c.Server, c.ID, c.Instance, c.Epoch = l.opts.Server, u.s.id, l.opts.Instance, u.epoch
	u.s.mu.Lock()
	if u.s.changes == nil {
		u.s.changes = &changes{}
	}
	ch := u.s.changes
	u.s.mu.Unlock()
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if len(ch.list) >= maxUnsaved {
		return router.Errorf(router.ErrUnavailable, "the record of session %s can't be written, and %d changes wait for it; try again", u.s.id, len(ch.list))
	}
	ch.list = append(ch.list, c)
	return l.save(ctx, u.s, ch)
}

// save writes changes in order. ch.mu is held.
func (l *Layer) save(ctx context.Context, s *session, ch *changes) error {
	for len(ch.list) > 0 {
		limited, cancel := context.WithTimeout(ctx, changeTimeout)
		_, err := l.opts.Keeper.Change(limited, ch.list[0])
		cancel()
		switch {
		case err == nil:
			if ch.list = ch.list[1:]; len(ch.list) == 0 {
				ch.list = nil
			}
		case errors.Is(err, sessions.ErrDeposed):
			ch.list = nil
			return l.deposed(ctx, s)
		case errors.Is(err, kv.ErrNotFound):
			ch.list = nil
			l.drop(s, true, l.errGone(s.id))
			return l.errGone(s.id)
		default:
			l.log.Warn("change of a session is not recorded yet", "session", s.id, "waiting", len(ch.list), "err", err)
			l.odd.Lock()
			l.unsaved[s] = struct{}{}
			l.odd.Unlock()
			return nil
		}
	}
	return nil
}

// deposed gives up a session that has another owner, or this one anew. What was
// asked is to be asked there: the callers of changed can do so twice.
func (l *Layer) deposed(ctx context.Context, s *session) error {
	err := error(router.Moved(s.id, "", 0))
	rec, ferr := l.find(ctx, s.id, 0)
	switch {
	case errors.Is(ferr, router.ErrSessionNotFound):
		err = ferr
	case ferr == nil:
		err = router.Moved(s.id, rec.Instance, rec.Epoch)
	}
	l.stats.deposed.Add(1)
	l.drop(s, false, err)
	return err
}

// pending puts into a record what is not written there yet.
func (s *session) pending(rec *sessions.Record) {
	s.mu.Lock()
	ch := s.changes
	s.mu.Unlock()
	if ch == nil {
		return
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for i := range ch.list {
		c := &ch.list[i]
		c.Epoch = rec.Epoch
		rec.Initialized = rec.Initialized || c.Initialized
		if c.LogLevel != nil {
			rec.LogLevel = c.LogLevel
		}
		if c.URI == "" {
			continue
		}
		subs := map[string]json.RawMessage{}
		for uri, params := range rec.Subscriptions { // the record may be the keeper's own
			subs[uri] = params
		}
		if c.Unsubscribe {
			delete(subs, c.URI)
		} else {
			subs[c.URI] = c.Subscribe
		}
		rec.Subscriptions = subs
	}
}

// saveAgain tries to write what could not be written.
func (l *Layer) saveAgain() {
	l.odd.Lock()
	list := make([]*session, 0, len(l.unsaved))
	for s := range l.unsaved {
		list = append(list, s)
	}
	clear(l.unsaved)
	l.odd.Unlock()
	for i, s := range list {
		s.mu.Lock()
		ch, dead := s.changes, s.dead
		s.mu.Unlock()
		if dead {
			continue
		}
		ch.mu.Lock()
		if err := l.save(l.ctx, s, ch); err != nil {
			l.log.Info("session given up", "session", s.id, "err", err)
		}
		left := len(ch.list)
		ch.mu.Unlock()
		if left == 0 {
			continue
		}
		l.odd.Lock()
		defer l.odd.Unlock()
		for _, s := range list[i:] { // what fails for one fails for all
			l.unsaved[s] = struct{}{}
		}
		return
	}
}
