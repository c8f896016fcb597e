package agent_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/fabric/tlstest"
	"ripstop/router/agent"
)

// TestCredentialsAreReadAtEveryConnect: an agent that loses its connection after
// its token and its certificate were replaced comes back with the new ones.
func TestCredentialsAreReadAtEveryConnect(t *testing.T) {
	ca := tlstest.NewCA(t, "CA")
	cert, key := ca.Issue(t, "node")
	mine, mineKey := ca.Issue(t, "agent")
	secure, err := fabric.OpenTLS(fabric.TLSFiles{Cert: cert, Key: key, CA: ca.File})
	if err != nil {
		t.Fatal(err)
	}
	n, err := fabric.Open(t.Context(), fabric.Options{
		Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet(), TLS: secure, Verify: true, Tokens: fabric.Tokens{Client: "old"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	var token atomic.Value
	token.Store("old")
	again := make(chan struct{}, 1)
	nc, err := agent.Connection{
		URLs: n.ClientURL(), User: "agent", TokenFunc: func() string { return token.Load().(string) }, Logger: quiet(),
		CAFile: ca.File, CertFile: mine, KeyFile: mineKey,
	}.Dial(false, nats.ReconnectHandler(func(*nats.Conn) { again <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	before := shown(t, n, nc)
	ca.Issue(t, "agent")
	token.Store("new")
	if err := n.Reload(fabric.Tokens{Client: "new"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Errorf("the connection did not live on: %v", err)
	}
	id, _ := nc.GetClientID()
	if err := n.Server().DisconnectClientByID(id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again:
	case <-time.After(10 * time.Second):
		t.Fatalf("not connected again: %v", nc.LastError())
	}
	if after := shown(t, n, nc); after == before {
		t.Error("the old certificate is still shown")
	}
}

// shown is the fingerprint of the certificate that nc showed the server.
func shown(t *testing.T, n *fabric.Node, nc *nats.Conn) string {
	t.Helper()
	id, err := nc.GetClientID()
	if err != nil {
		t.Fatal(err)
	}
	z, err := n.Server().Connz(&server.ConnzOptions{CID: id, Username: true})
	if err != nil || len(z.Conns) != 1 || len(z.Conns[0].TLSPeerCerts) == 0 {
		t.Fatalf("connection %d: %v, %v", id, z, err)
	}
	return z.Conns[0].TLSPeerCerts[0].CertSha256
}
