package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router/session"
)

// keeper keeps records in memory, with compare-and-set by owner and epoch.
type keeper struct {
	mu     sync.Mutex
	recs   map[string]sessions.Record
	finds  int
	writes int
	fail   error // of every call
	full   error // of Open
	forget bool  // Open keeps nothing
}

func newKeeper() *keeper { return &keeper{recs: map[string]sessions.Record{}} }

func (k *keeper) Open(_ context.Context, r sessions.Record) (sessions.Record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := errors.Join(k.fail, k.full); err != nil {
		return r, err
	}
	k.writes++
	r.Rev = uint64(k.writes)
	if !k.forget {
		k.recs[r.ID] = r
	}
	return r, nil
}

func (k *keeper) Find(_ context.Context, _, id string) (sessions.Record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.finds++
	return k.get(id)
}

func (k *keeper) get(id string) (sessions.Record, error) {
	if k.fail != nil {
		return sessions.Record{}, k.fail
	}
	r, ok := k.recs[id]
	if !ok {
		return r, kv.ErrNotFound
	}
	return r, nil
}

func (k *keeper) Change(_ context.Context, c session.Change) (sessions.Record, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, err := k.get(c.ID)
	switch {
	case err != nil:
		return r, err
	case r.Instance != c.Instance || r.Epoch != c.Epoch:
		return r, sessions.ErrDeposed
	}
	r.Initialized = r.Initialized || c.Initialized
	if c.LogLevel != nil {
		r.LogLevel = c.LogLevel
	}
	if c.URI != "" {
		r.Subscriptions = maps.Clone(r.Subscriptions)
		if r.Subscriptions == nil {
			r.Subscriptions = map[string]json.RawMessage{}
		}
		if delete(r.Subscriptions, c.URI); !c.Unsubscribe {
			r.Subscriptions[c.URI] = c.Subscribe
		}
	}
	k.writes++
	k.recs[c.ID] = r
	return r, nil
}

func (k *keeper) Locate(context.Context, string, string, string, uint64) (sessions.Record, error) {
	return sessions.Record{}, errors.New("the layer locates nothing")
}

func (k *keeper) End(_ context.Context, _, id string, epoch uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	if r, ok := k.recs[id]; ok && r.Epoch == epoch {
		k.writes++
		delete(k.recs, id)
	}
	return nil
}

// move gives a session to another instance.
func (k *keeper) move(id, to string) (epoch uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.recs[id]
	r.Instance, r.Cause = to, "node n1 is down"
	r.Epoch++
	k.recs[id] = r
	return r.Epoch
}

func (k *keeper) record(id string) (sessions.Record, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.recs[id]
	return r, ok
}

func (k *keeper) break_(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

func (k *keeper) counts() (finds, writes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.finds, k.writes
}

// eventLog keeps events in memory.
type eventLog struct {
	mu   sync.Mutex
	list map[string][]logged
}

type logged struct {
	stream string
	n      uint64
	msg    []byte
}

func (g *eventLog) Append(id, stream string, n uint64, msg []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.list == nil {
		g.list = map[string][]logged{}
	}
	g.list[id] = append(g.list[id], logged{stream, n, msg})
}

func (g *eventLog) Load(_ context.Context, id, stream string, after uint64, f func(uint64, []byte) error) error {
	g.mu.Lock()
	list := slices.Clone(g.list[id])
	g.mu.Unlock()
	for _, e := range list {
		if e.stream == stream && e.n > after {
			if err := f(e.n, e.msg); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *eventLog) Forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.list, id)
}

var _ session.EventLog = (*sessions.EventLog)(nil)
