package sessions_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/kv/sessions"
)

func TestData(t *testing.T) {
	l := newLab(t)
	a, b := open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2")
	create(t, a, "s-1")
	ctx := t.Context()
	if _, err := a.GetData(ctx, "s-1", 1, "k"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	rev, err := a.PutData(ctx, "s-1", 1, "k", []byte("one"), 0)
	if err != nil || rev != 1 {
		t.Fatal(rev, err)
	}
	if _, err := b.PutData(ctx, "s-1", 1, "k", []byte("two"), 0); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	if rev, err = b.PutData(ctx, "s-1", 1, "k", []byte("two"), rev); err != nil || rev != 2 {
		t.Errorf("over revision 1: %d, %v", rev, err)
	}
	if _, err := a.PutData(ctx, "s-1", 1, "k", []byte("three"), 1); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("over an old revision: %v", err)
	}
	odd := "a key/with.dots and ünïcode *>"
	if rev, err = a.PutData(ctx, "s-1", 1, odd, nil, sessions.AnyRev); err != nil || rev != 3 {
		t.Errorf("any: %d, %v", rev, err)
	}
	if d, err := a.GetData(ctx, "s-1", 1, "k"); err != nil || string(d.Value) != "two" || d.Rev != 2 || d.Key != "k" {
		t.Errorf("got %+v, %v", d, err)
	}
	list, err := b.ListData(ctx, "s-1", 1)
	if got, want := fmt.Sprint(list), fmt.Sprintf("[{%s 3 0} {k 2 3}]", odd); err != nil || got != want {
		t.Errorf("list: got %s, want %s, %v", got, want, err)
	}
	if err := a.DeleteData(ctx, "s-1", 1, "k", 1); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("deleted an old revision: %v", err)
	}
	if err := a.DeleteData(ctx, "s-1", 1, "k", 2); err != nil {
		t.Error(err)
	}
	if err := a.DeleteData(ctx, "s-1", 1, "k", sessions.AnyRev); err != nil {
		t.Errorf("deleted again: %v", err)
	}
	if _, err := b.GetData(ctx, "s-1", 1, "k"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if rev, err = b.PutData(ctx, "s-1", 1, "k", []byte("again"), 0); err != nil || rev != 5 {
		t.Errorf("created again: %d, %v", rev, err)
	}
	if _, err := a.PutData(ctx, "nobody", 1, "k", nil, 0); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("of no session: %v", err)
	}
	// The index follows past the data, without a gap.
	r := create(t, a, "s-2")
	shows(t, b, "s-2", r.Rev)
	if a.Gaps()+b.Gaps() != 0 {
		t.Errorf("gaps: %d, %d", a.Gaps(), b.Gaps())
	}
	if sessions.Locks(a)+sessions.Locks(b) != 0 {
		t.Error("locks are left")
	}
	r, _ = a.Lookup("s-1")
	if err := a.End(ctx, "s-1", r.Rev); err != nil {
		t.Fatal(err)
	}
	if _, err := b.GetData(ctx, "s-1", 1, "k"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := a.PutData(ctx, "s-1", 1, "k", nil, sessions.AnyRev); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("put after the end: %v", err)
	}
	if i := stream(t, l.Fabric(), "KV_"+a.Bucket()); i.State.Msgs != 3 { // s-2, and the markers of s-1 and its list
		t.Errorf("%d messages are left", i.State.Msgs)
	}
}

