package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router/session"
)

// item is what the session's data has for a value. Keys of data are shorter than
// what remember takes, so it has the whole one too.
type item struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// dataKey is the key of data for a key of remember.
func dataKey(key string) string {
	if len(key) <= sessions.MaxDataKey-1 {
		return "=" + key
	}
	sum := sha256.Sum256([]byte(key))
	return "#" + hex.EncodeToString(sum[:])
}

// How often, and for how long, a value is tried to be written that others write
// too, or while no node can be reached.
const (
	keepTries   = 10
	keepTimeout = 10 * time.Second
)

// keep stores a value with the session. When it returns without an error, the
// value is not lost any more.
func keep(ctx context.Context, data *session.Data, key, value string) (replaced bool, err error) {
	failed := fmt.Errorf("others write %q all the time", key)
	raw, err := json.Marshal(item{key, value})
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	for range keepTries {
		var base uint64
		old, err := data.Get(ctx, dataKey(key))
		switch {
		case err == nil:
			base = old.Rev
		case !errors.Is(err, kv.ErrNotFound):
			return false, fmt.Errorf("not remembered: %w", err)
		default:
			if list, err := data.List(ctx); err == nil && len(list) >= maxKeys {
				return false, errFull
			}
		}
		_, err = data.Put(ctx, dataKey(key), raw, base)
		switch {
		case err == nil:
			return replaced || base != 0, nil
		case errors.Is(err, kv.ErrConflict): // another's value came between; this one goes over it
			replaced = true
		case errors.Is(err, sessions.ErrDeposed), errors.Is(err, sessions.ErrLimit), errors.Is(err, kv.ErrNotFound):
			return false, fmt.Errorf("not remembered: %w", err)
		default: // it may have been written; once more does no harm
			failed = err
		}
	}
	return false, fmt.Errorf("it may be remembered, or not: %w", failed)
}

// kept returns a value of the session.
func kept(ctx context.Context, data *session.Data, key string) (string, error) {
	d, err := data.Get(ctx, dataKey(key))
	if err == nil {
		var it item
		if err := json.Unmarshal(d.Value, &it); err != nil {
			return "", fmt.Errorf("what is remembered as %q can't be read: %w", key, err)
		}
		return it.Value, nil
	}
	if !errors.Is(err, kv.ErrNotFound) {
		return "", fmt.Errorf("not recalled: %w", err)
	}
	list, err := data.List(ctx)
	if err != nil {
		return "", fmt.Errorf("not recalled: %w", err)
	}
	var known []string
	for _, i := range list {
		name := i.Key[1:]
		if i.Key[0] == '#' {
			name = "a long key"
		}
		known = append(known, name)
	}
	return "", errUnknown(key, known)
}
