package kv_test

import (
	"errors"
	"testing"

	"ripstop/kv"
)

func TestToken(t *testing.T) {
	seen := map[string]string{}
	for name, want := range map[string]string{
		"plain-Name_1": "plain-Name_1", "": "", "a.b": "a=2eb", "a=2eb": "a=3d2eb", ">": "=3e", "*": "=2a", "ä": "=c3=a4", " ": "=20",
	} {
		got := kv.Token(name)
		if got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
		if other, taken := seen[got]; taken {
			t.Errorf("%q and %q are both %q", name, other, got)
		}
		seen[got] = name
	}
}

// TestWriteTogether: writes are applied together or not at all, each with a base
// of its own or of another key.
func TestWriteTogether(t *testing.T) {
	l := newLab(t)
	b, err := kv.NewBucket(l.Fabric(), kv.BucketConfig{Kind: "test", Flat: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { return text(b.Ensure(t.Context())) })
	guard, err := b.Update(t.Context(), "guard", []byte("g"), 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func(guardRev, base uint64) (uint64, error) {
		return b.Write(t.Context(),
			kv.Write{Key: "list.part", Value: []byte("p"), Guard: "guard", Base: guardRev},
			kv.Write{Key: "list", Value: []byte("l"), Base: base})
	}
	rev, err := write(guard, 0)
	if err != nil || rev != guard+2 {
		t.Fatalf("revision %d, %v", rev, err)
	}
	for _, wrong := range [][2]uint64{{guard + 1, rev}, {guard, 0}, {0, rev}} {
		if _, err := write(wrong[0], wrong[1]); !errors.Is(err, kv.ErrConflict) {
			t.Errorf("guard at %d, list at %d: %v", wrong[0], wrong[1], err)
		}
	}
	if e, err := b.Get(t.Context(), "list.part"); err != nil || e.Rev != rev-1 || string(e.Value) != "p" {
		t.Errorf("part: %+v, %v", e, err)
	}
	if err := b.Drop(t.Context(), "list"); err != nil {
		t.Fatal(err)
	}
	var left []string
	if err := b.Scan(t.Context(), func(e kv.Entry) error { left = append(left, e.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 || left[0] != "guard" || left[1] != "list" {
		t.Errorf("left: %q", left)
	}
	plain, err := kv.NewBucket(l.Fabric(), kv.BucketConfig{Kind: "plain"})
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Drop(t.Context(), "list"); err == nil {
		t.Error("dropped what an index follows")
	}
}
