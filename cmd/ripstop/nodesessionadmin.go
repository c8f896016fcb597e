package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric/admin"
	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/wire"
)

// sessionDesk shows the operator the sessions, and does with them what it is
// asked to.
type sessionDesk struct{ n *node }

var _ admin.Sessions = sessionDesk{}

// errStarting answers while the node does not keep sessions yet, or any more.
var errStarting = &admin.Error{Code: admin.CodeNoQuorum, Text: "this node is starting or stopping", Try: "ripstop status"}

// Count implements [admin.Sessions].
func (d sessionDesk) Count() int {
	if !d.n.keepsSessions.Load() {
		return 0
	}
	return d.n.sessions.Len()
}

// pageSize is how many sessions go into one answer.
const pageSize = 1000

// List implements [admin.Sessions].
func (d sessionDesk) List(_ context.Context, q admin.SessionRequest) (admin.SessionPage, error) {
	page := admin.SessionPage{Sessions: []admin.Session{}}
	if !d.n.keepsSessions.Load() {
		return page, errStarting
	}
	look := d.look()
	list := d.n.sessions.All(func(r *sessions.Record) bool {
		return r.ID > q.After && (q.Server == "" || r.Server == q.Server) && (q.Principal == "" || r.Principal == q.Principal) &&
			(q.Node == "" || look.node(r) == q.Node)
	})
	slices.SortFunc(list, func(a, b sessions.Record) int { return cmp.Compare(a.ID, b.ID) })
	most := pageSize
	if q.Limit > 0 {
		most = min(most, q.Limit)
	}
	if page.More = len(list) > most; page.More {
		list = list[:most]
	}
	for i := range list {
		page.Sessions = append(page.Sessions, look.session(&list[i]))
	}
	return page, nil
}

// sessionLook is what is needed to describe sessions.
type sessionLook struct {
	at    map[string]string // node of each instance that is there
	stale bool
}

func (d sessionDesk) look() sessionLook {
	l := sessionLook{at: map[string]string{}, stale: d.n.sessions.Stale()}
	for _, i := range d.n.registry.All() {
		l.at[i.Instance] = i.Node
	}
	return l
}

// node is where a session's instance is attached, or was.
func (l *sessionLook) node(r *sessions.Record) string { return cmp.Or(l.at[r.Instance], r.Node) }

func (l *sessionLook) session(r *sessions.Record) admin.Session {
	s := admin.Session{
		ID: r.ID, Server: r.Server, Instance: r.Instance, Node: l.node(r), Epoch: r.Epoch, Principal: r.Principal, Version: r.Version,
		OnMove: r.OnMove, Cause: r.Cause, Created: r.Created, Updated: r.Updated, State: admin.SessionActive, Replication: admin.ReplicationSynced,
	}
	var said struct {
		Client struct{ Name, Version string } `json:"clientInfo"`
	}
	if json.Unmarshal(r.Initialize, &said) == nil { // else the client did not say who it is
		s.Client = strings.TrimSpace(said.Client.Name + " " + said.Client.Version)
	}
	if _, there := l.at[r.Instance]; !there {
		s.State = admin.SessionWaiting
	}
	switch {
	case r.Rev == 0:
		s.Replication = admin.ReplicationPending
	case l.stale:
		s.Replication = admin.ReplicationUnknown
	}
	return s
}

// find returns a session's record.
func (d sessionDesk) find(ctx context.Context, id string) (sessions.Record, error) {
	if !d.n.keepsSessions.Load() {
		return sessions.Record{}, errStarting
	}
	r, err := d.n.keep.Record(ctx, id)
	return r, sessionError(id, err)
}

