package raft_test

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"ripstop/fabric/raft"
)

// listen serves each connection with f until the test ends.
func listen(t testing.TB, f func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); f(conn) })
		}
	})
	return l.Addr().String()
}

func info(serverID string) func(net.Conn) {
	return func(c net.Conn) { fmt.Fprintf(c, "INFO {\"server_id\":%q,\"server_name\":\"c\"}\r\n", serverID) }
}

func waitForEnd(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }

func reset(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }

func TestRedial(t *testing.T) {
	refused := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
	for _, tc := range []struct {
		name, addr string
		dead       bool
	}{
		{"refused", refused, true},
		{"answers", listen(t, info("C1")), false},
		{"answers as another run", listen(t, info("C2")), true},
		{"accepts and says nothing", listen(t, waitForEnd), false},
		{"accepts and resets, always", listen(t, reset), true},
		{"accepts and closes, always", listen(t, func(net.Conn) {}), true},
		{"says what NATS does not", listen(t, func(c net.Conn) { fmt.Fprint(c, "SSH-2.0\r\n") }), false},
		{"never located", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := raft.Peer{Name: "c", ServerID: "C1", Addr: tc.addr}
			dead, reason := raft.Redial(t.Context(), scaled(300*time.Millisecond), p)
			if dead != tc.dead || reason == "" {
				t.Errorf("got dead = %v (%s), want %v", dead, reason, tc.dead)
			}
		})
	}
}

// A process in the middle of dying may still accept before it refuses.
func TestRedialOfTheDying(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = l.Close()
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
	dead, reason := raft.Redial(t.Context(), scaled(time.Second), raft.Peer{Name: "c", ServerID: "C1", Addr: l.Addr().String()})
	_ = l.Close()
	<-done
	if !dead {
		t.Errorf("got dead = false (%s), want true", reason)
	}
}
