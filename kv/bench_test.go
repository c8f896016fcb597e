package kv_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
)

// fill registers instances with a node, spread over servers.
func fill(t testing.TB, n *node, instances, servers int) {
	t.Helper()
	for i := range instances {
		n.put(t, n.instance(fmt.Sprintf("server-%d", i%servers), fmt.Sprintf("instance%d", i)))
	}
	n.stored(t)
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLookup is what the choice of an instance reads.
func BenchmarkLookup(b *testing.B) {
	for _, servers := range []int{1000, 1} {
		b.Run(fmt.Sprintf("10000 instances of %d servers", servers), func(b *testing.B) {
			l := newLab(b)
			fill(b, l.node(b, "n1"), 10_000, servers)
			n := l.node(b, "n2")
			within(b, 30*time.Second, func() string {
				if n.Len() < 10_000 {
					return fmt.Sprint(n.Len())
				}
				return ""
			})
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if len(n.Instances("server-0")) == 0 {
					b.Fatal("not found")
				}
				i++
			}
		})
	}
}

// BenchmarkMemory reports what an instance costs a node that follows the
// registry, 10,000 of them being there.
func BenchmarkMemory(b *testing.B) {
	const instances = 10_000
	l := newLab(b)
	fill(b, l.node(b, "n1"), instances, 1000)
	for b.Loop() {
		before := heap()
		begun := time.Now()
		n := l.node(b, "n2")
		within(b, 30*time.Second, func() string {
			if n.Len() < instances {
				return fmt.Sprint(n.Len())
			}
			return ""
		})
		loaded := time.Since(begun)
		b.ReportMetric(float64(heap()-before)/instances, "B/instance")
		b.ReportMetric(float64(loaded.Milliseconds()), "ms-to-load")
		n.stop(b)
	}
}

// BenchmarkRegister is a registration: until its agent has the answer, and until
// another node shows it. 10,000 are there already.
func BenchmarkRegister(b *testing.B) {
	for _, servers := range []int{1000, 1} {
		b.Run(fmt.Sprintf("10000 instances of %d servers", servers), func(b *testing.B) {
			l := newLab(b)
			n := l.node(b, "n1")
			fill(b, n, 10_000, servers)
			far := l.node(b, "n2")
			within(b, 30*time.Second, func() string {
				if far.Len() < 10_000 {
					return fmt.Sprint(far.Len())
				}
				return ""
			})
			var answered time.Duration
			i, start := 0, time.Now()
			for b.Loop() {
				begun := time.Now()
				n.put(b, n.instance(fmt.Sprintf("server-%d", i%servers), fmt.Sprintf("more%d", i)))
				answered += time.Since(begun)
				i++
			}
			within(b, time.Minute, func() string {
				if far.Len() < 10_000+i {
					return fmt.Sprint(far.Len())
				}
				return ""
			})
			b.ReportMetric(float64(answered.Microseconds())/float64(i), "µs-to-answer")
			b.ReportMetric(float64(i)/time.Since(start).Seconds(), "registrations/s-elsewhere")
		})
	}
}

// BenchmarkCluster registers 200 instances a second with the nodes of a cluster,
// 10,000 being there, and reports how long the other nodes take to show them.
func BenchmarkCluster(b *testing.B) {
	const rate, standing = 200, 10_000
	c := newCluster(b)
	var nodes []*member
	for i := range 3 {
		nodes = append(nodes, c.start(i))
	}
	nodes[0].synced(b)
	fill(b, nodes[0].node, standing, 1000)
	all := func(n int) {
		for _, m := range nodes {
			within(b, time.Minute, func() string {
				if m.Len() < n {
					return fmt.Sprint(m.Len())
				}
				return ""
			})
		}
	}
	all(standing)
	var mu sync.Mutex
	begun := map[string]time.Time{}
	var took []time.Duration
	nodes[2].Watch(func(ch kv.Change) {
		mu.Lock()
		defer mu.Unlock()
		if at, ok := begun[ch.Instance.Instance]; ok {
			took = append(took, time.Since(at))
			delete(begun, ch.Instance.Instance)
		}
	})
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	i := 0
	for b.Loop() {
		<-tick.C
		n := nodes[i%2]
		id := fmt.Sprintf("more%d", i)
		mu.Lock()
		begun[id] = time.Now()
		mu.Unlock()
		n.put(b, n.instance(fmt.Sprintf("server-%d", i%1000), id))
		i++
	}
	all(standing + i)
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50-elsewhere")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99-elsewhere")
}
