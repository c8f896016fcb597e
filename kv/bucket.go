// Package kv holds the fabric's typed buckets on JetStream KV: what they store,
// how a value is encoded and checked, and the index that answers reads.
package kv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors of a bucket.
var (
	// ErrNotFound: the key has no value.
	ErrNotFound = errors.New("key not found")
	// ErrConflict: the key changed since the revision the write was based on.
	ErrConflict = errors.New("revision conflict")
	// ErrCorrupt: a value's checksum does not hold, or it does not decode.
	ErrCorrupt = errors.New("corrupt value")
)

// Bucket is a JetStream KV bucket whose values are JSON objects of type T. Each
// carries the SHA-256 of the rest of itself as its last member, "checksum", so
// that a value a person reads with `nats kv get` can be told from a rotten one.
type Bucket[T any] struct {
	kv jetstream.KeyValue
}

// OpenBucket opens bucket name, creating it if need be.
func OpenBucket[T any](ctx context.Context, js jetstream.JetStream, cfg jetstream.KeyValueConfig) (*Bucket[T], error) {
	kv, err := js.CreateOrUpdateKeyValue(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.Bucket, err)
	}
	return &Bucket[T]{kv: kv}, nil
}

// Get returns the value of key and its revision. It fails with ErrNotFound or
// ErrCorrupt.
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var v T
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return v, 0, fmt.Errorf("get %s from %s: %w", key, b.kv.Bucket(), ErrNotFound)
	}
	if err != nil {
		return v, 0, fmt.Errorf("get %s from %s: %w", key, b.kv.Bucket(), err)
	}
	v, err = Decode[T](e.Value())
	if err != nil {
		return v, 0, fmt.Errorf("get %s from %s: %w", key, b.kv.Bucket(), err)
	}
	return v, e.Revision(), nil
}

// Put stores value under key, whatever is there, and returns its revision.
func (b *Bucket[T]) Put(ctx context.Context, key string, value T) (uint64, error) {
	data, err := Encode(value)
	if err != nil {
		return 0, fmt.Errorf("put %s into %s: %w", key, b.kv.Bucket(), err)
	}
	rev, err := b.kv.Put(ctx, key, data)
	if err != nil {
		return 0, fmt.Errorf("put %s into %s: %w", key, b.kv.Bucket(), err)
	}
	return rev, nil
}

// Update stores value under key if its revision is still base (0: if it has no
// value). It fails with ErrConflict.
func (b *Bucket[T]) Update(ctx context.Context, key string, value T, base uint64) (uint64, error) {
	data, err := Encode(value)
	if err != nil {
		return 0, fmt.Errorf("update %s in %s: %w", key, b.kv.Bucket(), err)
	}
	var rev uint64
	if base == 0 {
		rev, err = b.kv.Create(ctx, key, data)
	} else {
		rev, err = b.kv.Update(ctx, key, data, base)
	}
	if conflict(err) {
		return 0, fmt.Errorf("update %s in %s at revision %d: %w", key, b.kv.Bucket(), base, ErrConflict)
	}
	if err != nil {
		return 0, fmt.Errorf("update %s in %s: %w", key, b.kv.Bucket(), err)
	}
	return rev, nil
}

// conflict knows the codes JetStream answers a CAS conflict with: 10071 wrong
// last sequence, and 10164 when it comes from inside a batch.
func conflict(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == 10071 || api.ErrorCode == 10164)
}

// Delete removes key. Removing what is not there is no error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	if err := b.kv.Purge(ctx, key); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("delete %s from %s: %w", key, b.kv.Bucket(), err)
	}
	return nil
}

const checksumMember = `,"checksum":"`

// Encode returns value as a JSON object with its checksum as the last member.
func Encode(value any) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(data) < 3 || data[0] != '{' {
		return nil, fmt.Errorf("encode: a bucket's value is a JSON object with members, not %.40s", data)
	}
	sum := sha256.Sum256(data)
	data = append(data[:len(data)-1], checksumMember...)
	data = hex.AppendEncode(data, sum[:])
	return append(data, `"}`...), nil
}

// Decode checks and decodes what Encode made. It fails with ErrCorrupt.
func Decode[T any](data []byte) (T, error) {
	var v T
	at := bytes.LastIndex(data, []byte(checksumMember))
	if at < 0 || len(data) != at+len(checksumMember)+2*sha256.Size+2 {
		return v, fmt.Errorf("%w: no checksum", ErrCorrupt)
	}
	plain := append(append(make([]byte, 0, at+1), data[:at]...), '}')
	sum := sha256.Sum256(plain)
	if hex.EncodeToString(sum[:]) != string(data[at+len(checksumMember):len(data)-2]) {
		return v, fmt.Errorf("%w: checksum does not hold", ErrCorrupt)
	}
	if err := json.Unmarshal(plain, &v); err != nil {
		return v, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return v, nil
}