// sessionError is err as an operator is told.
func sessionError(id string, err error) error {
	var known *admin.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, kv.ErrNotFound), errors.Is(err, router.ErrSessionNotFound):
		return &admin.Error{Code: admin.CodeNotFound, Text: fmt.Sprintf("no session has the id %.80q: it has ended, or never was", id), Try: "ripstop ls sessions"}
	case errors.Is(err, kv.ErrConflict):
		return &admin.Error{Code: admin.CodeRefused, Text: fmt.Sprintf("session %.80s has changed meanwhile; nothing was done", id), Try: "ripstop session show " + id}
	case errors.Is(err, router.ErrUnavailable):
		return &admin.Error{Code: admin.CodeRefused, Text: err.Error(), Try: "ripstop ls instances"}
	}
	return err
}

// aboutTimeout bounds the question to a session's instance.
const aboutTimeout = time.Second

// Show implements [admin.Sessions].
func (d sessionDesk) Show(ctx context.Context, id string) (admin.SessionDetail, error) {
	r, err := d.find(ctx, id)
	if err != nil {
		return admin.SessionDetail{}, err
	}
	look := d.look()
	all := admin.SessionDetail{Session: look.session(&r), Initialized: r.Initialized, LogLevel: r.LogLevel, Subscriptions: slices.Sorted(maps.Keys(r.Subscriptions))}
	if r.Rev != 0 {
		ctx, cancel := context.WithTimeout(ctx, aboutTimeout)
		defer cancel()
		data, err := d.n.sessions.ListData(ctx, id, r.Epoch)
		if err != nil {
			d.n.log.Debug("data of a session not listed", "session", id, "err", err)
		}
		for _, k := range data {
			all.Data = append(all.Data, admin.SessionDatum(k))
		}
	}
	if all.State == admin.SessionActive {
		if use, err := d.ask(ctx, &r, wire.ErrandAbout, aboutTimeout); err == nil && use.Held {
			all.Use = &admin.SessionUse{LastUsed: use.Used, InFlight: use.InFlight, Listening: use.Listening}
		}
	}
	return all, nil
}

// ask asks the instance that has a session.
func (d sessionDesk) ask(ctx context.Context, r *sessions.Record, errand string, patience time.Duration) (wire.ErrandReply, error) {
	var a wire.ErrandReply
	body, err := json.Marshal(wire.Errand{Session: r.ID, Timeout: patience.Milliseconds()})
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience+aboutTimeout)
	defer cancel()
	m, err := d.n.fabric.MCP().RequestWithContext(ctx, wire.ErrandSubject(r.Server, r.Instance, errand), body)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// causeOperator is of moves that an operator asked for.
const causeOperator = "operator"

// Move implements [admin.Sessions]. The owner gives the session up first, once
// its calls in flight are over.
func (d sessionDesk) Move(ctx context.Context, q admin.SessionRequest) (admin.Session, error) {
	r, err := d.find(ctx, q.ID)
	if err != nil {
		return admin.Session{}, err
	}
	if err := d.mayMove(&r, q.To); err != nil {
		return admin.Session{}, err
	}
	if d.n.keep.There(&r) {
		switch _, err := d.ask(ctx, &r, wire.ErrandRelease, time.Duration(q.Wait)*time.Millisecond); {
		case errors.Is(err, nats.ErrNoResponders): // it has just gone
		case err != nil:
			return admin.Session{}, &admin.Error{Code: admin.CodeRefused, Text: fmt.Sprintf("instance %s does not give it up: %v; it stays there", r.Instance, err), Try: "ripstop session move --wait 1m " + q.ID}
		}
	}
	r, err = d.n.keep.Move(ctx, q.ID, q.To, causeOperator)
	if err != nil {
		return admin.Session{}, sessionError(q.ID, err)
	}
	look := d.look()
	return look.session(&r), nil
}

// mayMove refuses before anything is done.
func (d sessionDesk) mayMove(r *sessions.Record, to string) error {
	var others []string
	for _, i := range d.n.registry.Instances(r.Server) {
		if i.Instance != r.Instance {
			others = append(others, i.Instance)
		}
	}
	no := func(code admin.Code, format string, args ...any) error {
		return &admin.Error{Code: code, Text: fmt.Sprintf(format, args...) + "; nothing was done", Try: "ripstop ls instances"}
	}
	switch {
	case r.OnMove == sessions.OnMoveEnd:
		return no(admin.CodeRefused, "server %q has its sessions end when they would move (on-move: end)", r.Server)
	case to == r.Instance:
		return no(admin.CodeRefused, "the session is at instance %s already", to)
	case to != "" && !slices.Contains(others, to):
		return no(admin.CodeNotFound, "server %q has no instance %.40q", r.Server, to)
	case len(others) == 0:
		return no(admin.CodeRefused, "server %q has no other instance", r.Server)
	}
	return nil
}

