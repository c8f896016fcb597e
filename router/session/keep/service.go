package keep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/session"
)

// Agents in other processes ask their node on
// "ripstop.v1.session.<id of the node's NATS server>.<verb>.<server>", in account
// MCP; see docs/wire.md. The server stands in the subject because permissions
// hang on it.
const subjectPrefix = "ripstop.v1.session."

const (
	verbOpen   = "open"
	verbFind   = "find"
	verbChange = "change"
	verbLocate = "locate"
	verbEnd    = "end"
	verbAppend = "append" // of an event; no answer
	verbLoad   = "load"   // of events
	verbForget = "forget" // of events; no answer
	verbMove   = "move"   // a session that its owner has released

	verbGet    = "data-get" // of what a server keeps with a session
	verbList   = "data-list"
	verbPut    = "data-put"
	verbDelete = "data-delete"
)

// Headers of an appended event.
const (
	hdrSession = "Ripstop-Session"
	hdrStream  = "Ripstop-Stream"
	hdrNumber  = "Ripstop-Number"
)

// question is the body of a request.
type question struct {
	Record *sessions.Record `json:"record,omitempty"` // open
	Change *session.Change  `json:"change,omitempty"` // change
	ID     string           `json:"id,omitempty"`
	Avoid  string           `json:"avoid,omitempty"` // locate
	Epoch  uint64           `json:"epoch,omitempty"`
	Stream string           `json:"stream,omitempty"` // load
	After  uint64           `json:"after,omitempty"`  // load
	Cause  string           `json:"cause,omitempty"`  // move

	Key   string  `json:"key,omitempty"`   // data-get, -put and -delete
	Value []byte  `json:"value,omitempty"` // data-put
	Base  *uint64 `json:"base,omitempty"`  // data-put and -delete: the revision that the key must have, 0 = none; absent: any
}

// answer is the body of a reply.
type answer struct {
	Record *sessions.Record `json:"record,omitempty"`
	Rev    uint64           `json:"rev,omitempty"`    // of the record; data-put: of the key
	Events []event          `json:"events,omitempty"` // load
	More   bool             `json:"more,omitempty"`   // load: ask again after the last

	Data *sessions.Data      `json:"data,omitempty"` // data-get
	Keys []sessions.DataInfo `json:"keys,omitempty"` // data-list

	Kind  string `json:"kind,omitempty"` // of the error
	Error string `json:"error,omitempty"`
}

type event struct {
	N   uint64 `json:"n"`
	Msg []byte `json:"msg"`
}

// Kinds of errors that callers tell apart.
const (
	kindNotFound    = "not_found"
	kindGone        = "session_not_found" // not found, in words for the client
	kindDeposed     = "deposed"
	kindConflict    = "conflict"
	kindUnavailable = "unavailable"
	kindLimit       = "limit"
)

// maxLoad bounds the bytes of events in one answer.
const maxLoad = 4 << 20

// Service answers agents in other processes.
type Service struct {
	keep   *Keep
	events session.EventLog // nil = none
	nc     *nats.Conn
	ctx    context.Context
	cancel context.CancelFunc
	subs   []*nats.Subscription

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Serve starts answering on nc, a connection to account MCP. serverID is the id
// of the node's NATS server.
func (k *Keep) Serve(nc *nats.Conn, serverID string, events session.EventLog) (*Service, error) {
	s := &Service{keep: k, events: events, nc: nc}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	sub, err := nc.Subscribe(subjectPrefix+serverID+".*.*", s.on)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("serve sessions: %w", err)
	}
	s.subs = append(s.subs, sub)
	return s, nil
}

// Close stops answering, and returns when nobody is being answered any more.
func (s *Service) Close() {
	for _, sub := range s.subs {
		_ = sub.Unsubscribe() // fails only when the connection is closed already
	}
	s.cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Service) on(msg *nats.Msg) {
	rest := msg.Subject[len(subjectPrefix):]
	parts := strings.Split(rest, ".")
	if len(parts) != 3 {
		return
	}
	verb, server := parts[1], parts[2]
	if s.note(verb, msg) || msg.Reply == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wg.Go(func() {
		var q question
		var a answer
		err := json.Unmarshal(msg.Data, &q)
		if err == nil {
			a, err = s.answer(verb, server, &q)
		}
		s.respond(msg, a, err)
	})
}

