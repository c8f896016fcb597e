package aggregate

import (
	"context"
	"strconv"

	"ripstop/router/jsonrpc"
)

// This file knows what is in flight in a session, in both directions. Ids of
// the client's requests pass unchanged. Those of members' requests to the
// client are renumbered, since two members may use the same.

// flight is a client's request being served.
type flight struct {
	cancel context.CancelFunc
	to     *memberSession // who works on it; nil = nobody yet, or several
}

// question is a member's request to the client.
type question struct {
	ms    *memberSession
	id    []byte // the member's id of it
	token []byte // the member's progress token in it; nil = none
}

// maxAsked bounds how many questions of a session stay open; past it the oldest
// is forgotten.
const maxAsked = 1024

// begin notes a request as being served. done must be called when it is over.
func (s *session) begin(id []byte, cancel context.CancelFunc) (f *flight, done func(), err error) {
	key := string(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inFlight[key] != nil {
		return nil, nil, invalidRequest("id %s is that of a request still in flight; use a new one", clip(key))
	}
	if s.inFlight == nil {
		s.inFlight = map[string]*flight{}
	}
	f = &flight{cancel: cancel}
	s.inFlight[key] = f
	return f, func() {
		s.mu.Lock()
		delete(s.inFlight, key)
		if len(s.inFlight) == 0 {
			s.inFlight = nil // an idle session is small
		}
		s.mu.Unlock()
	}, nil
}

// renumber gives a member's request an id, and progress token, that are unique in
// the client's session, and remembers whose it is.
func (s *session) renumber(ms *memberSession, m *jsonrpc.Message) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastAsked++
	n := s.lastAsked
	if s.asked == nil {
		s.asked = map[int64]question{}
	}
	s.asked[n] = question{ms: ms, id: append([]byte(nil), m.ID...), token: append([]byte(nil), m.ProgressToken...)}
	delete(s.asked, n-maxAsked)
	id := strconv.AppendInt(nil, n, 10)
	return m.Edit(jsonrpc.Edit{ID: id, ProgressToken: id})
}

// answered takes the question that the client's raw id stands for.
func (s *session) answered(id []byte, forget bool) (question, bool) {
	n, err := strconv.ParseInt(string(id), 10, 64)
	if err != nil {
		return question{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q, ok := s.asked[n]
	if ok && forget {
		s.forget(n)
	}
	return q, ok
}

func (s *session) forget(n int64) {
	delete(s.asked, n)
	if len(s.asked) == 0 {
		s.asked = nil
	}
}

// withdraw returns a member's cancellation of a request of its own as the
// client knows that request.
func (s *session) withdraw(ms *memberSession, m *jsonrpc.Message) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, q := range s.asked {
		if q.ms == ms && string(q.id) == string(m.CancelID) {
			s.forget(n)
			return m.Edit(jsonrpc.Edit{CancelID: strconv.AppendInt(nil, n, 10)})
		}
	}
	return nil
}
