package session

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"ripstop/kv/sessions"
	"ripstop/router"
)

// DataKeeper is what a [Keeper] is too where servers can keep data with their
// sessions. Its errors are those of sessions.Store: kv.ErrNotFound,
// kv.ErrConflict, sessions.ErrLimit, sessions.ErrDeposed; after any other error
// of a write its outcome is unknown.
type DataKeeper interface {
	GetData(ctx context.Context, server, id string, epoch uint64, key string) (sessions.Data, error)
	ListData(ctx context.Context, server, id string, epoch uint64) ([]sessions.DataInfo, error)
	PutData(ctx context.Context, server, id string, epoch uint64, key string, value []byte, base uint64) (uint64, error)
	DeleteData(ctx context.Context, server, id string, epoch uint64, key string, base uint64) error
}

// Data is what a server keeps with one session: it outlives the server's process
// and its node, and ends with the session. What a write has acknowledged is on
// the disks of a majority of voters. It is fenced: once the session has moved to
// another instance, the one that had it can neither read nor write it
// (sessions.ErrDeposed). Limits are those of package sessions.
//
// It is safe for concurrent use. A method takes a few seconds at most.
type Data struct {
	server string
	keeper DataKeeper
	id     string
	epoch  atomic.Uint64 // 0 = the session is not open yet; id is set before it
}

// ErrNotOpen: a session that is just being opened has no data yet.
var ErrNotOpen = errors.New("the session is not open yet")

// dataTimeout bounds one method of Data; dataRetry is the first wait between its
// tries.
const (
	dataTimeout = 8 * time.Second
	dataRetry   = 20 * time.Millisecond
)

// DataFrom returns the data of the session that a call is in. ctx is what the
// server's handler got. False: the call is in no session, or the server is not
// behind a [Layer] whose keeper keeps data.
//
// Servers of the official Go SDK get it through router/gosdk, whether in a
// node's process or in one of their own (agent.Run).
func DataFrom(ctx context.Context) (*Data, bool) {
	d, ok := ctx.Value(dataKey{}).(*Data)
	return d, ok
}

// CarryData returns to with the session's data that from has, if any.
func CarryData(to, from context.Context) context.Context {
	if d, ok := DataFrom(from); ok {
		return &dataContext{to, d}
	}
	return to
}

type dataKey struct{}

// dataContext is context.WithValue for one key.
type dataContext struct {
	context.Context
	data *Data
}

func (c *dataContext) Value(key any) any {
	if key == (dataKey{}) {
		return c.data
	}
	return c.Context.Value(key)
}

// withData gives the backend the data of a session; epoch 0: of one that it is
// about to open, whose id comes later.
func (l *Layer) withData(ctx context.Context, id string, epoch uint64) (context.Context, *Data) {
	if l.data == nil {
		return ctx, nil
	}
	d := &Data{server: l.opts.Server, keeper: l.data}
	if epoch != 0 {
		d.open(id, epoch)
	}
	return &dataContext{ctx, d}, d
}

// open says which session it is. It is called once.
func (d *Data) open(id string, epoch uint64) {
	if d != nil {
		d.id = id
		d.epoch.Store(epoch)
	}
}

// Session returns the id of the session, "" before it is open. Who knows it can
// use the session.
func (d *Data) Session() string {
	if d.epoch.Load() == 0 {
		return ""
	}
	return d.id
}

// Get returns what is kept under key; kv.ErrNotFound if nothing is.
func (d *Data) Get(ctx context.Context, key string) (sessions.Data, error) {
	var v sessions.Data
	err := d.do(ctx, true, func(ctx context.Context, epoch uint64) (err error) {
		v, err = d.keeper.GetData(ctx, d.server, d.id, epoch, key)
		return err
	})
	return v, err
}

// List returns the keys, sorted.
func (d *Data) List(ctx context.Context) ([]sessions.DataInfo, error) {
	var list []sessions.DataInfo
	err := d.do(ctx, true, func(ctx context.Context, epoch uint64) (err error) {
		list, err = d.keeper.ListData(ctx, d.server, d.id, epoch)
		return err
	})
	return list, err
}

// Put keeps value under key, if the key still has revision base: 0 = there is
// nothing yet, sessions.AnyRev = whatever there is. It returns the new revision.
// kv.ErrConflict: it has another one. After an error that is none of
// [DataKeeper]'s the value may have been written, or may still be.
func (d *Data) Put(ctx context.Context, key string, value []byte, base uint64) (rev uint64, err error) {
	err = d.do(ctx, base == sessions.AnyRev, func(ctx context.Context, epoch uint64) (err error) {
		rev, err = d.keeper.PutData(ctx, d.server, d.id, epoch, key, value, base)
		return err
	})
	return rev, err
}

// Delete removes key, if it still has revision base, as for Put.
func (d *Data) Delete(ctx context.Context, key string, base uint64) error {
	return d.do(ctx, base == sessions.AnyRev, func(ctx context.Context, epoch uint64) error {
		return d.keeper.DeleteData(ctx, d.server, d.id, epoch, key, base)
	})
}

// do runs f, and again while its node can't be reached if that does no harm.
func (d *Data) do(ctx context.Context, again bool, f func(ctx context.Context, epoch uint64) error) error {
	epoch := d.epoch.Load()
	if epoch == 0 {
		return ErrNotOpen
	}
	ctx, cancel := context.WithTimeout(ctx, dataTimeout)
	defer cancel()
	for wait := dataRetry; ; wait *= 2 {
		err := f(ctx, epoch)
		if err == nil || !again || !errors.Is(err, router.ErrUnavailable) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}