// note takes what has no answer. It reports whether it was that.
func (s *Service) note(verb string, msg *nats.Msg) bool {
	if verb != verbAppend && verb != verbForget {
		return false
	}
	id := msg.Header.Get(hdrSession)
	n, err := strconv.ParseUint(msg.Header.Get(hdrNumber), 10, 64)
	switch {
	case s.events == nil || id == "":
	case verb == verbForget:
		s.events.Forget(id)
	case err == nil:
		s.events.Append(id, msg.Header.Get(hdrStream), n, msg.Data)
	}
	return true
}

func (s *Service) answer(verb, server string, q *question) (answer, error) {
	ctx, cancel := context.WithTimeout(s.ctx, locateTimeout+openTimeout)
	defer cancel()
	var r sessions.Record
	var err error
	switch {
	case verb == verbOpen && q.Record != nil && q.Record.Server == server:
		r, err = s.keep.Open(ctx, *q.Record)
	case verb == verbChange && q.Change != nil && q.Change.Server == server:
		r, err = s.keep.Change(ctx, *q.Change)
	case verb == verbFind:
		r, err = s.keep.Find(ctx, server, q.ID)
	case verb == verbLocate:
		r, err = s.keep.Locate(ctx, server, q.ID, q.Avoid, q.Epoch)
	case verb == verbEnd:
		return answer{}, s.keep.End(ctx, server, q.ID, q.Epoch)
	case verb == verbLoad:
		return s.load(ctx, server, q)
	case verb == verbMove:
		r, err = s.keep.Hand(ctx, server, q.ID, q.Avoid, q.Epoch, q.Cause)
	case verb == verbGet || verb == verbList || verb == verbPut || verb == verbDelete:
		return s.data(ctx, verb, server, q)
	default:
		return answer{}, fmt.Errorf("%s of server %s does not make sense: %s", verb, server, "the subject's server and the body's disagree, or the verb is not known")
	}
	if err != nil && r.ID == "" {
		return answer{}, err
	}
	return answer{Record: &r, Rev: r.Rev}, err
}

func (s *Service) load(ctx context.Context, server string, q *question) (answer, error) {
	var a answer
	if s.events == nil {
		return a, nil
	}
	if r, err := s.keep.Find(ctx, server, q.ID); err != nil {
		return a, err
	} else if r.ID != q.ID {
		return a, kv.ErrNotFound
	}
	size := 0
	err := s.events.Load(ctx, q.ID, q.Stream, q.After, func(n uint64, msg []byte) error {
		if size += len(msg); size > maxLoad && len(a.Events) > 0 {
			a.More = true
			return errEnough
		}
		a.Events = append(a.Events, event{n, msg})
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return a, err
}

var errEnough = errors.New("enough for one answer")

func (s *Service) respond(msg *nats.Msg, a answer, err error) {
	if err != nil {
		a.Error, a.Kind = err.Error(), kindOf(err)
	}
	data, err := json.Marshal(a)
	if err != nil {
		data = fmt.Appendf(nil, `{"error":%q}`, err)
	}
	if err := msg.Respond(data); err != nil && s.ctx.Err() == nil {
		s.keep.log.Warn("an agent was not answered", "subject", msg.Subject, "err", err)
	}
}

func kindOf(err error) string {
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return kindNotFound
	case errors.Is(err, sessions.ErrDeposed):
		return kindDeposed
	case errors.Is(err, kv.ErrConflict):
		return kindConflict
	case errors.Is(err, sessions.ErrLimit):
		return kindLimit
	case errors.Is(err, router.ErrSessionNotFound):
		return kindGone
	case errors.Is(err, router.ErrUnavailable):
		return kindUnavailable
	}
	return ""
}

// errorOf undoes kindOf.
func errorOf(a *answer) error {
	if a.Error == "" {
		return nil
	}
	var kind error
	switch a.Kind {
	case kindNotFound:
		kind = kv.ErrNotFound
	case kindDeposed:
		kind = sessions.ErrDeposed
	case kindConflict:
		kind = kv.ErrConflict
	case kindLimit:
		kind = sessions.ErrLimit
	case kindGone:
		return router.Errorf(router.ErrSessionNotFound, "%s", a.Error)
	case kindUnavailable:
		return router.Errorf(router.ErrUnavailable, "%s", a.Error)
	default:
		return errors.New(a.Error)
	}
	return fmt.Errorf("%w: %s", kind, a.Error)
}

// askTimeout bounds a request of a Client: what the node itself may take, and
// the way.
const askTimeout = locateTimeout + openTimeout + time.Second
