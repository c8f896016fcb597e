package sessions

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"ripstop/kv"
)

// Limits of the data of one session.
const (
	MaxDataKey   = 128       // bytes of a key
	MaxDataValue = 256 << 10 // bytes of a value
	MaxDataKeys  = 1000
	MaxDataBytes = 4 << 20 // of all keys and values together
)

// ErrLimit: a write would exceed a limit of a session's data. It was not applied.
var ErrLimit = errors.New("limit of session data")

// AnyRev as a base accepts whatever revision a key has, or none.
const AnyRev = math.MaxUint64

// Data is one key of what a server keeps of a session.
type Data struct {
	Key     string    `json:"key"`
	Value   []byte    `json:"value"`
	Rev     uint64    `json:"rev"` // grows with every write to the session's data; comparable within a session
	Updated time.Time `json:"updated"`
}

// DataInfo is a key in a list.
type DataInfo struct {
	Key  string `json:"key"`
	Rev  uint64 `json:"rev"`
	Size int    `json:"size"` // bytes of the value
}

// datum is the value of a key of data in the bucket, "<id>.d.<key>".
type datum struct {
	Schema  int    `json:"schema"`
	Session string `json:"session"`
	Epoch   uint64 `json:"epoch"` // under which it was written
	Data
	Mutation kv.Mutation `json:"mutation"`
}

// manifest says what data a session has. It is written together with every key
// of it, so that the writes of a session are ordered by its revision: whoever
// writes over the manifest he has read knows that no key has changed since.
type manifest struct {
	Schema   int                  `json:"schema"`
	Session  string               `json:"session"`
	Epoch    uint64               `json:"epoch"`
	N        uint64               `json:"n"`     // writes so far
	Bytes    int                  `json:"bytes"` // of keys and values
	Keys     map[string]dataEntry `json:"keys"`
	Mutation kv.Mutation          `json:"mutation"`

	rev uint64
}

// dataEntry is a key's revision and its value's bytes.
type dataEntry [2]uint64

const manifestSuffix = "/data"

func manifestKey(id string) string { return id + manifestSuffix }

// dataPrefix begins the keys of a session's data. They are no single token, so
// that indexes do not follow them; the manifest is.
func dataPrefix(id string) string { return id + ".d" }

func dataKey(id, key string) string { return dataPrefix(id) + "." + kv.Token(key) }

// GetData returns a key of a session's data, as the bucket's leader has it. It
// fails with kv.ErrNotFound, and with ErrDeposed if the session is known to have
// a higher epoch.
func (s *Store) GetData(ctx context.Context, id string, epoch uint64, key string) (Data, error) {
	if err := s.mayRead(id, epoch, key); err != nil {
		return Data{}, err
	}
	var e kv.Entry
	err := s.persist(ctx, func(ctx context.Context) (err error) {
		e, err = s.bucket.Get(ctx, dataKey(id, key))
		return err
	})
	if err != nil {
		return Data{}, err
	}
	if e.Gone {
		return Data{}, fmt.Errorf("data %q of session %s: %w", key, id, kv.ErrNotFound)
	}
	d, err := decodeDatum(e)
	if err != nil {
		return Data{}, fmt.Errorf("data %q of session %s: %w", key, id, err)
	}
	return d.Data, nil
}

func decodeDatum(e kv.Entry) (datum, error) {
	d, err := kv.Decode[datum](e.Value)
	if err == nil && dataKey(d.Session, d.Key) != e.Key {
		err = fmt.Errorf("%w: it is key %q of session %s", kv.ErrCorrupt, d.Key, d.Session)
	}
	return d, err
}

// mayRead refuses those who are known to be deposed.
func (s *Store) mayRead(id string, epoch uint64, key string) error {
	if key == "" || len(key) > MaxDataKey {
		return fmt.Errorf("%w: a key has 1 to %d bytes, %.40q has %d", ErrLimit, MaxDataKey, key, len(key))
	}
	if r, ok := s.Lookup(id); ok && r.Epoch > epoch {
		return deposed(&r, epoch)
	}
	return nil
}

func deposed(r *Record, epoch uint64) error {
	return fmt.Errorf("session %s, epoch %d: %w: its epoch is %d, its instance %s", r.ID, epoch, ErrDeposed, r.Epoch, r.Instance)
}

