package kv_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"
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
