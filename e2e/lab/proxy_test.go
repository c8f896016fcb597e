package lab_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// echo answers every line on l until the test ends.
func echo(t *testing.T, l net.Listener) string {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// lines sends lines over one connection.
type lines struct {
	net.Conn
	r *bufio.Reader
}

// say returns how long the answer took; an error after a second without one.
func (c lines) say(text string) (time.Duration, error) {
	begin := time.Now()
	if _, err := fmt.Fprintln(c, text); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(begin.Add(time.Second)); err != nil {
		return 0, err
	}
	got, err := c.r.ReadString('\n')
	if err == nil && got != text+"\n" {
		err = fmt.Errorf("got %q, want %q", got, text)
	}
	return time.Since(begin), err
}

func proxied(t *testing.T) (*lab.Proxy, lines) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := lab.NewProxy("127.0.0.1:0", echo(t, l), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, lines{c, bufio.NewReader(c)}
}

func TestProxyDelays(t *testing.T) {
	p, c := proxied(t)
	if took, err := c.say("plain"); err != nil || took > 500*ms {
		t.Errorf("good link: %s, %v", took, err)
	}
	p.Set(lab.Link{Delay: 60 * ms, Jitter: 10 * ms})
	if took, err := c.say("delayed"); err != nil || took < 120*ms {
		t.Errorf("60 ms each way: %s, %v", took, err)
	}
	p.Set(lab.Link{Stalls: 1, StallFor: 100 * ms})
	if took, err := c.say("stalled"); err != nil || took < 200*ms {
		t.Errorf("100 ms stall each way: %s, %v", took, err)
	}
	p.Set(lab.Link{Rate: 100})
	if took, err := c.say("twenty bytes, slowly"); err != nil || took < 400*ms {
		t.Errorf("100 bytes/s: %s, %v", took, err)
	}
}

func TestProxyStops(t *testing.T) {
	p, c := proxied(t)
	if _, err := c.say("before"); err != nil {
		t.Fatal(err)
	}
	p.Set(lab.Link{Stopped: true})
	if _, err := c.say("lost?"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("stopped link: %v, want a timeout", err)
	}
	p.Set(lab.Link{})
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.r.ReadString('\n'); got != "lost?\n" {
		t.Errorf("after it goes on: %q, %v", got, err)
	}
	p.Reset()
	if _, err := c.say("after"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reset: %v, want an ended connection", err)
	}
}
