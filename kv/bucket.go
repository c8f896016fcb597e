// Package kv holds the fabric's buckets on JetStream KV: what they store, how a
// value is encoded and checked, the index that answers reads on every node, and
// the registry of MCP servers made of them.
//
// Writes go to the bucket with compare-and-set on a key's revision. Reads come
// from an [Index], which follows the bucket's republished updates, is compared
// with it now and then, and is kept on disk: see index.go and pass.go. The
// registry lays what a node knows first-hand over its index: see registry.go
// for what is shown, registrar.go and reconcile.go for how the bucket follows.
package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
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
	// ErrNoBucket: the bucket's stream does not exist.
	ErrNoBucket = errors.New("no such bucket")
)

// Bounds of one request to JetStream, and of one write.
const (
	apiTimeout   = time.Second
	writeTimeout = 2 * time.Second
)

// markerTTL is how long a deleted key leaves a marker. An index that was away
// for longer compares everything.
const markerTTL = time.Hour

// BucketConfig says which bucket, and how it is replicated.
type BucketConfig struct {
	Kind        string // what it holds: registry, …
	Region      string // the region that writes it; "" = local
	Generation  int    // counts how often the region's history was forced or rebuilt; 0 = 1
	Replicas    int    // 0 = 1
	Description string

	// Flat makes indexes follow only the keys of one token. The others are
	// written together with one of those, see [Bucket.Write], and read from the
	// bucket's leader.
	Flat bool
	// MarkerTTL is how long a purged key leaves a marker; 0 = 1 h. An index that
	// missed a marker finds out when it compares everything.
	MarkerTTL time.Duration
}

func (c *BucketConfig) defaults() {
	if c.Region == "" {
		c.Region = "local"
	}
	c.Generation, c.Replicas = max(c.Generation, 1), max(c.Replicas, 1)
	if c.MarkerTTL == 0 {
		c.MarkerTTL = markerTTL
	}
}

// Name is the bucket's name, "<kind>_<region>_g<generation>".
func (c BucketConfig) Name() string {
	c.defaults()
	return fmt.Sprintf("%s_%s_g%d", c.Kind, c.Region, c.Generation)
}

// Feed is where the bucket's updates are republished: this, ".", and the key.
func (c BucketConfig) Feed() string {
	c.defaults()
	return "ripstop.feed." + c.Region + "." + c.Name()
}

// stream is a KV bucket's stream as the KV clients expect it, republished.
// Purged keys vanish for good after a while: instance ids never come again, and
// their markers would pile up.
func (c BucketConfig) stream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              "KV_" + c.Name(),
		Description:       c.Description,
		Subjects:          []string{"$KV." + c.Name() + ".>"},
		MaxMsgsPerSubject: 1,
		MaxBytes:          -1,
		MaxMsgs:           -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          c.Replicas,
		Duplicates:        2 * time.Minute,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       true,
		AllowMsgTTL:       true,

		AllowAtomicPublish: c.Flat,
		RePublish:          &jetstream.RePublish{Source: "$KV." + c.Name() + ".>", Destination: c.Feed() + ".>"},
	}
}

// Bucket is a KV bucket, reached without asking JetStream for it first: it may
// not exist yet, or have no leader.
type Bucket struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	cfg    BucketConfig
	name   string
	stream string
	prefix string // of the subjects of keys
	keys   string // wildcard of the keys that indexes follow

	batches chan struct{} // has an element for each batch that is open
	window  window
}

// NewBucket returns the bucket that cfg describes, reached through nc. Nothing
// is sent yet.
func NewBucket(nc *nats.Conn, cfg BucketConfig) (*Bucket, error) {
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(writeTimeout))
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.Name(), err)
	}
	cfg.defaults()
	name := cfg.Name()
	b := &Bucket{nc: nc, js: js, cfg: cfg, name: name, stream: "KV_" + name, prefix: "$KV." + name + ".", keys: ">", batches: make(chan struct{}, batchesAtOnce)}
	if cfg.Flat {
		b.keys = "*"
	}
	return b, nil
}

// Name is the bucket's name.
func (b *Bucket) Name() string { return b.name }

// Ensure creates the bucket, or changes what differs of its replicas and feed.
// It needs a meta leader.
func (b *Bucket) Ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	want := b.cfg.stream()
	have, err := b.js.Stream(ctx, b.stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		_, err = b.js.CreateStream(ctx, want)
	case err == nil:
		cfg := have.CachedInfo().Config
		if cfg.Replicas == want.Replicas && cfg.AllowMsgTTL && cfg.AllowAtomicPublish == want.AllowAtomicPublish && cfg.RePublish != nil && *cfg.RePublish == *want.RePublish {
			return nil
		}
		cfg.Replicas, cfg.AllowMsgTTL, cfg.RePublish = want.Replicas, true, want.RePublish
		cfg.AllowAtomicPublish = want.AllowAtomicPublish
		_, err = b.js.UpdateStream(ctx, cfg)
	}
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", b.name, err)
	}
	return nil
}

// Entry is what a bucket holds under a key.
type Entry struct {
	Key   string
	Value []byte
	Rev   uint64
	Gone  bool // deleted or purged: Rev is the marker's

	// covers is how many of the revisions before Rev were written with it, to
	// keys that indexes do not follow.
	covers uint64
}

