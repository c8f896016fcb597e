package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// RegistryBucket is the name of the bucket that lists instances.
const RegistryBucket = "registry"

// Registry is the bucket of instances and an index of it in memory, so that
// choosing an instance costs no network. The index follows the bucket: whoever
// writes it, this node or an operator with the nats CLI, is seen here.
type Registry struct {
	bucket *Bucket[Instance]
	watch  jetstream.KeyWatcher
	log    *slog.Logger
	done   chan struct{}

	mu       sync.RWMutex
	byServer map[string][]Instance // sorted by instance id; slices are replaced, never changed
	watchers map[int]func(Change)
	nextID   int
}

// Change is one instance that appeared, changed or went.
type Change struct {
	Instance Instance
	Gone     bool
}

// OpenRegistry opens the bucket and returns when the index holds what is in it.
func OpenRegistry(ctx context.Context, js jetstream.JetStream, log *slog.Logger) (*Registry, error) {
	b, err := OpenBucket[Instance](ctx, js, jetstream.KeyValueConfig{
		Bucket:      RegistryBucket,
		Description: "MCP server instances, one key each: <server>.<instance>",
		Storage:     jetstream.FileStorage,
		History:     1,
	})
	if err != nil {
		return nil, err
	}
	// The watcher outlives ctx, which bounds only the opening.
	w, err := b.kv.WatchAll(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("watch bucket %s: %w", RegistryBucket, err)
	}
	r := &Registry{bucket: b, watch: w, log: log, done: make(chan struct{}),
		byServer: map[string][]Instance{}, watchers: map[int]func(Change){}}
	if err := r.load(ctx); err != nil {
		return nil, errors.Join(err, w.Stop())
	}
	go r.follow()
	return r, nil
}

func (r *Registry) load(ctx context.Context) error {
	for {
		select {
		case e, ok := <-r.watch.Updates():
			if !ok || e == nil { // nil: all that was there has been seen
				return nil
			}
			r.apply(e)
		case <-ctx.Done():
			return fmt.Errorf("load bucket %s: %w", RegistryBucket, ctx.Err())
		}
	}
}

func (r *Registry) follow() {
	defer close(r.done)
	for e := range r.watch.Updates() {
		if e != nil {
			r.apply(e)
		}
	}
}

// Close stops following the bucket.
func (r *Registry) Close() error {
	err := r.watch.Stop()
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		err = nil // the server dropped it first
	}
	<-r.done
	return err
}

func (r *Registry) apply(e jetstream.KeyValueEntry) {
	server, id, _ := strings.Cut(e.Key(), ".")
	c := Change{Instance: Instance{Server: server, Instance: id}, Gone: e.Operation() != jetstream.KeyValuePut}
	if !c.Gone {
		v, err := Decode[Instance](e.Value())
		if err != nil || v.Key() != e.Key() {
			r.log.Warn("registry record ignored", "key", e.Key(), "err", err)
			return
		}
		c.Instance = v
	}
	r.mu.Lock()
	old := r.byServer[server]
	at, found := slices.BinarySearchFunc(old, id, func(i Instance, id string) int { return strings.Compare(i.Instance, id) })
	next := slices.Clone(old)
	switch {
	case c.Gone && found:
		c.Instance = old[at]
		next = slices.Delete(next, at, at+1)
	case c.Gone:
		r.mu.Unlock()
		return
	case found:
		next[at] = c.Instance
	default:
		next = slices.Insert(next, at, c.Instance)
	}
	if len(next) == 0 {
		delete(r.byServer, server)
	} else {
		r.byServer[server] = next
	}
	watchers := make([]func(Change), 0, len(r.watchers))
	for _, f := range r.watchers {
		watchers = append(watchers, f)
	}
	r.mu.Unlock()
	for _, f := range watchers {
		f(c)
	}
}

// Watch calls f for every change from now on, one at a time, until stop is
// called. f must not block.
func (r *Registry) Watch(f func(Change)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.nextID
	r.nextID++
	r.watchers[id] = f
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// Instances returns the instances of server, sorted by id. The slice is shared:
// do not change it.
func (r *Registry) Instances(server string) []Instance {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byServer[server]
}

// All returns every instance, sorted by server and id.
func (r *Registry) All() []Instance {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []Instance
	for _, list := range r.byServer {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b Instance) int { return strings.Compare(a.Key(), b.Key()) })
	return all
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

// Put writes a record.
func (r *Registry) Put(ctx context.Context, i Instance) error {
	_, err := r.bucket.Put(ctx, i.Key(), i)
	return err
}

// Remove deletes the record of an instance.
func (r *Registry) Remove(ctx context.Context, server, instance string) error {
	return r.bucket.Delete(ctx, server+"."+instance)
}