func TestDataLimits(t *testing.T) {
	s := open(t, newLab(t).Fabric(), "n1")
	create(t, s, "s-1")
	put := func(key string, n int) error {
		_, err := s.PutData(t.Context(), "s-1", 1, key, bytes.Repeat([]byte("x"), n), sessions.AnyRev)
		return err
	}
	for _, bad := range []error{put("", 1), put(strings.Repeat("k", sessions.MaxDataKey+1), 1), put("k", sessions.MaxDataValue+1)} {
		if !errors.Is(bad, sessions.ErrLimit) {
			t.Errorf("got %v", bad)
		}
	}
	if err := put(strings.Repeat("ä", sessions.MaxDataKey/2), 1); err != nil {
		t.Error(err)
	}
	for i := range 15 {
		if err := put(fmt.Sprint("big", i), sessions.MaxDataValue); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("big15", sessions.MaxDataValue); !errors.Is(err, sessions.ErrLimit) {
		t.Errorf("more than %d bytes: %v", sessions.MaxDataBytes, err)
	}
	if err := put("big14", 1); err != nil { // it makes room
		t.Error(err)
	}
	if err := put("big15", sessions.MaxDataValue-1000); err != nil {
		t.Error(err)
	}
	if d, err := s.GetData(t.Context(), "s-1", 1, "big3"); err != nil || len(d.Value) != sessions.MaxDataValue {
		t.Errorf("%d bytes, %v", len(d.Value), err)
	}
	create(t, s, "s-2")
	for i := range sessions.MaxDataKeys {
		if _, err := s.PutData(t.Context(), "s-2", 1, fmt.Sprint("k", i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.PutData(t.Context(), "s-2", 1, "one more", nil, 0); !errors.Is(err, sessions.ErrLimit) {
		t.Errorf("one key more: %v", err)
	}
}

// TestIndexPassesOverData: data is written past the feed, and no gap; what a
// stranger writes there is one, and is passed over.
func TestIndexPassesOverData(t *testing.T) {
	l := newLab(t)
	a, b := open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2")
	create(t, a, "s-1")
	for i := range 50 {
		if _, err := a.PutData(t.Context(), "s-1", 1, fmt.Sprint("k", i), nil, 0); err != nil {
			t.Fatal(err)
		}
		r := create(t, a, fmt.Sprint("other-", i))
		shows(t, b, r.ID, r.Rev)
	}
	if b.Gaps() != 0 {
		t.Errorf("%d gaps", b.Gaps())
	}
	if _, err := raw(t, l.Fabric()).Put(t.Context(), "s-1.d.stranger", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r := create(t, a, fmt.Sprint("later-", i))
		shows(t, b, r.ID, r.Rev)
	}
	synced(t, b)
	if b.Gaps() != 1 {
		t.Errorf("%d gaps, want 1", b.Gaps())
	}
}

// TestDataIsFenced: a write under a lower epoch is refused even by a node that
// has not heard of the move.
func TestDataIsFenced(t *testing.T) {
	l := newLab(t)
	fenced(t, l.Fabric(), l.Fabric(), func(*sessions.Options) {})
}

func fenced(t *testing.T, here, there *nats.Conn, change func(*sessions.Options)) {
	b := open(t, there, "n2", change)
	r := create(t, b, "s-1")
	a := open(t, here, "n1", change)
	shows(t, a, "s-1", r.Rev)
	if _, err := a.PutData(t.Context(), "s-1", 1, "k", []byte("old owner"), 0); err != nil {
		t.Fatal(err)
	}
	bucket := sessions.Bucket(a)
	r.Epoch, r.Instance = 2, "demo-2"
	moved, err := b.Update(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	// The bucket itself refuses what relies on the record of epoch 1.
	_, err = bucket.Write(t.Context(),
		kv.Write{Key: "s-1.d.x", Value: []byte("{}"), Guard: "s-1", Base: r.Rev},
		kv.Write{Key: "s-1/other", Value: []byte("{}"), Base: 0})
	if !errors.Is(err, kv.ErrConflict) {
		t.Errorf("the bucket took a write of the deposed: %v", err)
	}
	if e, err := bucket.Get(t.Context(), "s-1/other"); err != nil || e.Rev != 0 {
		t.Errorf("half of it was applied: %+v, %v", e, err)
	}
	if _, err := a.PutData(t.Context(), "s-1", 1, "k", []byte("deposed"), sessions.AnyRev); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("put by the deposed: %v", err)
	}
	if err := a.DeleteData(t.Context(), "s-1", 1, "k", sessions.AnyRev); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("delete by the deposed: %v", err)
	}
	if _, err := b.GetData(t.Context(), "s-1", 1, "k"); !errors.Is(err, sessions.ErrDeposed) {
		t.Errorf("get by the deposed: %v", err)
	}
	if d, err := b.GetData(t.Context(), "s-1", 2, "k"); err != nil || string(d.Value) != "old owner" {
		t.Errorf("the new owner reads %q, %v", d.Value, err)
	}
	if _, err := b.PutData(t.Context(), "s-1", 2, "k", []byte("new owner"), 1); err != nil {
		t.Error(err)
	}
	// A higher epoch than the record's is no claim either.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := b.PutData(ctx, "s-1", 3, "k", nil, sessions.AnyRev); err == nil {
		t.Error("a write under an epoch that is not there was accepted")
	}
	if got, _ := b.Lookup("s-1"); got.Rev != moved.Rev {
		t.Errorf("data changed the record: %d, %d", got.Rev, moved.Rev)
	}
}

// TestFenceRace moves a session again and again while its owners write: no write
// of an epoch follows one of a higher epoch.
func TestFenceRace(t *testing.T) {
	l := newLab(t)
	fenceRace(t, []*sessions.Store{open(t, l.Fabric(), "n1"), open(t, l.Fabric(), "n2")})
}

func fenceRace(t *testing.T, stores []*sessions.Store) {
	const id, moves = "s-race", 30
	r := create(t, stores[0], id)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer finish()
	type ack struct{ epoch, rev uint64 }
	acked := make(chan ack, 100_000)
	for _, s := range stores {
		shows(t, s, r.ID, r.Rev)
		for range 3 { // they hold on to an epoch until they are told
			wg.Go(func() {
				epoch := uint64(1)
				for {
					select {
					case <-stop:
						return
					default:
					}
					rev, err := s.PutData(t.Context(), id, epoch, "k", []byte("v"), sessions.AnyRev)
					switch {
					case err == nil:
						acked <- ack{epoch, rev}
					case errors.Is(err, sessions.ErrDeposed):
						got, err := s.Get(t.Context(), id)
						if err != nil {
							t.Error(err)
							return
						}
						epoch = got.Epoch
					default:
						t.Error(err)
						return
					}
				}
			})
		}
	}
	var slowest time.Duration
	for n := range moves {
		written := len(acked)
		eventually(t, func() string {
			if len(acked) < written+5 {
				return "nobody writes"
			}
			return ""
		})
		begun := time.Now()
		for {
			var err error
			if r, err = stores[0].Get(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			r.Epoch++
			if _, err := stores[n%len(stores)].Update(t.Context(), r); err == nil {
				break
			} else if !errors.Is(err, kv.ErrConflict) {
				t.Fatal(err)
			}
		}
		slowest = max(slowest, time.Since(begun))
	}
	finish()
	close(acked)
	byRev := map[uint64]uint64{}
	most := uint64(0)
	for a := range acked {
		if byRev[a.rev] != 0 {
			t.Errorf("revision %d was acknowledged twice", a.rev)
		}
		byRev[a.rev] = a.epoch
		most = max(most, a.rev)
	}
	last := uint64(0)
	for rev := uint64(1); rev <= most; rev++ {
		if byRev[rev] == 0 {
			t.Errorf("revision %d was acknowledged to nobody", rev)
		}
		if byRev[rev] < last {
			t.Errorf("revision %d was written under epoch %d, after one of epoch %d", rev, byRev[rev], last)
		}
		last = max(last, byRev[rev])
	}
	t.Logf("%d writes under %d epochs; the slowest move took %s", most, moves+1, slowest.Round(time.Millisecond))
	for _, s := range stores {
		if s.Gaps() != 0 {
			t.Errorf("%d gaps", s.Gaps())
		}
	}
}
