package sessions_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv"
	"ripstop/kv/sessions"
)

// onBoth runs a benchmark on a single node and on a cluster of three, from a node
// that does not lead.
func onBoth(b *testing.B, f func(b *testing.B, nc *nats.Conn, change func(*sessions.Options))) {
	b.Run("1 node", func(b *testing.B) { f(b, newLab(b).Fabric(), func(*sessions.Options) {}) })
	b.Run("3 nodes", func(b *testing.B) {
		c := startedCluster(b)
		open(b, c.nodes[0].Fabric(), "n1", r3)
		at := (c.leader(0, "KV_sessions_local_g1") + 1) % 3
		f(b, c.nodes[at].Fabric(), r3)
	})
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkCreate stores a session, and beside it the same bytes by a bare
// publish to the same stream, one after the other.
func BenchmarkCreate(b *testing.B) {
	onBoth(b, func(b *testing.B, nc *nats.Conn, change func(*sessions.Options)) {
		s := open(b, nc, "bench", change)
		js, err := jetstream.New(nc)
		if err != nil {
			b.Fatal(err)
		}
		var ours, theirs, data []time.Duration
		i := 0
		for b.Loop() {
			id := fmt.Sprint("s-", i)
			value, err := kv.Encode(record("r" + id))
			if err != nil {
				b.Fatal(err)
			}
			begun := time.Now()
			if _, err := js.Publish(b.Context(), "$KV."+s.Bucket()+".r"+id, value); err != nil {
				b.Fatal(err)
			}
			theirs = append(theirs, time.Since(begun))
			begun = time.Now()
			create(b, s, id)
			ours = append(ours, time.Since(begun))
			begun = time.Now()
			if _, err := s.PutData(b.Context(), id, 1, "k", []byte("value"), 0); err != nil {
				b.Fatal(err)
			}
			data = append(data, time.Since(begun))
			i++
		}
		b.ReportMetric(float64(median(ours).Microseconds()), "µs-create")
		b.ReportMetric(float64(median(theirs).Microseconds()), "µs-publish")
		b.ReportMetric(float64(median(ours))/float64(median(theirs)), "create/publish")
		b.ReportMetric(float64(median(data))/float64(median(theirs)), "data/publish")
	})
}

// BenchmarkCreateMany is the same by 64 writers at once, in turns.
func BenchmarkCreateMany(b *testing.B) {
	onBoth(b, func(b *testing.B, nc *nats.Conn, change func(*sessions.Options)) {
		s := open(b, nc, "bench", change)
		js, err := jetstream.New(nc)
		if err != nil {
			b.Fatal(err)
		}
		const writers, each = 64, 10
		turn := func(f func(n int) error) time.Duration {
			begun := time.Now()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for n := range each {
						if err := f(w*each + n); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			return time.Since(begun)
		}
		var ours, theirs time.Duration
		i := 0
		for b.Loop() {
			theirs += turn(func(n int) error {
				id := fmt.Sprintf("r-%d-%d", i, n)
				value, err := kv.Encode(record(id))
				if err == nil {
					_, err = js.Publish(b.Context(), "$KV."+s.Bucket()+"."+id, value)
				}
				return err
			})
			ours += turn(func(n int) error {
				_, err := s.Create(b.Context(), record(fmt.Sprintf("s-%d-%d", i, n)))
				return err
			})
			i++
		}
		b.ReportMetric(float64(i*writers*each)/ours.Seconds(), "creates/s")
		b.ReportMetric(float64(ours)/float64(theirs), "create/publish")
	})
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory reports what an idle session costs a node, 50,000 of them
// being there.
func BenchmarkMemory(b *testing.B) {
	const count = 50_000
	l := newLab(b)
	s := open(b, l.Fabric(), "n1")
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < count; i += 64 {
				r := record(fmt.Sprintf("demo-%d-abcdefghijklmnopqr%05d", i%7, i))
				r.Principal = fmt.Sprint("user-", i%1000)
				if _, err := s.Create(b.Context(), r); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ResetTimer()
	for b.Loop() {
		before := heap()
		begun := time.Now()
		file := filepath.Join(b.TempDir(), "sessions.db")
		far := openOnly(b, l.Fabric(), "n2", func(o *sessions.Options) { o.File = file })
		within(b, 60*time.Second, func() string {
			if far.Len() < count {
				return fmt.Sprint(far.Len())
			}
			return ""
		})
		b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms-to-load")
		if err := sessions.Flush(far); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/count, "B/session")
		if err := far.Close(); err != nil {
			b.Fatal(err)
		}
		begun = time.Now()
		again := openOnly(b, l.Fabric(), "n2", func(o *sessions.Options) { o.File = file })
		b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms-from-disk")
		if again.Len() != count {
			b.Errorf("%d sessions from the disk", again.Len())
		}
		runtime.KeepAlive(far)
	}
}

// BenchmarkLookup is what every request does.
func BenchmarkLookup(b *testing.B) {
	s := open(b, newLab(b).Fabric(), "n1")
	for i := range 1000 {
		create(b, s, fmt.Sprint("s-", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.Lookup("s-500"); !ok {
			b.Fatal("not found")
		}
	}
}
