package kv

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// RegistryOptions say which registry, and who reads it.
type RegistryOptions struct {
	Fabric     *nats.Conn // reaches buckets and feeds
	Region     string     // "" = local
	Generation int        // of the region's buckets; 0 = 1
	Replicas   int        // of the bucket: as many as there are votes; 0 = 1

	// Node is this node's name. Records that carry it count only if they are
	// the registrar's own: the bucket may hold some of an earlier run.
	Node string

	File   string        // bbolt file the index is kept in; "" = none
	Every  time.Duration // between comparisons of index and bucket; 0 = 30 s
	Logger *slog.Logger
}

// Registry knows the instances of the cluster. What it shows is made of three
// layers: the index of the bucket, which every node writes its own instances
// to; less the nodes that are known to be gone; and over it the instances
// attached to this node, which are known first-hand, whether the bucket can be
// written or not. Reads are map reads.
type Registry struct {
	opts   RegistryOptions
	bucket *Bucket
	index  *Index
	log    *slog.Logger

	// change orders changes and those who watch them. Under it are the layers.
	change  sync.Mutex
	own     map[string]*Instance    // this node's instances, by key
	records map[string]*record      // the bucket's, by key
	claims  map[string]*claimRecord // the bucket's, by server
	hidden  map[string]string       // nodes that are gone: the NATS server id of the run that ended, "" = any
	touched func(key string)        // tells the registrar that the bucket has news of key
	watch   map[int]func(Change)
	nextID  int

	mu       sync.RWMutex
	byServer map[string][]*Instance // what is shown, sorted by instance id; slices and records are replaced, never changed
	count    int
}

// record is a key of the bucket. An instance without a server is a value that
// did not decode.
type record struct {
	*Instance
	rev uint64
}

type claimRecord struct {
	Claim
	rev uint64
}

// Change is one instance that appeared, changed or went.
type Change struct {
	Instance Instance
	Gone     bool
}

// OpenRegistry opens the registry with what the disk holds of it, and follows
// the bucket from then on. It never waits for JetStream: without a leader the
// registry is stale, and says so.
func OpenRegistry(opts RegistryOptions) (*Registry, error) {
	b, err := NewBucket(opts.Fabric, BucketConfig{
		Kind: "registry", Region: opts.Region, Generation: opts.Generation, Replicas: opts.Replicas,
		Description: "MCP server instances, one key each: <server>.<instance>",
	})
	if err != nil {
		return nil, err
	}
	r := &Registry{
		opts: opts, bucket: b, log: opts.Logger,
		own: map[string]*Instance{}, records: map[string]*record{}, claims: map[string]*claimRecord{},
		hidden: map[string]string{}, touched: func(string) {}, watch: map[int]func(Change){},
		byServer: map[string][]*Instance{},
	}
	r.index, err = OpenIndex(b, IndexOptions{
		Apply: r.apply, File: opts.File, Every: opts.Every, OnLeader: func() { r.touch("") }, Logger: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Close stops following the bucket.
func (r *Registry) Close() error { return r.index.Close() }

// Bucket is the name of the registry's bucket.
func (r *Registry) Bucket() string { return r.bucket.Name() }

// Resync asks for a comparison of index and bucket soon, as when a route came
// back. It never blocks.
func (r *Registry) Resync() { r.index.Kick() }

// Sync compares index and bucket. It fails when the bucket's leader can't be
// asked.
func (r *Registry) Sync(ctx context.Context) error { return r.index.Sync(ctx) }

// AsOf is when the index was last known to be what the bucket holds; zero if
// never.
func (r *Registry) AsOf() time.Time { return r.index.AsOf() }

// Age is how long ago AsOf is.
func (r *Registry) Age() time.Duration { return time.Since(r.index.AsOf()) }

// Stale reports whether other nodes may have changed more than is shown: the
// bucket's leader can't be asked. This node's own instances are never stale.
func (r *Registry) Stale() bool { return r.index.Stale() }

// Gaps counts how often the index missed updates and fetched them.
func (r *Registry) Gaps() uint64 { return r.index.Gaps() }

// Instances returns the instances of server, sorted by id. The slice and what it
// points to are shared: do not change them.
func (r *Registry) Instances(server string) []*Instance {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byServer[server]
}

// Len returns the number of instances.
func (r *Registry) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count
}

// All returns every instance, sorted by server and id.
func (r *Registry) All() []Instance {
	r.mu.RLock()
	all := make([]Instance, 0, r.count)
	for _, list := range r.byServer {
		for _, i := range list {
			all = append(all, *i)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(all, byKey)
	return all
}

func byKey(a, b Instance) int {
	if c := strings.Compare(a.Server, b.Server); c != 0 {
		return c
	}
	return strings.Compare(a.Instance, b.Instance)
}

// Servers returns the names of the servers that have an instance, sorted.
func (r *Registry) Servers() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	names := make([]string, 0, len(r.byServer))
	for name := range r.byServer {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Watch calls f for every change from now on, one at a time, until stop is
// called. f must neither block nor change the registry.
func (r *Registry) Watch(f func(Change)) (stop func()) {
	r.change.Lock()
	defer r.change.Unlock()
	id := r.nextID
	r.nextID++
	r.watch[id] = f
	return func() {
		r.change.Lock()
		defer r.change.Unlock()
		delete(r.watch, id)
	}
}

// NodeGone hides the instances of a node that is down, at once and on this node
// only. They stay in the bucket until RemoveNode. serverID is the id of its NATS
// server, "" if it is not known: what a later run of the node registers counts,
// since news of it may come before, or after, the word that the node is back.
func (r *Registry) NodeGone(name, serverID string) {
	r.change.Lock()
	defer r.change.Unlock()
	if run, gone := r.hidden[name]; gone && run == serverID || name == r.opts.Node {
		return
	}
	r.hidden[name] = serverID
	r.showNode(name)
}

// NodeBack undoes NodeGone: what the bucket still has of the node counts again.
func (r *Registry) NodeBack(name string) {
	r.change.Lock()
	defer r.change.Unlock()
	if _, ok := r.hidden[name]; !ok {
		return
	}
	delete(r.hidden, name)
	r.showNode(name)
}

// hides reports whether what the bucket has of a node does not count because that
// run of it is gone. The caller holds r.change.
func (r *Registry) hides(node, serverID string) bool {
	run, gone := r.hidden[node]
	return gone && (run == "" || run == serverID)
}

// showNode brings what is shown of a node up to date. The caller holds r.change.
func (r *Registry) showNode(name string) {
	var keys []string
	for key, rec := range r.records {
		if rec.Node == name {
			keys = append(keys, key)
		}
	}
	r.show(keys)
}

// touch tells the registrar that the bucket has news of a key, or of its leader
// ("").
func (r *Registry) touch(key string) {
	r.change.Lock()
	defer r.change.Unlock()
	r.touched(key)
}