// End implements [admin.Sessions]. If its instance is there, it ends the session
// as for its client.
func (d sessionDesk) End(ctx context.Context, id string) (admin.Session, error) {
	r, err := d.find(ctx, id)
	if err != nil {
		return admin.Session{}, err
	}
	look, was := d.look(), r
	gone := look.session(&r)
	if d.n.keep.There(&r) {
		_, err = d.n.router.Serve(ctx, &router.Request{Op: router.OpEnd, Server: r.Server, Session: id, Version: r.Version}, router.Discard)
		if err == nil || errors.Is(err, router.ErrSessionNotFound) {
			d.n.keep.Ended(&was)
			d.n.log.Info("session ended by an operator", "session", id, "server", r.Server)
			return gone, nil
		}
		d.n.log.Debug("session not ended by its instance", "session", id, "err", err)
		if r, err = d.find(ctx, id); err != nil {
			return gone, err
		}
	}
	if err := d.n.keep.End(ctx, r.Server, id, r.Epoch); err != nil {
		return gone, sessionError(id, err)
	}
	d.n.keep.Ended(&was)
	d.n.log.Info("session ended by an operator", "session", id, "server", r.Server)
	return gone, nil
}

// maxFindings bounds the answer.
const maxFindings = 5000

// findingOrphan is a session whose instance is gone.
const findingOrphan = "instance"

// Validate implements [admin.Sessions].
func (d sessionDesk) Validate(ctx context.Context, repair bool) (admin.Validation, error) {
	if !d.n.keepsSessions.Load() {
		return admin.Validation{}, errStarting
	}
	found, err := d.n.sessions.Validate(ctx, repair)
	v := admin.Validation{Sessions: d.n.sessions.Len(), Findings: []admin.SessionFinding{}}
	if err != nil {
		return v, &admin.Error{Code: admin.CodeNoQuorum, Text: err.Error(), Try: "ripstop status"}
	}
	for _, f := range found {
		v.Findings = append(v.Findings, admin.SessionFinding(f))
	}
	for _, r := range d.n.sessions.All(func(r *sessions.Record) bool { return !d.n.keep.There(r) }) {
		if len(v.Findings) >= maxFindings || ctx.Err() != nil {
			v.Findings = append(v.Findings, admin.SessionFinding{Kind: "more", What: "there is more; repair what is listed, and ask again"})
			break
		}
		v.Findings = append(v.Findings, d.orphan(ctx, &r, repair))
	}
	return v, nil
}

// orphan moves a session whose instance is gone, if it may.
func (d sessionDesk) orphan(ctx context.Context, r *sessions.Record, repair bool) admin.SessionFinding {
	f := admin.SessionFinding{Key: r.ID, Kind: findingOrphan, What: fmt.Sprintf("instance %s of server %q, which has it, is gone", r.Instance, r.Server)}
	switch {
	case !repair:
		f.What += "; its next request moves it"
		return f
	case r.OnMove != sessions.OnMoveEnd && d.n.router.Pick(r.Server, r.Instance) == nil:
		f.What += ", and the server has no other: it waits for one, until it is idle for too long"
		return f
	}
	now, err := d.n.keep.Locate(ctx, r.Server, r.ID, r.Instance, r.Epoch)
	switch {
	case errors.Is(err, router.ErrSessionNotFound):
		f.What, f.Repaired = f.What+"; it was ended", true
	case err != nil:
		f.What += "; it can't be moved: " + err.Error()
	default:
		f.What, f.Repaired = f.What+"; it was moved to instance "+now.Instance, true
	}
	return f
}
