package sessions_test

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/kv"
	"ripstop/kv/sessions"
)

func TestSweep(t *testing.T) {
	l := newLab(t)
	a, b := open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2")
	for i := range 10 {
		r := create(t, a, fmt.Sprint("s-", i))
		if _, err := a.PutData(t.Context(), r.ID, 1, "k", []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
		if i < 5 {
			if err := sessions.EndOnly(t.Context(), a, r.ID, r.Rev); err != nil {
				t.Fatal(err)
			}
		}
	}
	shows(t, b, "s-4", 0)
	if got, err := b.Sweep(t.Context()); err != nil || got.Data != 5 {
		t.Errorf("swept %+v, %v", got, err)
	}
	if got, err := b.Sweep(t.Context()); err != nil || got.Data != 0 {
		t.Errorf("swept again %+v, %v", got, err)
	}
	for i := range 10 {
		d, err := b.GetData(t.Context(), fmt.Sprint("s-", i), 1, "k")
		if i < 5 && !errors.Is(err, kv.ErrNotFound) || i >= 5 && string(d.Value) != "v" {
			t.Errorf("data of session %d: %q, %v", i, d.Value, err)
		}
	}
}

// TestNothingIsLeft opens and ends 10,000 sessions.
func TestNothingIsLeft(t *testing.T) {
	cycles := 10_000
	if testing.Short() {
		cycles = 500
	}
	l := newLab(t)
	brief := func(o *sessions.Options) { o.MarkerTTL = time.Second } // the least there is
	a, b := open(t, l.Fabric(), "n1", brief), open(t, l.Fabric(), "n2", brief)
	log := openLog(t, l.Fabric(), func(*sessions.EventOptions) {})
	cycle := func(i int) {
		id := fmt.Sprint("s-", i)
		r, err := a.Create(t.Context(), record(id))
		if err == nil && i%20 == 0 {
			_, err = a.PutData(t.Context(), id, 1, "k", []byte("v"), 0)
		}
		if err == nil && i%10 == 0 {
			log.Append(id, "g1", 1, []byte("{}"))
		}
		if err == nil {
			err = a.End(t.Context(), id, r.Rev)
		}
		if err != nil {
			t.Error(err)
		}
		log.Forget(id)
	}
	cycle(0) // what is made once is there now
	if err := log.Flush(short(t)); err != nil {
		t.Fatal(err)
	}
	goroutines := runtime.NumGoroutine()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				cycle(i)
			}
		})
	}
	begun := time.Now()
	for i := range cycles {
		next <- i + 1
	}
	close(next)
	wg.Wait()
	t.Logf("%d cycles in %s", cycles, time.Since(begun).Round(time.Millisecond))
	if err := log.Flush(short(t)); err != nil {
		t.Error(err)
	}
	within(t, 60*time.Second, func() string {
		if n, m := stream(t, l.Fabric(), "KV_"+a.Bucket()).State.Msgs, stream(t, l.Fabric(), log.Stream()).State.Msgs; n+m > 0 {
			return fmt.Sprintf("%d messages are left of sessions, %d of events", n, m)
		}
		return ""
	})
	for _, s := range []*sessions.Store{a, b} {
		eventually(t, func() string {
			if s.Len()+sessions.Keys(s)+s.Pending()+sessions.Locks(s) > 0 {
				return fmt.Sprintf("%d sessions, %d keys, %d pending, %d locks", s.Len(), sessions.Keys(s), s.Pending(), sessions.Locks(s))
			}
			return ""
		})
	}
	eventually(t, func() string {
		if n := runtime.NumGoroutine(); n > goroutines+3 {
			var all strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&all, 1) // a Builder takes everything
			return fmt.Sprintf("%d goroutines, %d before: %s", n, goroutines, &all)
		}
		return ""
	})
}

func TestValidate(t *testing.T) {
	l := newLab(t)
	s := open(t, l.Fabric(), "n1")
	for i := range 20 {
		create(t, s, fmt.Sprint("s-", i))
		if _, err := s.PutData(t.Context(), fmt.Sprint("s-", i), 1, "k", []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := s.Validate(t.Context(), true); err != nil || len(found) != 0 {
		t.Fatalf("nothing is wrong, and found: %+v, %v", found, err)
	}
	b := raw(t, l.Fabric())
	put := func(key string, value []byte) {
		if _, err := b.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	good, err := b.Get(t.Context(), "s-1")
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), good.Value()...)
	bad[30] ^= 1
	put("s-1", bad)                                          // rotten
	put("s-2", good.Value())                                 // another's
	put("s-3/data", []byte(`{"no":"checksum"}`))             // its list
	put("s-4.d.k", []byte("rotten"))                         // its data
	if err := b.Delete(t.Context(), "s-5.d.k"); err != nil { // lost
		t.Fatal(err)
	}
	r, _ := s.Lookup("s-6")
	if err := sessions.EndOnly(t.Context(), s, "s-6", r.Rev); err != nil { // ended by half
		t.Fatal(err)
	}
	synced(t, s)
	sessions.Forget(s, "s-7") // this node missed it
	if _, ok := s.Lookup("s-1"); ok {
		t.Error("a rotten record is shown")
	}
	rotten := []string{"s-1 corrupt", "s-2 corrupt", "s-3/data manifest", "s-4.d.k corrupt", "s-4/data manifest", "s-5/data manifest"}
	check := func(repair bool, want ...string) {
		t.Helper()
		found, err := s.Validate(t.Context(), repair)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			got = append(got, f.Key+" "+f.Kind)
			always := f.Kind == sessions.FindingOrphan || f.Kind == sessions.FindingIndex
			if f.Repaired != (repair || always) {
				t.Errorf("repair %t: %+v", repair, f)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("repair %t: found %+v, want %v", repair, found, want)
		}
	}
	check(false, append(slices.Clone(rotten), "s-6 orphan", "s-7 index")...)
	check(true, append(slices.Clone(rotten), "s-1 orphan", "s-2 orphan")...) // their records are removed, so that their data is left
	check(true)
	if _, ok := s.Lookup("s-7"); !ok {
		t.Error("the index was not mended")
	}
	if d, err := s.GetData(t.Context(), "s-3", 1, "k"); err != nil || string(d.Value) != "v" {
		t.Errorf("data whose list was mended: %q, %v", d.Value, err)
	}
	for _, id := range []string{"s-3", "s-4", "s-5"} {
		if _, err := s.PutData(t.Context(), id, 1, "k2", []byte("v"), 0); err != nil {
			t.Errorf("data of %s can't be written: %v", id, err)
		}
	}
}
