package aggregate

import (
	"context"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// anonymous is the session that modern clients share with a member which only
// speaks the legacy era. It declares no client capabilities, since nobody
// stands behind it to be asked. There is one for each principal, so that what a
// server keeps in a session stays with the one it belongs to.
type anonymous struct {
	m         *member
	principal string
	open      shared[memberSession]

	active int       // calls and subscriptions in flight; guarded by member.mu
	used   time.Time // when the last one ended; likewise

	feed feed
}

// borrow returns the principal's session; done gives it back.
func (m *member) borrow(principal string) (a *anonymous, done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a = m.anonymous[principal]
	if a == nil {
		a = &anonymous{m: m, principal: principal}
		a.feed.a = a
		if m.anonymous == nil {
			m.anonymous = map[string]*anonymous{}
		}
		m.anonymous[principal] = a
	}
	a.active++
	return a, func() {
		m.mu.Lock()
		a.active--
		a.used = time.Now()
		m.mu.Unlock()
	}
}

// ask sends a modern client's request msg and returns the answer as a modern
// one. Ids and progress tokens are replaced on the way, because clients that
// know nothing of each other share the session.
func (a *anonymous) ask(ctx context.Context, req *router.Request, msg *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	b, id := a.m.b, a.m.b.ownID()
	raw, level := withoutTriple(msg.Edit(jsonrpc.Edit{ID: id, ProgressToken: id}))
	plain, err := jsonrpc.Parse(raw)
	if err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		ms, err := a.get(ctx)
		if err != nil {
			return nil, err
		}
		r := &relay{
			b: b, server: a.m.name, out: out, token: msg.ProgressToken,
			silent: level == "", atLeast: level,
			ask: func(m *jsonrpc.Message) []byte { a.refuse(ms, m); return nil },
		}
		to := ms.request(plain, a.principal)
		to.Params = req.Params
		reply, err := b.handler.Serve(ctx, to, r)
		if !again && ms.id != "" && gone(reply, err) {
			a.open.drop(ms)
			continue
		}
		if reply, err = settle(a.m.name, reply, err); err != nil {
			return nil, err
		}
		response, err := parseReply(a.m.name, reply.Body)
		if err != nil {
			return nil, err
		}
		if response.Error != nil {
			reply.Body, reply.Status = modernError(response, msg.ID)
		} else {
			reply.Body = modernResult(response, msg.Method, msg.ID, ms.info)
		}
		return reply, nil
	}
}

func (a *anonymous) get(ctx context.Context) (*memberSession, error) {
	b := a.m.b
	return a.open.get(ctx, opening[memberSession]{
		spawn: b.spawn,
		open: func() (*memberSession, error) {
			ctx, cancel := context.WithTimeout(b.ctx, b.opts.OpenTimeout)
			defer cancel()
			ms, err := b.openLegacy(ctx, a.m.name, a.principal, initializeParams(router.LegacyVersions[0], b.info))
			if err != nil && !passing(err) {
				a.m.facts.reset() // neither era: perhaps it was not itself when asked
			}
			return ms, err
		},
		then:    func(_ *memberSession, late bool) { b.arrived(late) },
		discard: func(ms *memberSession) { b.discard(ms, a.principal) },
	})
}

func initializeParams(version string, info []byte) []byte {
	return []byte(`{"protocolVersion":"` + version + `","capabilities":{},"clientInfo":` + string(info) + `}`)
}

// refuse answers a request of the member that has no client to go to, so that
// the member does not wait for ever.
func (a *anonymous) refuse(ms *memberSession, m *jsonrpc.Message) {
	body := jsonrpc.NewError(m.ID, jsonrpc.CodeMethodNotFound, "this client declared no capability for "+m.Method, nil)
	if m.Method == "ping" {
		body = jsonrpc.NewResult(m.ID, []byte("{}"))
	}
	msg, err := jsonrpc.Parse(body)
	if err != nil {
		return
	}
	b := a.m.b
	// Not in the member's own goroutine, which may not read on until Send is
	// through.
	b.spawn(func() {
		ctx, cancel := context.WithTimeout(b.ctx, b.opts.ListTimeout)
		defer cancel()
		if _, err := b.handler.Serve(ctx, ms.request(msg, a.principal), router.Discard); err != nil {
			b.log.Debug("server's request not refused", "server", a.m.name, "method", m.Method, "err", err)
		}
	})
}

// end ends the session, if there is one.
func (a *anonymous) end(ctx context.Context) {
	a.m.b.endMember(ctx, a.open.end(), a.principal)
}
