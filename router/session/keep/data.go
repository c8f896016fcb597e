package keep

import (
	"context"
	"errors"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router/session"
)

var (
	_ session.DataKeeper = (*Keep)(nil)
	_ session.DataKeeper = Client{}
)

// GetData implements [session.DataKeeper].
func (k *Keep) GetData(ctx context.Context, server, id string, epoch uint64, key string) (sessions.Data, error) {
	if err := k.mayHave(ctx, server, id); err != nil {
		return sessions.Data{}, err
	}
	return k.store.GetData(ctx, id, epoch, key)
}

// ListData implements [session.DataKeeper].
func (k *Keep) ListData(ctx context.Context, server, id string, epoch uint64) ([]sessions.DataInfo, error) {
	if err := k.mayHave(ctx, server, id); err != nil {
		return nil, err
	}
	return k.store.ListData(ctx, id, epoch)
}

// PutData implements [session.DataKeeper].
func (k *Keep) PutData(ctx context.Context, server, id string, epoch uint64, key string, value []byte, base uint64) (uint64, error) {
	if err := k.mayHave(ctx, server, id); err != nil {
		return 0, err
	}
	return k.store.PutData(ctx, id, epoch, key, value, base)
}

// DeleteData implements [session.DataKeeper].
func (k *Keep) DeleteData(ctx context.Context, server, id string, epoch uint64, key string, base uint64) error {
	if err := k.mayHave(ctx, server, id); err != nil {
		return err
	}
	return k.store.DeleteData(ctx, id, epoch, key, base)
}

// mayHave says whether a session is one of server's, whose data only its own
// instances may have.
func (k *Keep) mayHave(ctx context.Context, server, id string) error {
	r, known := k.store.Lookup(id)
	if !known {
		var err error
		if r, err = k.fresh(ctx, id); err != nil {
			return err
		}
	}
	if r.Server != server {
		return kv.ErrNotFound
	}
	return nil
}

func (s *Service) data(ctx context.Context, verb, server string, q *question) (a answer, err error) {
	base := uint64(sessions.AnyRev)
	if q.Base != nil {
		base = *q.Base
	}
	switch verb {
	case verbGet:
		var d sessions.Data
		if d, err = s.keep.GetData(ctx, server, q.ID, q.Epoch, q.Key); err == nil {
			a.Data = &d
		}
	case verbList:
		a.Keys, err = s.keep.ListData(ctx, server, q.ID, q.Epoch)
	case verbPut:
		a.Rev, err = s.keep.PutData(ctx, server, q.ID, q.Epoch, q.Key, q.Value, base)
	case verbDelete:
		err = s.keep.DeleteData(ctx, server, q.ID, q.Epoch, q.Key, base)
	}
	return a, err
}

// GetData implements [session.DataKeeper].
func (c Client) GetData(ctx context.Context, server, id string, epoch uint64, key string) (sessions.Data, error) {
	a, err := c.ask(ctx, verbGet, server, question{ID: id, Epoch: epoch, Key: key})
	if err == nil && a.Data == nil {
		err = errors.New("the node's answer has no data in it")
	}
	if err != nil {
		return sessions.Data{}, err
	}
	return *a.Data, nil
}

// ListData implements [session.DataKeeper].
func (c Client) ListData(ctx context.Context, server, id string, epoch uint64) ([]sessions.DataInfo, error) {
	a, err := c.ask(ctx, verbList, server, question{ID: id, Epoch: epoch})
	return a.Keys, err
}

// PutData implements [session.DataKeeper].
func (c Client) PutData(ctx context.Context, server, id string, epoch uint64, key string, value []byte, base uint64) (uint64, error) {
	a, err := c.ask(ctx, verbPut, server, question{ID: id, Epoch: epoch, Key: key, Value: value, Base: baseOf(base)})
	return a.Rev, err
}

// DeleteData implements [session.DataKeeper].
func (c Client) DeleteData(ctx context.Context, server, id string, epoch uint64, key string, base uint64) error {
	_, err := c.ask(ctx, verbDelete, server, question{ID: id, Epoch: epoch, Key: key, Base: baseOf(base)})
	return err
}

func baseOf(rev uint64) *uint64 {
	if rev == sessions.AnyRev {
		return nil
	}
	return &rev
}
