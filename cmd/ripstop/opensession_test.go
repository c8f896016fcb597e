package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/raft"
)

// BenchmarkOpenSession is what a session's creation in a cluster of three costs,
// against what it can't do without: a put in a bucket of three replicas, and the
// server's own initialize. Each turn measures all three; medians are compared.
func BenchmarkOpenSession(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(bareHandler))
	defer backend.Close()
	nodes := benchCluster(b, backend.URL)
	raw := rawBucket(b, nodes[0])
	record := make([]byte, 700) // about what a record has
	var puts, inits, opens []time.Duration
	took := func(list *[]time.Duration, f func() error) {
		begin := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		*list = append(*list, time.Since(begin))
	}
	open := func(url string) error {
		c := &httpCaller{client: http.DefaultClient, url: url}
		_, err := c.post(b.Context(), []byte(benchInit))
		return err
	}
	for n := 0; b.Loop(); n++ {
		took(&puts, func() error {
			_, err := raw.Put(b.Context(), fmt.Sprintf("key-%d", n), record)
			return err
		})
		took(&inits, func() error { return open(backend.URL) })
		took(&opens, func() error { return open(nodes[0].httpURL + "/mcp/" + benchBareNode) })
	}
	put, init, whole := middle(puts), middle(inits), middle(opens)
	b.ReportMetric(float64(put.Microseconds()), "put-µs")
	b.ReportMetric(float64(init.Microseconds()), "initialize-µs")
	b.ReportMetric(float64(whole.Microseconds()), "open-µs")
	b.ReportMetric(float64(whole)/float64(put+init), "ratio")
}

func middle(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// benchCluster runs three nodes in this process, the first with the server at url.
func benchCluster(b *testing.B, url string) []*node {
	b.Helper()
	timing := raft.LAN()
	file := filepath.Join(b.TempDir(), "mcp.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"mcpServers":{%q:{"url":%q}}}`, benchBareNode, url), 0o600); err != nil {
		b.Fatal(err)
	}
	peers := []string{freePort(b), freePort(b), freePort(b)}
	nodes := make([]*node, len(peers))
	errs := make(chan error, len(peers))
	for i := range peers {
		s := &nodeSettings{
			Name: fmt.Sprintf("n%d", i+1), Region: "local", DataDir: b.TempDir(), NATSAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0",
			Cluster:     &fabric.Cluster{Addr: peers[i], Peers: peers, Timing: timing},
			SessionIdle: time.Hour, SessionCleanup: time.Minute, Drain: time.Second, EventDurability: "memory", LogLevel: slog.LevelError, LogFormat: "text",
		}
		if i == 0 {
			s.Servers = file
		}
		go func() { // ends with openNode, which bounds itself
			var err error
			nodes[i], err = openNode(context.WithoutCancel(b.Context()), s)
			errs <- err
		}()
	}
	for range peers {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() {
		for _, n := range nodes {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = n.close(ctx) // what it holds is the benchmark's alone
			cancel()
		}
	})
	deadline := time.Now().Add(time.Minute)
	for _, n := range nodes {
		for {
			resp, err := http.Get(n.httpURL + "/ready")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK && len(n.registry.Servers()) > 1 {
					break
				}
			}
			if time.Now().After(deadline) {
				b.Fatalf("node %s is not ready: %v", n.settings.Name, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nodes
}

func freePort(b *testing.B) string {
	b.Helper()
	s := httptest.NewServer(nil)
	defer s.Close()
	return s.Listener.Addr().String()
}

// rawBucket makes a bucket of three replicas, led by the node that leads that of
// sessions: how far the leader is from the client is not what is compared.
func rawBucket(b *testing.B, n *node) jetstream.KeyValue {
	b.Helper()
	js, err := jetstream.New(n.fabric.Fabric())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	var sessions jetstream.Stream
	for sessions == nil { // it is made once there is a leader
		if sessions, err = js.Stream(ctx, "KV_sessions_local_g1"); ctx.Err() != nil {
			b.Fatal(err)
		}
	}
	want, err := sessions.Info(ctx)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 50 {
		bucket, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: fmt.Sprintf("raw-%d", i), Replicas: 3, Storage: want.Config.Storage})
		if err != nil {
			b.Fatal(err)
		}
		status, err := bucket.Status(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if info := status.(*jetstream.KeyValueBucketStatus).StreamInfo(); info.Cluster != nil && info.Cluster.Leader == want.Cluster.Leader {
			return bucket
		}
		if err := js.DeleteKeyValue(ctx, bucket.Bucket()); err != nil {
			b.Fatal(err)
		}
	}
	b.Fatal("no bucket is led by the leader of the sessions'")
	return nil
}
