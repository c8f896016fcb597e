package stdio

import (
	"bytes"
	"context"
	"strconv"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// maxAsks bounds the requests of a child that a session's client has not
// answered.
const maxAsks = 1024

// ask is a request of a child to a session's client (sampling, elicitation,
// roots). The client gets it under an id that is unique in the session, since
// the session may see several children in its life, and each counts for itself.
type ask struct {
	conn *conn
	id   []byte // raw JSON, what the child knows it by
	via  *call  // the request whose stream it went to; nil = the session's own
}

// asked implements owner.
func (s *session) asked(c *conn, m *jsonrpc.Message) {
	for {
		cl := c.find(s.isMine)
		if s.forward(c, m, cl) || cl == nil {
			return
		}
	}
}

// forward passes a request of the child to the client, on the stream of cl or,
// if that is nil, the session's own. It reports false if cl is over.
func (s *session) forward(c *conn, m *jsonrpc.Message, cl *call) bool {
	id, ok := s.addAsk(&ask{conn: c, id: clone(m.ID), via: cl})
	if !ok {
		c.refuse(m.ID, jsonrpc.CodeInternal, "too many requests wait for the client's answer")
		return true
	}
	msg := m.Edit(jsonrpc.Edit{ID: strconv.AppendInt(nil, id, 10)})
	if cl == nil {
		s.queue(note{msg: msg, ask: id})
		return true
	}
	if cl.push(msg) {
		return true
	}
	s.takeAsk(id)
	return false
}

func (s *session) addAsk(a *ask) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asks) >= maxAsks {
		return 0, false
	}
	if s.asks == nil {
		s.asks = map[int64]*ask{}
	}
	s.lastAsk++
	s.asks[s.lastAsk] = a
	return s.lastAsk, true
}

func (s *session) takeAsk(id int64) *ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.asks[id]
	delete(s.asks, id)
	return a
}

// answer passes the client's answer to the child that asked. One that nobody
// waits for is let go: the child may have died or lost interest meanwhile.
func (s *session) answer(ctx context.Context, m *jsonrpc.Message) (*router.Reply, error) {
	id, err := strconv.ParseInt(string(m.ID), 10, 64)
	if err != nil {
		return accepted(), nil
	}
	a := s.takeAsk(id)
	if a == nil || !a.conn.alive() {
		return accepted(), nil
	}
	if err := a.conn.notify(ctx, m.Edit(jsonrpc.Edit{ID: a.id})); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return accepted(), nil
}

// withdrawn implements owner.
func (s *session) withdrawn(c *conn, m *jsonrpc.Message) {
	s.withdraw(c, m)
}

// withdraw tells the client that the child no longer wants an answer. It
// reports whether the request was this session's.
func (s *session) withdraw(c *conn, m *jsonrpc.Message) bool {
	s.mu.Lock()
	var id int64
	var a *ask
	for i, have := range s.asks {
		if have.conn == c && bytes.Equal(have.id, m.CancelID) {
			id, a = i, have
			delete(s.asks, i)
			break
		}
	}
	s.mu.Unlock()
	if a == nil {
		return false
	}
	msg := m.Edit(jsonrpc.Edit{CancelID: strconv.AppendInt(nil, id, 10)})
	if a.via == nil || !a.via.push(msg) {
		s.queue(note{msg: msg})
	}
	return true
}

// dropAsks answers what the child asked over the stream of a call that has been
// given up, since nobody will.
func (s *session) dropAsks(cl *call) {
	s.mu.Lock()
	var ids []int64
	for id, a := range s.asks {
		if a.via == cl {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.refuseAsk(id, "the client has given up the request that this one came with")
	}
}

func (s *session) refuseAsk(id int64, why string) {
	if a := s.takeAsk(id); a != nil {
		a.conn.refuse(a.id, jsonrpc.CodeInternal, why)
	}
}
