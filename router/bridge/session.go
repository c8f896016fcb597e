package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// metaReinitialized is set in the _meta of the first result after a session was
// opened again: what the old one remembered is gone. The fabric itself does so
// where it moves a session; this is for one that has ended there, as with its
// instance (on_move end) or its idle time.
const (
	metaReinitialized = "ripstop/reinitialized"
	reopened          = `{"cause":"the session had ended","epoch":1}`
)

// session is a legacy session as the fabric knows it.
type session struct {
	id      string // "" if the server has none, or before initialize
	version string // negotiated; "" before initialize
}

// legacy is the state of a client of the legacy era: its session, and what it
// takes to open it again.
type legacy struct {
	restoring chan struct{} // held by the one that opens the session again

	mu          sync.Mutex
	session     session
	gen         uint64             // counts sessions
	init        []byte             // params of the client's initialize; nil = it sent none
	initialized bool               // it sent notifications/initialized
	listening   bool               // the session's own stream is open, or being opened
	endListen   context.CancelFunc // ends the stream of the current session
	level       []byte             // params of the last logging/setLevel; nil = none
	subs        map[string][]byte  // params of resources/subscribe by URI
}

func (l *legacy) current() session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// request builds the request for m and says which session it belongs to.
func (l *legacy) request(server string, m *jsonrpc.Message) (*router.Request, uint64) {
	req := &router.Request{Op: router.OpMessage, Server: server, Message: m}
	if m.HasVersion {
		req.Era, req.Version = router.EraModern, m.Version
		return req, 0
	}
	if m.Method == "initialize" {
		return req, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.Method == "notifications/initialized" {
		l.initialized = true
	}
	req.Session, req.Version = l.session.id, l.session.version
	return req, l.gen
}

// learn keeps what opening the session again would need. It reads only the few
// answers that change it.
//
// It returns the session that m replaced, if it did.
func (l *legacy) learn(m *jsonrpc.Message, reply *router.Reply) (replaced session) {
	switch m.Method {
	case "initialize", "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
	default:
		return session{}
	}
	result, err := jsonrpc.Parse(reply.Body)
	if err != nil || result.Result == nil || m.HasVersion {
		return session{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.Method {
	case "initialize":
		replaced = l.session
		l.init, l.initialized, l.level, l.subs = m.Params, false, nil, map[string][]byte{}
		l.enter(session{reply.Session, negotiated(result.Result)})
	case "logging/setLevel":
		l.level = m.Params
	case "resources/subscribe":
		if l.subs != nil {
			l.subs[m.Name] = m.Params
		}
	case "resources/unsubscribe":
		delete(l.subs, m.Name)
	}
	return replaced
}

// enter makes s the current session; mu is held. The stream of the one before
// ends, so that its listener opens the new one's.
func (l *legacy) enter(s session) {
	l.session = s
	l.gen++
	if l.endListen != nil {
		l.endListen()
		l.endListen = nil
	}
}

func negotiated(result []byte) string {
	var r struct {
		ProtocolVersion string `json:"protocolVersion"`
	}
	_ = json.Unmarshal(result, &r) // what is no version reads as none
	return r.ProtocolVersion
}

// restore opens the session of generation gen again, unless that was done
// already. It reports false if there is nothing to open it from.
func (c *Conn) restore(gen uint64) (bool, error) {
	l := &c.legacy
	select {
	case l.restoring <- struct{}{}:
		defer func() { <-l.restoring }()
	case <-c.ctx.Done():
		return false, c.ctx.Err()
	}
	l.mu.Lock()
	done, init, old := l.gen != gen, l.init, l.session
	initialized, level, subs := l.initialized, l.level, maps.Clone(l.subs)
	l.mu.Unlock()
	if done || init == nil {
		return done, nil
	}
	fresh, err := c.reopen(init)
	if err != nil {
		return false, err
	}
	if fresh.version != old.version {
		c.log.Warn("the server now speaks another version than the client was told", "server", c.server, "was", old.version, "is", fresh.version)
	}
	l.mu.Lock()
	if l.gen != gen { // the client itself initialized meanwhile
		l.mu.Unlock()
		c.endSession(fresh)
		return true, nil
	}
	l.enter(fresh)
	l.mu.Unlock()
	if initialized {
		c.replay("notifications/initialized", nil)
	}
	if level != nil {
		c.replay("logging/setLevel", level)
	}
	for _, uri := range slices.Sorted(maps.Keys(subs)) {
		c.replay("resources/subscribe", subs[uri])
	}
	c.log.Warn("the session was lost; opened it again", "server", c.server, "old", old.id, "new", fresh.id, "subscriptions", len(subs))
	return true, nil
}

// reopen sends the client's own initialize once more; the client never sees the
// answer.
func (c *Conn) reopen(init []byte) (session, error) {
	m, err := jsonrpc.Parse(jsonrpc.NewRequest([]byte(`"ripstop-initialize"`), "initialize", init))
	if err != nil {
		return session{}, err
	}
	reply, err := c.serve(c.ctx, &router.Request{Op: router.OpMessage, Server: c.server, Message: m})
	if err != nil {
		return session{}, err
	}
	answer, err := jsonrpc.Parse(reply.Body)
	if err != nil || answer.Result == nil {
		return session{}, router.Errorf(router.ErrSessionNotFound, "the session of server %q was lost and could not be opened again: %.300s", c.server, reply.Body)
	}
	return session{reply.Session, negotiated(answer.Result)}, nil
}

// replay sends a message of the client again. A session without it is better
// than none, so failures are only logged.
func (c *Conn) replay(method string, params []byte) {
	var id []byte
	if params != nil {
		id = []byte(`"ripstop-replay-` + strconv.FormatUint(c.replays.Add(1), 10) + `"`)
	}
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(id, method, params))
	if err == nil {
		req, _ := c.legacy.request(c.server, m)
		var reply *router.Reply
		if reply, err = c.serve(c.ctx, req); err == nil && reply != nil && reply.Status >= 400 {
			err = errors.New(string(reply.Body))
		}
	}
	if err != nil {
		c.log.Warn("session state not restored", "server", c.server, "method", method, "error", err)
	}
}

// startListening opens the session's own stream, once a connection.
func (c *Conn) startListening() {
	c.legacy.mu.Lock()
	start := !c.legacy.listening
	c.legacy.listening = true
	c.legacy.mu.Unlock()
	if start {
		c.wg.Go(c.listen)
	}
}

// steady is how long a stream must have lived for the next one to be opened
// without delay.
const steady = 5 * time.Second

// listen keeps the current session's stream open, and with it the session:
// one that is lost is opened again at once, so that subscriptions go on.
func (c *Conn) listen() {
	var back backoff
	for c.ctx.Err() == nil {
		ctx, req, gen := c.listenRequest()
		began := time.Now()
		reply, err := c.handler.Serve(ctx, req, stream{c})
		why := failure(reply, err)
		switch {
		case status(reply, err) == http.StatusMethodNotAllowed:
			return // the server has no such stream
		case c.legacy.left(gen):
			continue
		case why != nil && why.Code == router.CodeSessionNotFound:
			if _, err := c.restore(gen); err != nil && c.ctx.Err() == nil {
				c.log.Warn("the session was lost and can't be opened again yet", "server", c.server, "error", err)
			}
		}
		if time.Since(began) > steady {
			back = backoff{}
		}
		back.sleep(c.ctx)
	}
}

// listenRequest returns the request for the current session's stream, with a
// context that ends with the session.
func (c *Conn) listenRequest() (context.Context, *router.Request, uint64) {
	l := &c.legacy
	ctx, cancel := context.WithCancel(c.ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.endListen != nil {
		l.endListen()
	}
	l.endListen = cancel
	return ctx, &router.Request{Op: router.OpListen, Server: c.server, Session: l.session.id, Version: l.session.version}, l.gen
}

// left reports whether gen is no longer the current session.
func (l *legacy) left(gen uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gen != gen
}

// endSession tells the fabric that nobody needs s any more. It works when the
// connection's context is done already, and is best effort: a session nobody
// uses ends by its idle timeout.
func (c *Conn) endSession(s session) {
	if s.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), endFor)
	defer cancel()
	_, err := c.handler.Serve(ctx, &router.Request{Op: router.OpEnd, Server: c.server, Session: s.id, Version: s.version}, router.Discard)
	if err != nil {
		c.log.Debug("session not ended", "server", c.server, "session", s.id, "error", err)
	}
}

// status returns the HTTP status that reply or err stand for; 0 = unknown.
func status(reply *router.Reply, err error) int {
	var e *router.Error
	switch {
	case errors.As(err, &e):
		return e.Status
	case err != nil || reply == nil:
		return 0
	}
	return reply.Status
}

// failure returns the failure of the fabric that reply and err stand for, or
// nil. From another node it comes as a reply.
func failure(reply *router.Reply, err error) *router.Error {
	if err != nil {
		var e *router.Error
		errors.As(err, &e)
		return e
	}
	if reply == nil || reply.Status != http.StatusNotFound && reply.Status != http.StatusServiceUnavailable {
		return nil
	}
	m, err := jsonrpc.Parse(reply.Body)
	if err != nil {
		return nil
	}
	var body struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	if json.Unmarshal(m.Error, &body) != nil {
		return nil
	}
	return &router.Error{Code: body.Code, Status: reply.Status, Text: body.Message}
}

// markReinitialized says in a result that the session behind it is a new one.
func markReinitialized(reply *router.Reply) *router.Reply {
	m, err := jsonrpc.Parse(reply.Body)
	if err != nil {
		return reply
	}
	marked := *reply
	marked.Body = m.WithResultMeta(metaReinitialized, []byte(reopened))
	return &marked
}
