package fabric_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric"
	"ripstop/fabric/tlstest"
)

func TestTLSFilesAreChecked(t *testing.T) {
	ca := tlstest.NewCA(t, "Test CA")
	cert, key := ca.Issue(t, "node")
	_, otherKey := ca.Issue(t, "other")
	expired, expiredKey := ca.Issue(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Date(2020, 1, 2, 3, 4, 0, 0, time.UTC) })
	early, earlyKey := ca.Issue(t, "early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		files fabric.TLSFiles
		want  []string // nil = fine
	}{
		"all":             {fabric.TLSFiles{Cert: cert, Key: key, CA: ca.File}, nil},
		"CA only":         {fabric.TLSFiles{CA: ca.File}, nil},
		"missing":         {fabric.TLSFiles{Cert: cert + "x", Key: key}, []string{cert + "x", "no such file"}},
		"missing key":     {fabric.TLSFiles{Cert: cert, Key: key + "x"}, []string{key + "x", "no such file"}},
		"missing CA":      {fabric.TLSFiles{CA: ca.File + "x"}, []string{"read CA", "no such file"}},
		"no key given":    {fabric.TLSFiles{Cert: cert}, []string{cert, "without its private key"}},
		"no cert given":   {fabric.TLSFiles{Key: key}, []string{key, "without its certificate"}},
		"other's key":     {fabric.TLSFiles{Cert: cert, Key: otherKey}, []string{otherKey, "does not go with", cert}},
		"expired":         {fabric.TLSFiles{Cert: expired, Key: expiredKey}, []string{expired, "CN=expired", "expired on 2020-01-02 03:04 UTC"}},
		"not yet valid":   {fabric.TLSFiles{Cert: early, Key: earlyKey}, []string{early, "is valid from", "clock says"}},
		"no certificate":  {fabric.TLSFiles{Cert: text, Key: key}, []string{text, "holds no certificate"}},
		"CA is no CA":     {fabric.TLSFiles{CA: cert}, []string{cert, "CN=node", "is no CA"}},
		"CA is not a PEM": {fabric.TLSFiles{CA: text}, []string{text, "holds no certificate"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fabric.OpenTLS(tt.files)
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("error = %v", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestRoutesNeedBothUses(t *testing.T) {
	ca, stranger := tlstest.NewCA(t, "CA"), tlstest.NewCA(t, "Stranger")
	for name, tt := range map[string]struct {
		use  []x509.ExtKeyUsage
		ca   string
		want string
	}{
		"both":           {[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, ca.File, ""},
		"any":            {nil, ca.File, ""},
		"server only":    {[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, ca.File, "lacks clientAuth"},
		"client only":    {[]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, ca.File, "lacks serverAuth"},
		"other CA's":     {nil, stranger.File, "has signed"},
		"no CA to check": {nil, "", "no CA is given"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := ca.Issue(t, "node", func(c *x509.Certificate) { c.ExtKeyUsage = tt.use })
			s := openTLS(t, fabric.TLSFiles{Cert: cert, Key: key, CA: tt.ca})
			c, err := s.Read()
			if err != nil {
				t.Fatal(err)
			}
			err = s.CheckMutual(c)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func openTLS(t testing.TB, files fabric.TLSFiles) *fabric.TLS {
	t.Helper()
	s, err := fabric.OpenTLS(files)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestClientsOverTLS: the listener demands TLS and, if told so, a certificate;
// the node's own connections need neither.
func TestClientsOverTLS(t *testing.T) {
	ca, stranger := tlstest.NewCA(t, "CA"), tlstest.NewCA(t, "Stranger")
	cert, key := ca.Issue(t, "node")
	mine, mineKey := ca.Issue(t, "client")
	theirs, theirsKey := stranger.Issue(t, "client")
	secure := openTLS(t, fabric.TLSFiles{Cert: cert, Key: key, CA: ca.File})
	open1 := open(t, fabric.Options{TLS: secure})
	strict := open(t, fabric.Options{TLS: secure, Verify: true})
	if !strings.HasPrefix(strict.ClientURL(), "tls://") {
		t.Errorf("URL = %s", strict.ClientURL())
	}
	for name, tt := range map[string]struct {
		n    *fabric.Node
		opts []nats.Option
		ok   bool
	}{
		"CA known":               {open1, []nats.Option{nats.RootCAs(ca.File)}, true},
		"CA unknown":             {open1, nil, false},
		"certificate demanded":   {strict, []nats.Option{nats.RootCAs(ca.File)}, false},
		"certificate shown":      {strict, []nats.Option{nats.RootCAs(ca.File), nats.ClientCert(mine, mineKey)}, true},
		"certificate of another": {strict, []nats.Option{nats.RootCAs(ca.File), nats.ClientCert(theirs, theirsKey)}, false},
		"TLS 1.1":                {open1, []nats.Option{nats.Secure(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11})}, false},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := nats.Connect(tt.n.ClientURL(), tt.opts...)
			if err == nil {
				err = nc.Flush()
				nc.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("connect: %v", err)
			}
		})
	}
	if err := strict.MCP().Flush(); err != nil {
		t.Errorf("the node's own connection: %v", err)
	}
}

// TestRoutesOverTLS: three nodes form a cluster over mutual TLS, keep it while
// their CA is replaced, and let in nobody without a certificate of that CA. A
// node that joins afterwards knows the new CA only.
func TestRoutesOverTLS(t *testing.T) {
	was, is, stranger := tlstest.NewCA(t, "CA"), tlstest.NewCA(t, "new CA"), tlstest.NewCA(t, "Stranger")
	peers := freePorts(t, 4)
	start := func(i int, files *fabric.TLSFiles) (*fabric.Node, *fabric.TLS) {
		c := &fabric.Cluster{Addr: peers[i], Peers: peers[:3], Secret: "s", Voters: []string{"n0", "n1", "n2"}}
		if files != nil {
			c.TLS = openTLS(t, *files)
		}
		return open(t, fabric.Options{Name: fmt.Sprintf("n%d", i), Cluster: c, Tokens: fabric.Tokens{Client: "token"}}), c.TLS
	}
	routes := func(n *fabric.Node, want int) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			if got := len(n.Routes().Peers()); got != want {
				return fmt.Errorf("%s has routes to %d nodes, want %d", n.Name(), got, want)
			}
			return nil
		})
	}
	var nodes []*fabric.Node
	var secured []*fabric.TLS
	var files []fabric.TLSFiles
	for i := range 3 {
		ca := filepath.Join(t.TempDir(), "ca.pem") // each node has its own copy
		copyFiles(t, ca, was.File)
		cert, key := was.Issue(t, fmt.Sprintf("n%d", i))
		files = append(files, fabric.TLSFiles{Cert: cert, Key: key, CA: ca})
		n, s := start(i, &files[i])
		nodes, secured = append(nodes, n), append(secured, s)
	}
	for _, n := range nodes {
		routes(n, 2)
	}
	js, err := jetstream.New(nodes[0].Fabric())
	if err != nil {
		t.Fatal(err)
	}
	var kv jetstream.KeyValue
	eventually(t, 20*time.Second, func() error {
		kv, err = js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
		return err
	})

	client := wantLogin(t, nodes[0], "client", "token", true)
	for _, cas := range [][]string{{was.File, is.File}, {is.File}} { // first both, then the new one alone
		for i, n := range nodes {
			copyFiles(t, files[i].CA, cas...)
			if len(cas) == 1 { // by now every node trusts the new CA
				cert, key := is.Issue(t, n.Name())
				copyFiles(t, files[i].Cert, cert)
				copyFiles(t, files[i].Key, key)
			}
			c, err := secured[i].Read()
			if err != nil {
				t.Fatal(err)
			}
			secured[i].Use(c)
			if err := n.Reload(fabric.Tokens{Client: "new token"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := client.Flush(); err != nil {
			t.Errorf("a client's connection: %v", err)
		}
		for _, n := range nodes {
			routes(n, 2)
			if _, err := kv.Put(t.Context(), "k", []byte(n.Name())); err != nil {
				t.Errorf("put while the CA is replaced: %v", err)
			}
			for _, nc := range []*nats.Conn{n.MCP(), n.Fabric(), n.System()} {
				if err := nc.Flush(); err != nil {
					t.Errorf("a connection of the node's own: %v", err)
				}
			}
		}
	}

	cert, key := stranger.Issue(t, "n3")
	outsider, _ := start(3, &fabric.TLSFiles{Cert: cert, Key: key, CA: is.File})
	<-time.After(time.Second) // several attempts
	routes(outsider, 0)
	if err := outsider.Close(); err != nil {
		t.Error(err)
	}
	cert, key = is.Issue(t, "n3")
	late, _ := start(3, &fabric.TLSFiles{Cert: cert, Key: key, CA: is.File})
	routes(late, 3)
}

// copyFiles makes to of the contents of from.
func copyFiles(t *testing.T, to string, from ...string) {
	t.Helper()
	var all []byte
	for _, f := range from {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	if err := os.WriteFile(to, all, 0o600); err != nil {
		t.Fatal(err)
	}
}