// ListData returns the keys of a session's data, sorted. It fails like GetData.
func (s *Store) ListData(ctx context.Context, id string, epoch uint64) ([]DataInfo, error) {
	if err := s.mayRead(id, epoch, "any"); err != nil {
		return nil, err
	}
	var m *manifest
	err := s.persist(ctx, func(ctx context.Context) (err error) {
		m, err = s.readManifest(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	list := make([]DataInfo, 0, len(m.Keys))
	for key, e := range m.Keys {
		list = append(list, DataInfo{key, e[0], int(e[1])})
	}
	slices.SortFunc(list, func(a, b DataInfo) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}

// PutData stores value under a key if the key's revision is still base (0: if
// there is none; AnyRev), and returns the new one. It fails with kv.ErrConflict,
// ErrLimit, ErrDeposed if the session has a higher epoch, kv.ErrNotFound if it
// has ended; after any other error the outcome is unknown.
//
// The write is fenced: the bucket accepts it only while the session's record is
// the one that says so.
func (s *Store) PutData(ctx context.Context, id string, epoch uint64, key string, value []byte, base uint64) (uint64, error) {
	return s.writeData(ctx, &dataWrite{id: id, epoch: epoch, key: key, value: value, base: base})
}

// DeleteData removes a key of a session's data if its revision is still base.
// That it is not there is no error unless base says otherwise. It fails like
// PutData.
func (s *Store) DeleteData(ctx context.Context, id string, epoch uint64, key string, base uint64) error {
	_, err := s.writeData(ctx, &dataWrite{id: id, epoch: epoch, key: key, base: base, gone: true})
	return err
}

// dataWrite is one write, through all its tries.
type dataWrite struct {
	id    string
	epoch uint64
	key   string
	value []byte
	base  uint64
	gone  bool

	mutation kv.Mutation
	over     uint64 // revision of the manifest that was written over, if sent
	sent     bool
	rev      uint64 // of the key, as sent
}

func (s *Store) writeData(ctx context.Context, w *dataWrite) (uint64, error) {
	if err := s.mayRead(w.id, w.epoch, w.key); err != nil {
		return 0, err
	}
	if len(w.value) > MaxDataValue {
		return 0, fmt.Errorf("%w: data %q of session %s has %d bytes; at most %d", ErrLimit, w.key, w.id, len(w.value), MaxDataValue)
	}
	unlock, err := s.data.lock(ctx, w.id)
	if err != nil {
		return 0, err
	}
	defer unlock()
	w.mutation = s.mutation()
	asked := false // whether the leader was asked before
	err = s.persist(ctx, func(ctx context.Context) error {
		r, m, err := s.dataState(ctx, w, asked)
		if err != nil {
			return err
		}
		if w.sent {
			if done, err := s.dataOutcome(ctx, w, m); done || err != nil {
				return err
			}
		}
		next, err := w.check(m)
		if err != nil && !asked { // what is remembered may be old
			asked = true
			return errAgain
		}
		if err != nil || next == nil {
			return err
		}
		asked = true
		return s.sendData(ctx, w, r, m, next)
	})
	return w.rev, err
}

// dataState returns the record that w relies on and the session's manifest, as
// they are remembered, or fresh from the leader.
func (s *Store) dataState(ctx context.Context, w *dataWrite, fresh bool) (*Record, *manifest, error) {
	r, ok := s.Lookup(w.id)
	m := s.data.get(w.id)
	if fresh || !ok || r.Rev == 0 || r.Epoch < w.epoch {
		e, err := s.bucket.Get(ctx, w.id)
		if err != nil {
			return nil, nil, err
		}
		s.index.Learn(e)
		if e.Gone && ok && r.Rev == 0 {
			return nil, nil, errAgain // the record is yet to be written
		}
		if r, err = found(e); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case r.Epoch > w.epoch:
		return nil, nil, deposed(&r, w.epoch)
	case r.Epoch < w.epoch:
		return nil, nil, errAgain // a leader that was deposed itself has answered
	}
	if fresh || m == nil {
		var err error
		if m, err = s.readManifest(ctx, w.id); err != nil {
			return nil, nil, err
		}
	}
	return &r, m, nil
}

// readManifest asks the leader. A session without data has one of revision 0, or
// the marker's.
func (s *Store) readManifest(ctx context.Context, id string) (*manifest, error) {
	e, err := s.bucket.Get(ctx, manifestKey(id))
	if err != nil {
		return nil, err
	}
	if e.Gone {
		return &manifest{Session: id, rev: e.Rev}, nil
	}
	m, err := decodeManifest(e)
	if err != nil {
		return nil, fmt.Errorf("data of session %s: %w", id, err)
	}
	return m, nil
}

func decodeManifest(e kv.Entry) (*manifest, error) {
	m, err := kv.Decode[manifest](e.Value)
	if err == nil && manifestKey(m.Session) != e.Key {
		err = fmt.Errorf("%w: it is that of session %s", kv.ErrCorrupt, m.Session)
	}
	m.rev = e.Rev
	return &m, err
}

// check makes the manifest that follows m. Nil: there is nothing to do.
func (w *dataWrite) check(m *manifest) (*manifest, error) {
	have, there := m.Keys[w.key]
	switch {
	case w.base != AnyRev && have[0] != w.base:
		return nil, fmt.Errorf("data %q of session %s: %w: it has revision %d, not %d", w.key, w.id, kv.ErrConflict, have[0], w.base)
	case w.gone && !there:
		return nil, nil
	}
	next := &manifest{Schema: recordSchema, Session: w.id, Epoch: w.epoch, N: m.N + 1, Bytes: m.Bytes, Keys: make(map[string]dataEntry, len(m.Keys)+1), Mutation: w.mutation}
	for key, e := range m.Keys {
		next.Keys[key] = e
	}
	if there {
		next.Bytes -= len(w.key) + int(have[1])
	}
	if w.gone {
		delete(next.Keys, w.key)
		return next, nil
	}
	next.Keys[w.key] = dataEntry{next.N, uint64(len(w.value))}
	next.Bytes += len(w.key) + len(w.value)
	switch {
	case len(next.Keys) > MaxDataKeys:
		return nil, fmt.Errorf("%w: session %s has %d keys of data already; delete some first", ErrLimit, w.id, MaxDataKeys)
	case next.Bytes > MaxDataBytes:
		return nil, fmt.Errorf("%w: session %s would have %d bytes of data; at most %d", ErrLimit, w.id, next.Bytes, MaxDataBytes)
	}
	return next, nil
}

// sendData writes key and manifest together: the key if the record is still r,
// the manifest if it is still m.
func (s *Store) sendData(ctx context.Context, w *dataWrite, r *Record, m, next *manifest) error {
	key := kv.Write{Key: dataKey(w.id, w.key), Gone: w.gone, Guard: w.id, Base: r.Rev}
	if !w.gone {
		var err error
		if key.Value, err = kv.Encode(datum{
			Schema: recordSchema, Session: w.id, Epoch: w.epoch, Mutation: w.mutation,
			Data: Data{w.key, w.value, next.N, time.Now().UTC().Truncate(time.Millisecond)},
		}); err != nil {
			return err
		}
	}
	value, err := kv.Encode(next)
	if err != nil {
		return err
	}
	s.data.forget(w.id)
	before := *w
	w.sent, w.over, w.rev = true, m.rev, next.N
	rev, err := s.bucket.Write(ctx, key, kv.Write{Key: manifestKey(w.id), Value: value, Base: m.rev})
	switch {
	case err == nil:
		next.rev = rev
		s.data.put(next)
		s.index.Learn(kv.Entry{Key: manifestKey(w.id), Value: value, Rev: rev})
	case errors.Is(err, kv.ErrConflict):
		*w = before // what was sent before, if anything, is what may have been applied
		return errAgain
	case errors.Is(err, kv.ErrRetry):
		*w = before
	}
	return err
}

// dataOutcome tells from a manifest that was read since what became of w: it is
// done, or not applied.
func (s *Store) dataOutcome(ctx context.Context, w *dataWrite, m *manifest) (done bool, err error) {
	switch {
	case m.Mutation == w.mutation:
		s.data.put(m)
		return true, nil
	case m.rev == w.over:
		return false, nil // if it still comes, it and the next try exclude each other
	case m.N < w.rev || m.Keys[w.key][0] != w.rev:
		if !w.gone && m.N >= w.rev {
			// Others have written since; they may have overwritten this key.
			if have, ok := m.Keys[w.key]; ok && have[0] > w.rev {
				return false, fmt.Errorf("data %q of session %s was written by another meanwhile; outcome unknown", w.key, w.id)
			}
		}
		return false, nil
	}
	e, err := s.bucket.Get(ctx, dataKey(w.id, w.key))
	if err != nil {
		return false, err
	}
	d, err := decodeDatum(e)
	if err == nil && d.Mutation == w.mutation {
		return true, nil
	}
	return false, nil
}

// dropData removes all data of a session whose record is gone for good. Nothing
// is added meanwhile: that needs the record.
func (s *Store) dropData(ctx context.Context, id string) error {
	s.data.forget(id)
	return s.persist(ctx, func(ctx context.Context) error {
		if err := s.bucket.Drop(ctx, dataPrefix(id)); err != nil {
			return err
		}
		e, err := s.bucket.Get(ctx, manifestKey(id))
		if err != nil {
			return err
		}
		if !e.Gone {
			if e.Rev, err = s.bucket.Remove(ctx, e.Key, e.Rev); errors.Is(err, kv.ErrConflict) {
				return errAgain
			} else if err != nil {
				return err
			}
		}
		s.index.Learn(kv.Entry{Key: e.Key, Rev: e.Rev, Gone: true})
		return nil
	})
}
