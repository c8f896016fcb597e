package raft_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
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
			dead, reason := raft.Redial(t.Context(), scaled(300*time.Millisecond), p, nil)
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
	dead, reason := raft.Redial(t.Context(), scaled(time.Second), raft.Peer{Name: "c", ServerID: "C1", Addr: l.Addr().String()}, nil)
	_ = l.Close()
	<-done
	if !dead {
		t.Errorf("got dead = false (%s), want true", reason)
	}
}

// With TLS the INFO comes after the handshake. The certificate may be for a name
// only, the address never is one.
func TestRedialTLS(t *testing.T) {
	cert, roots := selfSigned(t, "node-c.example")
	addr := listen(t, func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		info("C1")(s)
	})
	_, strangers := selfSigned(t, "node-c.example")
	for _, tc := range []struct {
		name     string
		serverID string
		conf     *tls.Config
		dead     bool
	}{
		{"same server", "C1", &tls.Config{RootCAs: roots}, false},
		{"another run", "C0", &tls.Config{RootCAs: roots}, true},
		{"not trusted, so not heard", "C0", &tls.Config{RootCAs: strangers}, false},
		{"name checked if given", "C0", &tls.Config{RootCAs: roots, ServerName: "node-d.example"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := raft.Peer{Name: "c", ServerID: tc.serverID, Addr: addr}
			dead, reason := raft.Redial(t.Context(), scaled(time.Second), p, tc.conf)
			if dead != tc.dead {
				t.Errorf("got dead = %v (%s), want %v", dead, reason, tc.dead)
			}
		})
	}
}

func selfSigned(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
