package lab_test

import (
	"bufio"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// network is a network of n hosts, each with an echo server, and a connection
// from one of them to another.
func network(t *testing.T, n int) (*lab.Net, func(from, to int) lines) {
	t.Helper()
	w, err := lab.NewNet(n)
	if err != nil {
		if mode := os.Getenv("RIPSTOP_E2E"); mode == "all" || mode == "full" {
			t.Fatal(err)
		}
		t.Skipf("%v; run it as root: sudo go test ./e2e/lab", err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	addrs := make([]string, n)
	for i := range n {
		if err := w.In(i, func() error {
			l, err := net.Listen("tcp", w.Addr(i)+":0")
			if err == nil {
				addrs[i] = echo(t, l)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return w, func(from, to int) lines {
		t.Helper()
		var c net.Conn
		dial := func() (err error) {
			c, err = net.DialTimeout("tcp", addrs[to], 5*time.Second)
			return err
		}
		if from < 0 {
			err = dial()
		} else {
			err = w.In(from, dial)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return lines{c, bufio.NewReader(c)}
	}
}

func TestNetCuts(t *testing.T) {
	w, dial := network(t, 3)
	ab, ba, ac, ca, outside := dial(0, 1), dial(1, 0), dial(0, 2), dial(2, 0), dial(-1, 0)
	speaks := func(name string, c lines, want bool) {
		t.Helper()
		took, err := c.say(name)
		if want && err != nil || !want && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v after %s, want passing=%v", name, err, took, want)
		}
	}
	for _, c := range []lines{ab, ba, ac, ca, outside} {
		speaks("all", c, true)
	}
	if err := w.Split([]int{0}, []int{1}); err != nil {
		t.Fatal(err)
	}
	speaks("a to b, split", ab, false)
	speaks("a to c, beside the split", ac, true)
	speaks("test to a, beside the split", outside, true)
	if err := w.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := w.Cut(2, 0); err != nil { // one way: requests of a arrive, answers don't
		t.Fatal(err)
	}
	speaks("a to c, answers cut", ac, false)
	speaks("c to a, requests cut", ca, false)
	if err := w.Mend(2, 0); err != nil {
		t.Fatal(err)
	}
	fresh := dial(2, 0)
	speaks("c to a, mended", fresh, true)
}

func TestNetCleansUp(t *testing.T) {
	w, _ := network(t, 1)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w2, err := lab.NewNet(1)
	if err != nil {
		t.Fatalf("a second network after the first was closed: %v", err)
	}
	if err := w2.Close(); err != nil {
		t.Error(err)
	}
}
