package fabric_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/fabric/tlstest"
)

// login tries to connect once.
func login(n *fabric.Node, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect(n.ClientURL(), append(opts, nats.NoReconnect())...)
}

func wantLogin(t *testing.T, n *fabric.Node, user, token string, may bool) *nats.Conn {
	t.Helper()
	nc, err := login(n, nats.UserInfo(user, token))
	if (err == nil) != may {
		t.Errorf("login as %s with %q: %v, want allowed = %v", user, token, err, may)
	}
	if err == nil {
		t.Cleanup(nc.Close)
	}
	return nc
}

// ended waits until nc is closed by the server.
func ended(t *testing.T, nc *nats.Conn) {
	t.Helper()
	deadline := time.After(2 * time.Second)
	for status := nc.StatusChanged(nats.CLOSED); !nc.IsClosed(); {
		select {
		case <-status:
		case <-deadline:
			t.Fatal("the connection lives on")
		}
	}
}

// TestTokenRotation: a new token counts for new connections, and those made
// with the old one live on.
func TestTokenRotation(t *testing.T) {
	n := open(t, fabric.Options{Tokens: fabric.Tokens{Client: "old", Operator: "op"}})
	old := wantLogin(t, n, "client", "old", true)
	if err := n.Reload(fabric.Tokens{Client: "new", Operator: "op"}, nil); err != nil {
		t.Fatal(err)
	}
	wantLogin(t, n, "client", "old", false)
	wantLogin(t, n, "client", "new", true)
	wantLogin(t, n, "agent", "new", true)
	wantLogin(t, n, "operator", "op", true)
	for _, nc := range []*nats.Conn{old, n.MCP(), n.Fabric(), n.System()} {
		if err := nc.Flush(); err != nil {
			t.Errorf("an open connection: %v", err)
		}
	}
	for name, token := range map[string]string{"nobody": "new", "": "", "client": "", "edge": "new"} {
		wantLogin(t, n, name, token, false)
	}
	if nc, err := login(n, nats.Token("new")); err != nil {
		t.Errorf("a token alone: %v", err)
	} else {
		nc.Close()
	}
	if err := n.Reload(fabric.Tokens{}, nil); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("opened to all: %v", err)
	}
	wantLogin(t, n, "client", "new", true)
}

func TestOpenNodeIsNotClosedUnderItsClients(t *testing.T) {
	n := open(t, fabric.Options{})
	if err := n.Reload(fabric.Tokens{Client: "new"}, nil); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("got %v", err)
	}
	if err := n.Reload(fabric.Tokens{}, nil); err != nil {
		t.Error(err)
	}
	nc, err := login(n)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

// TestUsersAreReplaced: a user whose permissions change, or who is gone, is
// disconnected; one with a new token is not.
func TestUsersAreReplaced(t *testing.T) {
	user := func(name, token, may string) fabric.User {
		return fabric.User{Name: name, Token: token, Publish: []string{may}}
	}
	n := open(t, fabric.Options{Users: []fabric.User{user("a", "a1", "x"), user("b", "b1", "x"), user("c", "c1", "x")}})
	a, b, c := wantLogin(t, n, "a", "a1", true), wantLogin(t, n, "b", "b1", true), wantLogin(t, n, "c", "c1", true)
	wantLogin(t, n, "client", "", false) // with users, nobody is let in without a token
	if err := n.Reload(fabric.Tokens{}, []fabric.User{user("a", "a2", "x"), user("b", "b1", "y"), user("d", "d1", "x")}); err != nil {
		t.Fatal(err)
	}
	ended(t, b)
	ended(t, c)
	if err := a.Flush(); err != nil {
		t.Errorf("a user with a new token: %v", err)
	}
	wantLogin(t, n, "a", "a1", false)
	wantLogin(t, n, "a", "a2", true)
	wantLogin(t, n, "b", "b1", true)
	wantLogin(t, n, "c", "c1", false)
	wantLogin(t, n, "d", "d1", true)
}

// TestCertificateRotation: what Use replaced counts for new connections.
func TestCertificateRotation(t *testing.T) {
	ca := tlstest.NewCA(t, "CA")
	cert, key := ca.Issue(t, "node")
	secure := openTLS(t, fabric.TLSFiles{Cert: cert, Key: key, CA: ca.File})
	n := open(t, fabric.Options{TLS: secure})
	dial := func() (*nats.Conn, *x509.Certificate) {
		t.Helper()
		nc, err := login(n, nats.RootCAs(ca.File))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		state, err := nc.TLSConnectionState()
		if err != nil {
			t.Fatal(err)
		}
		if state.Version != tls.VersionTLS13 {
			t.Errorf("TLS version %x", state.Version)
		}
		return nc, state.PeerCertificates[0]
	}
	old, first := dial()
	ca.Issue(t, "node")
	c, err := secure.Read()
	if err != nil {
		t.Fatal(err)
	}
	secure.Use(c)
	_, second := dial()
	if first.Equal(second) {
		t.Error("the old certificate is still shown")
	}
	if err := old.Flush(); err != nil {
		t.Errorf("an open connection: %v", err)
	}
}
