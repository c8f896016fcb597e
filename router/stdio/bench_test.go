package stdio_test

import (
	"runtime"
	"testing"

	"ripstop/router"
	"ripstop/router/stdio"
)

// BenchmarkCall is one echo through a child and back: two pipes and a process
// switch each way are the most of it.
func BenchmarkCall(b *testing.B) {
	backend, _ := start(b, fakeOptions(quirks{}))
	c := mustDial(b, backend)
	req := &router.Request{Op: router.OpMessage, Session: c.session, Message: message(toolCall(`"x"`, "echo", `{"text":"hi"}`))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := backend.Serve(b.Context(), req, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCallParallel(b *testing.B) {
	backend, _ := start(b, fakeOptions(quirks{Modern: true}))
	req := &router.Request{Op: router.OpMessage, Era: router.EraModern, Message: message(modernCall(`"x"`, "echo", `{"text":"hi"}`))}
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := backend.Serve(b.Context(), req, nil); err != nil {
				b.Error(err)
			}
		}
	})
}

// memory returns what this process's heap and stacks take, in bytes.
func memory() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

var raceDetector bool // set by race_test.go

// An idle session must stay below 15 KB beside its child. It runs alone, since
// other tests would be measured too.
func TestIdleSessionMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	b, err := stdio.New(fakeOptions(quirks{}))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dialMany := func(n int) {
		for range n {
			mustDial(t, b).mustText("echo", "hi")
		}
	}
	dialMany(20) // what is needed once
	before := memory()
	const n = 100
	dialMany(n)
	each := (memory() - before) / n
	t.Logf("%.0f bytes a session", each)
	if each > 15<<10 {
		t.Errorf("an idle session takes %.0f bytes, want at most %d", each, 15<<10)
	}
}
