package discovery_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestReloadOfRoutesDisturbsNothing adds and removes routes on every node of a
// cluster under load: the Finder stands on this.
func TestReloadOfRoutesDisturbsNothing(t *testing.T) {
	nodes := lab(t, 3)
	var base []*url.URL
	for _, v := range nodes {
		base = append(base, &url.URL{Scheme: "nats-route", User: url.UserPassword("route", v.secret), Host: v.addr()})
	}
	for _, v := range nodes {
		v.start(t, base)
	}
	elected(t, nodes)
	// While both sides dial and one gives way, messages between nodes get lost.
	within(t, 10*time.Second, "complete pools of routes", func() bool {
		return len(routeIDs(t, nodes)) == len(nodes)*(len(nodes)-1)*(server.DEFAULT_ROUTE_POOL_SIZE+1) // and one for the system account
	})
	_, leader := nodes[0].meta(t)
	routesBefore := routeIDs(t, nodes)
	load := startLoad(t, nodes)
	load.awaitMore(t, 50)
	var took time.Duration
	const rounds = 8
	for i := range rounds {
		for _, v := range nodes {
			extra := *base[0]
			extra.Path = "/round" + strconv.Itoa(i) // to a connected node: ends as a duplicate
			dead := *base[0]
			dead.Host = "127.0.0.9:" + strconv.Itoa(v.port)
			begin := time.Now()
			rs := append(slices.Clone(base), &extra, &dead)
			if i%2 == 1 {
				rs = slices.Clone(base)
			}
			if err := v.reload(rs); err != nil {
				t.Fatal(err)
			}
			took = max(took, time.Since(begin))
		}
		load.awaitMore(t, 20)
	}
	load.stop(t)
	if _, now := nodes[0].meta(t); now != leader {
		t.Errorf("the meta leader was %s and is %s", leader, now)
	}
	if after := routeIDs(t, nodes); !slices.Equal(after, routesBefore) {
		t.Errorf("routes were %v and are %v", routesBefore, after)
	}
	t.Logf("%d reloads, %s at most; %d puts, %d watched, %d requests; worst put %s", rounds*len(nodes), took, load.puts.Load(), load.watched.Load(), load.requests.Load(), time.Duration(load.worst.Load()))
}

func routeIDs(t *testing.T, nodes []*node) []string {
	t.Helper()
	var ids []string
	for _, v := range nodes {
		z, err := v.srv.Routez(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range z.Routes {
			ids = append(ids, fmt.Sprintf("%s-%s-%d", v.name, r.RemoteName, r.Rid))
		}
	}
	slices.Sort(ids)
	return ids
}

// load is traffic that counts and must never fail: R3 puts, a watch, requests
// between nodes.
type load struct {
	puts, watched, requests, worst atomic.Int64
	failed                         chan error
	cancel                         context.CancelFunc
	wg                             sync.WaitGroup // of the loops
	watcher                        jetstream.KeyWatcher
	watching                       chan struct{} // closed when the watch has ended
}

func (l *load) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

func startLoad(t *testing.T, nodes []*node) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{failed: make(chan error, 1), cancel: cancel, watching: make(chan struct{})}
	lost := nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
		if ctx.Err() == nil {
			l.fail(fmt.Errorf("client disconnected: %w", err))
		}
	})
	js, err := jetstream.New(nodes[0].connect(t, "fabric", lost))
	if err != nil {
		t.Fatal(err)
	}
	var kv jetstream.KeyValue
	within(t, 10*time.Second, "a bucket", func() bool { // a new meta leader may leave a request unanswered
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		kv, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
		return err == nil
	})
	l.watch(t, ctx, nodes[1].connect(t, "fabric", lost))
	l.loop(ctx, func() error {
		begin := time.Now()
		if _, err := kv.Put(ctx, "k"+strconv.FormatInt(l.puts.Load(), 10), []byte("v")); err != nil {
			return fmt.Errorf("put %d after %s: %w", l.puts.Load(), time.Since(begin), err)
		}
		l.worst.Store(max(l.worst.Load(), int64(time.Since(begin))))
		l.puts.Add(1)
		return nil
	})
	if _, err := nodes[2].connect(t, "mcp", lost).Subscribe("echo", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		t.Fatal(err)
	}
	nc := nodes[0].connect(t, "mcp", lost)
	within(t, 2*time.Second, "interest to spread", func() bool { _, err := nc.Request("echo", nil, time.Second); return err == nil })
	l.loop(ctx, func() error {
		_, err := nc.RequestWithContext(ctx, "echo", []byte("x"))
		l.requests.Add(1)
		return err
	})
	return l
}

func (l *load) watch(t *testing.T, ctx context.Context, nc *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	w, err := kv.WatchAll(t.Context()) // outlives the load, to catch up
	if err != nil {
		t.Fatal(err)
	}
	l.watcher = w
	go func() {
		defer close(l.watching)
		for e := range w.Updates() {
			if e != nil {
				l.watched.Add(1)
			}
		}
	}()
}

func (l *load) loop(ctx context.Context, step func() error) {
	l.wg.Go(func() {
		for ctx.Err() == nil {
			if err := step(); err != nil && ctx.Err() == nil {
				l.fail(err)
				return
			}
		}
	})
}

// awaitMore waits until n more puts, watch events and requests have happened.
func (l *load) awaitMore(t *testing.T, n int64) {
	t.Helper()
	puts, watched, requests := l.puts.Load()+n, l.watched.Load()+n, l.requests.Load()+n
	within(t, 5*time.Second, "traffic to flow", func() bool {
		select {
		case err := <-l.failed:
			t.Fatal(err)
		default:
		}
		return l.puts.Load() >= puts && l.watched.Load() >= watched && l.requests.Load() >= requests
	})
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	// A put that the cancellation cut off may have been stored, uncounted.
	within(t, 2*time.Second, "the watch to catch up", func() bool { return l.watched.Load() >= l.puts.Load() })
	if err := l.watcher.Stop(); err != nil {
		t.Error(err)
	}
	<-l.watching
	select {
	case err := <-l.failed:
		t.Error(err)
	default:
	}
}
