package kv

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// coversHeader says of a republished update how many revisions before it were
// written with it to keys that indexes do not follow. Without it they would take
// those for updates they missed.
const coversHeader = "Ripstop-Covers"

// batchesAtOnce is how many batches of one node may be open in one bucket:
// nats-server refuses more than 50 a stream (stream.go,
// streamDefaultMaxAtomicBatchInflightPerStream).
const batchesAtOnce = 12

// ErrRetry: JetStream refused the write for a reason that passes. It was not
// applied.
var ErrRetry = errors.New("refused for the moment")

// Write is one write of several that are applied together or not at all.
type Write struct {
	Key   string
	Value []byte
	Gone  bool // the key is removed

	// Base is the revision that the key Guard must have, 0 = none. Without Guard
	// it is the written key itself.
	Base  uint64
	Guard string
}

// Write applies writes together, if all their bases hold, and returns the
// revision of the last, which must be to a key that indexes follow; the others
// must not, and have the revisions before it. The bucket must be Flat. It fails
// with ErrConflict or ErrRetry, and nothing was applied; after any other error
// the outcome is unknown.
//
// The bases are checked by the stream's leader when it proposes the batch, under
// one lock, against what is applied and what is proposed and not applied yet
// (nats-server, jetstream_batching.go, checkMsgHeadersPreClusteredProposal): a
// key that another proposal is about to write, or to rely on, counts as a
// conflict.
func (b *Bucket) Write(ctx context.Context, writes ...Write) (uint64, error) {
	rev, err := b.write(ctx, writes)
	if err != nil {
		return 0, fmt.Errorf("write %s to %s: %w", writes[len(writes)-1].Key, b.name, err)
	}
	return rev, nil
}

func (b *Bucket) write(ctx context.Context, writes []Write) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	select {
	case b.batches <- struct{}{}:
		defer func() { <-b.batches }()
	case <-ctx.Done():
		return 0, fmt.Errorf("not written: earlier writes are not answered: %w", ctx.Err())
	}
	leave, err := b.window.enter(ctx)
	if err != nil {
		return 0, fmt.Errorf("not written: earlier writes are not answered: %w", err)
	}
	rev, err := b.writeBatch(ctx, writes)
	leave(err == nil || errors.Is(err, ErrConflict))
	return rev, err
}

func (b *Bucket) writeBatch(ctx context.Context, writes []Write) (uint64, error) {
	id := rand.Text()
	for n, w := range writes[:len(writes)-1] {
		if err := b.nc.PublishMsg(b.batchMsg(w, id, n+1)); err != nil {
			return 0, err // the batch can't be committed without it
		}
	}
	last := b.batchMsg(writes[len(writes)-1], id, len(writes))
	last.Header.Set("Nats-Batch-Commit", "1")
	last.Header.Set(coversHeader, strconv.Itoa(len(writes)-1))
	msg, err := b.nc.RequestMsgWithContext(ctx, last)
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, fmt.Errorf("%w: %w", ErrRetry, err)
	}
	if err != nil {
		return 0, err
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(msg.Data, &ack); err != nil {
		return 0, fmt.Errorf("acknowledgement: %w", err)
	}
	switch e := ack.Error; {
	case e == nil && ack.Seq != 0:
		return ack.Seq, nil
	case e == nil:
		return 0, errors.New("acknowledgement without a sequence")
	case conflict(e):
		return 0, ErrConflict
	case e.ErrorCode == 10176 || e.ErrorCode == 10210: // its beginning went to another leader; too many are open
		return 0, fmt.Errorf("%w: %w", ErrRetry, e)
	default:
		return 0, e
	}
}

func (b *Bucket) batchMsg(w Write, id string, n int) *nats.Msg {
	h := nats.Header{
		"Nats-Batch-Id": {id}, "Nats-Batch-Sequence": {strconv.Itoa(n)},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(w.Base, 10)},
		jetstream.ExpectedStreamHeader:      {b.stream},
	}
	if w.Guard != "" {
		h.Set("Nats-Expected-Last-Subject-Sequence-Subject", b.prefix+w.Guard)
	}
	m := &nats.Msg{Subject: b.prefix + w.Key, Header: h, Data: w.Value}
	if w.Gone {
		m.Data = nil
		h.Set("KV-Operation", "PURGE")
		h.Set("Nats-TTL", b.cfg.MarkerTTL.String())
	}
	return m
}

// Drop removes every key under prefix, at once and without a marker, whoever
// wrote it. Prefix is whole tokens, and the keys are such as indexes do not
// follow.
func (b *Bucket) Drop(ctx context.Context, prefix string) error {
	if !b.cfg.Flat || prefix == "" {
		return fmt.Errorf("drop %q of %s: indexes follow its keys", prefix, b.name)
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	err := b.api(ctx, "STREAM.PURGE", struct {
		Filter string `json:"filter"`
	}{b.prefix + prefix + ".>"}, &answer)
	if err == nil && answer.Error != nil {
		err = apiError(answer.Error)
	}
	if err != nil {
		return fmt.Errorf("drop %s of %s: %w", prefix, b.name, err)
	}
	return nil
}

// Scan calls f with everything a bucket holds, markers too, oldest first, as
// whichever replicas answer have it.
func (b *Bucket) Scan(ctx context.Context, f func(Entry) error) error {
	for from := uint64(1); ; {
		batch, through, more, err := b.direct(ctx, from, ">")
		if err != nil {
			return err
		}
		for _, e := range batch {
			if err := f(e); err != nil {
				return err
			}
		}
		from = max(from, through+1)
		if !more || len(batch) == 0 {
			return nil
		}
	}
}

// Token makes one token of a key of any name: what a key can't hold, and '=',
// is written as '=' and two hexadecimal digits.
func Token(name string) string {
	var out strings.Builder
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "=%02x", c)
		}
	}
	return out.String()
}

// Replica is one of a bucket's replicas but for the leader's, as the leader sees
// it.
type Replica struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Offline bool   `json:"offline"`
	Lag     uint64 `json:"lag"` // entries
}

// Replicas asks the bucket's leader for the others. A bucket of one replica has
// none.
func (b *Bucket) Replicas(ctx context.Context) ([]Replica, error) {
	i, err := b.info(ctx)
	if err != nil || i.Cluster == nil {
		return nil, err
	}
	return i.Cluster.Replicas, nil
}