// Get asks the bucket's leader for a key. What is deleted, and what never was,
// is Gone; the latter has revision 0. Decode checks the value.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	e, err := b.ask(ctx, struct {
		Last string `json:"last_by_subj"`
	}{b.prefix + key})
	if err != nil {
		return Entry{}, fmt.Errorf("get %s from %s: %w", key, b.name, err)
	}
	e.Key = key
	return e, nil
}

// after asks the leader for the first entry from sequence seq on. It is Gone
// with revision 0 if there is none.
func (b *Bucket) after(ctx context.Context, seq uint64) (Entry, error) {
	return b.ask(ctx, struct {
		Seq  uint64 `json:"seq"`
		Next string `json:"next_by_subj"`
	}{seq, b.prefix + b.keys})
}

func (b *Bucket) ask(ctx context.Context, req any) (Entry, error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Headers []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := b.api(ctx, "STREAM.MSG.GET", req, &answer); err != nil {
		return Entry{}, err
	}
	switch e := answer.Error; {
	case e == nil:
	case e.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return Entry{Gone: true}, nil
	default:
		return Entry{}, apiError(e)
	}
	m := answer.Message
	h, err := nats.DecodeHeadersMsg(m.Headers)
	if len(m.Headers) > 0 && err != nil {
		return Entry{}, fmt.Errorf("%w: headers: %v", ErrCorrupt, err)
	}
	return Entry{Key: strings.TrimPrefix(m.Subject, b.prefix), Value: m.Data, Rev: m.Seq, Gone: marks(h)}, nil
}

// marks reports whether a message with these headers says that its key is gone.
func marks(h nats.Header) bool {
	op := h.Get("KV-Operation")
	return op == "DEL" || op == "PURGE" || h.Get("Nats-Marker-Reason") != ""
}

// bucketInfo is what the index wants to know of the bucket's stream.
type bucketInfo struct {
	Error   *jetstream.APIError `json:"error"`
	Created time.Time           `json:"created"`
	State   struct {
		Msgs    uint64 `json:"messages"`
		LastSeq uint64 `json:"last_seq"`
	} `json:"state"`
	Cluster *struct {
		Leader   string    `json:"leader"`
		Replicas []Replica `json:"replicas"`
	} `json:"cluster"`
}

// errNoLeader: while a stream has no leader, any replica says what it has
// (nats-server, jsStreamInfoRequest).
var errNoLeader = errors.New("its stream has no leader")

// info asks the bucket's leader. It fails with ErrNoBucket.
func (b *Bucket) info(ctx context.Context) (bucketInfo, error) {
	var i bucketInfo
	err := b.api(ctx, "STREAM.INFO", struct{}{}, &i)
	if err == nil && i.Error != nil {
		err = apiError(i.Error)
	}
	if err == nil && i.Cluster != nil && i.Cluster.Leader == "" {
		err = errNoLeader
	}
	if err != nil {
		return i, fmt.Errorf("look at bucket %s: %w", b.name, err)
	}
	return i, nil
}

func apiError(e *jetstream.APIError) error {
	if e.ErrorCode == jetstream.JSErrCodeStreamNotFound {
		return ErrNoBucket
	}
	return e
}

func (b *Bucket) api(ctx context.Context, what string, req, answer any) error {
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	msg, err := b.nc.RequestWithContext(ctx, "$JS.API."+what+"."+b.stream, data)
	if err != nil {
		return err
	}
	return json.Unmarshal(msg.Data, answer)
}

// Update stores value under key if its revision is still base (0: if it never
// had one), and returns its revision. It fails with ErrConflict; after any other
// error the outcome is unknown.
func (b *Bucket) Update(ctx context.Context, key string, value []byte, base uint64) (uint64, error) {
	rev, err := b.publish(ctx, &nats.Msg{Subject: b.prefix + key, Data: value, Header: nats.Header{}}, base)
	if err != nil {
		return 0, fmt.Errorf("update %s in %s at revision %d: %w", key, b.name, base, err)
	}
	return rev, nil
}

// Purge removes key if its revision is still base. It fails with ErrConflict;
// after any other error the outcome is unknown.
func (b *Bucket) Purge(ctx context.Context, key string, base uint64) error {
	_, err := b.Remove(ctx, key, base)
	return err
}

// Remove is Purge, and returns the revision of the marker that it leaves.
func (b *Bucket) Remove(ctx context.Context, key string, base uint64) (uint64, error) {
	h := nats.Header{"KV-Operation": {"PURGE"}, jetstream.MsgRollup: {jetstream.MsgRollupSubject}, "Nats-TTL": {b.cfg.MarkerTTL.String()}}
	rev, err := b.publish(ctx, &nats.Msg{Subject: b.prefix + key, Header: h}, base)
	if err != nil {
		return 0, fmt.Errorf("purge %s from %s at revision %d: %w", key, b.name, base, err)
	}
	return rev, nil
}

func (b *Bucket) publish(ctx context.Context, msg *nats.Msg, base uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	leave, err := b.window.enter(ctx)
	if err != nil {
		return 0, fmt.Errorf("not written: earlier writes are not answered: %w", err)
	}
	msg.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(base, 10))
	msg.Header.Set(jetstream.ExpectedStreamHeader, b.stream)
	ack, err := b.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	leave(err == nil || conflict(err))
	if conflict(err) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// conflict knows the codes of a conflict: 10071 wrong last sequence, and 10164
// when the server can't tell which.
func conflict(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == 10071 || api.ErrorCode == 10164)
}
