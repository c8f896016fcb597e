package admin

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go/micro"
)

// validateFor bounds a validation of all sessions, and the move of one, which
// waits for its calls.
const validateFor = 5 * time.Minute

// SessionRequest says which sessions, and what is to be done.
type SessionRequest struct {
	ID        string `json:"id,omitempty"`
	Server    string `json:"server,omitempty"`    // list-sessions: of this server only
	Node      string `json:"node,omitempty"`      // list-sessions: whose instance is at this node
	Principal string `json:"principal,omitempty"` // list-sessions: of this user
	After     string `json:"after,omitempty"`     // list-sessions: ids after this one
	Limit     int    `json:"limit,omitempty"`     // list-sessions: at most so many; 0 = as many as the node gives
	To        string `json:"to,omitempty"`        // move-session: the instance; "" = any other
	Wait      int64  `json:"wait_ms,omitempty"`   // move-session: how long calls in flight may take
	Repair    bool   `json:"repair,omitempty"`    // validate-sessions
}

// States of a session.
const (
	SessionActive  = "active"  // its instance is there
	SessionWaiting = "waiting" // its instance is gone: its next request moves it, or waits for another
)

// How a session's record is stored.
const (
	ReplicationSynced  = "synced"  // by a majority of the voters
	ReplicationPending = "pending" // only by the node that says so, which goes on trying
	ReplicationUnknown = "unknown" // the node that says so can't reach the bucket's leader
)

// Session is a session, as the node that was asked knows it.
type Session struct {
	ID          string    `json:"id"`
	Server      string    `json:"server"`
	Instance    string    `json:"instance"`
	Node        string    `json:"node"` // of the instance
	Epoch       uint64    `json:"epoch"`
	Principal   string    `json:"principal,omitempty"`
	Client      string    `json:"client,omitempty"` // what the client calls itself
	Version     string    `json:"version"`          // of MCP
	OnMove      string    `json:"on_move"`
	Cause       string    `json:"cause,omitempty"` // of its last move
	Created     time.Time `json:"created"`
	Updated     time.Time `json:"updated"` // when its record was last written
	State       string    `json:"state"`
	Replication string    `json:"replication"`
}

// SessionPage is a part of the list, sorted by id.
type SessionPage struct {
	Sessions []Session `json:"sessions"`
	More     bool      `json:"more,omitempty"` // ask for what comes after the last
}

// SessionUse is what the instance that holds a session says of it.
type SessionUse struct {
	LastUsed  time.Time `json:"last_used"`
	InFlight  int       `json:"in_flight"`
	Listening bool      `json:"listening"` // the client has the session's own stream
}

// SessionDatum is a key of what the server keeps with a session.
type SessionDatum struct {
	Key  string `json:"key"`
	Rev  uint64 `json:"rev"`
	Size int    `json:"size"`
}

// SessionDetail is all about a session.
type SessionDetail struct {
	Session
	Initialized   bool            `json:"initialized"`
	LogLevel      json.RawMessage `json:"log_level,omitempty"`
	Subscriptions []string        `json:"subscriptions,omitempty"`
	Data          []SessionDatum  `json:"data,omitempty"`
	Use           *SessionUse     `json:"use,omitempty"` // nil = its instance holds no session of its server now, or does not say
}

// SessionFinding is something that is wrong with a session.
type SessionFinding struct {
	Key      string `json:"key"` // of the bucket; "" = the bucket itself
	Kind     string `json:"kind"`
	What     string `json:"what"`
	Repaired bool   `json:"repaired"`
}

// Validation is what validate-sessions found.
type Validation struct {
	Sessions int              `json:"sessions"`
	Findings []SessionFinding `json:"findings"`
}

// Sessions are the sessions of a region. Their errors are *Error where an
// operator can do something about them.
type Sessions interface {
	Count() int
	List(ctx context.Context, r SessionRequest) (SessionPage, error)
	Show(ctx context.Context, id string) (SessionDetail, error)
	Move(ctx context.Context, r SessionRequest) (Session, error)
	End(ctx context.Context, id string) (Session, error)
	Validate(ctx context.Context, repair bool) (Validation, error)
}

func (s *Service) sessionVerbs() map[string]handler {
	verb := func(f func(ctx context.Context, all Sessions, r SessionRequest) (any, error)) handler {
		return func(ctx context.Context, r request, _ micro.Request) (any, error) {
			if s.opts.Sessions == nil {
				return nil, errorf(CodeRefused, "", "%s keeps no sessions", s.opts.Node)
			}
			if r.Sessions == nil {
				r.Sessions = &SessionRequest{}
			}
			return f(ctx, s.opts.Sessions, *r.Sessions)
		}
	}
	one := func(f func(ctx context.Context, all Sessions, r SessionRequest) (any, error)) handler {
		return verb(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) {
			if r.ID == "" {
				return nil, errorf(CodeUsage, "ripstop ls sessions", "the id of the session is missing")
			}
			return f(ctx, all, r)
		})
	}
	return map[string]handler{
		VerbSessions: verb(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) { return all.List(ctx, r) }),
		VerbSession:  one(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) { return all.Show(ctx, r.ID) }),
		VerbMove:     one(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) { return all.Move(ctx, r) }),
		VerbEnd:      one(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) { return all.End(ctx, r.ID) }),
		VerbValidate: verb(func(ctx context.Context, all Sessions, r SessionRequest) (any, error) {
			return all.Validate(ctx, r.Repair)
		}),
	}
}

// Sessions calls f with the sessions that r asks for, in order of their ids.
func (c *Client) Sessions(ctx context.Context, r SessionRequest, f func(Session) error) error {
	for {
		var p SessionPage
		if err := c.do(ctx, "", VerbSessions, request{Sessions: &r}, &p); err != nil {
			return err
		}
		for _, s := range p.Sessions {
			if err := f(s); err != nil {
				return err
			}
			r.After = s.ID
		}
		if !p.More || len(p.Sessions) == 0 || r.Limit > 0 {
			return nil
		}
	}
}

// Session returns all about a session.
func (c *Client) Session(ctx context.Context, id string) (SessionDetail, error) {
	var d SessionDetail
	return d, c.do(ctx, "", VerbSession, request{Sessions: &SessionRequest{ID: id}}, &d)
}

// MoveSession gives a session to another instance: to, or any if that is "". The
// calls in flight in it may take as long as wait.
func (c *Client) MoveSession(ctx context.Context, id, to string, wait time.Duration) (Session, error) {
	var s Session
	return s, c.do(ctx, "", VerbMove, request{Sessions: &SessionRequest{ID: id, To: to, Wait: wait.Milliseconds()}}, &s)
}

// EndSession ends a session, as its client would.
func (c *Client) EndSession(ctx context.Context, id string) (Session, error) {
	var s Session
	return s, c.do(ctx, "", VerbEnd, request{Sessions: &SessionRequest{ID: id}}, &s)
}

// ValidateSessions reads all that is stored of sessions, and says what is wrong.
func (c *Client) ValidateSessions(ctx context.Context, repair bool) (Validation, error) {
	var v Validation
	return v, c.do(ctx, "", VerbValidate, request{Sessions: &SessionRequest{Repair: repair}}, &v)
}
