package fabric

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// TLSFiles name the PEM files that prove who this side of a connection is, and
// whom it believes.
type TLSFiles struct {
	Cert string // certificate chain, this side's own first; "" = none
	Key  string // private key of Cert
	CA   string // certificates that have signed the other sides'; "" = the system's for servers, none for clients
}

// TLS is the content of TLSFiles, for listeners and connections. What is read
// anew by Reload counts for connections made from then on.
type TLS struct {
	files TLSFiles
	now   atomic.Pointer[Certificates]
}

// Certificates are what TLSFiles held when they were read.
type Certificates struct {
	cert *tls.Certificate // nil = none
	ca   *x509.CertPool   // nil = none
	pem  []byte           // what ca was made of
}

// OpenTLS reads and checks the files. Errors name the file and what is wrong
// with it: missing, no match, expired (and since when), or no CA.
func OpenTLS(files TLSFiles) (*TLS, error) {
	t := &TLS{files: files}
	c, err := t.Read()
	if err != nil {
		return nil, err
	}
	t.Use(c)
	return t, nil
}

// Read reads and checks the files again, without using what they hold.
func (t *TLS) Read() (*Certificates, error) {
	var c Certificates
	var err error
	if t.files.Cert != "" || t.files.Key != "" {
		if c.cert, err = readPair(t.files.Cert, t.files.Key); err != nil {
			return nil, err
		}
	}
	if t.files.CA != "" {
		if c.ca, c.pem, err = readCA(t.files.CA); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// Use makes c count for connections from now on, and returns what did before.
func (t *TLS) Use(c *Certificates) (before *Certificates) { return t.now.Swap(c) }

// Files returns what the content was read from.
func (t *TLS) Files() TLSFiles { return t.files }

// Expires is when the certificate in use ends; zero if there is none.
func (t *TLS) Expires() time.Time {
	if c := t.now.Load(); c.cert != nil {
		return c.cert.Leaf.NotAfter
	}
	return time.Time{}
}

// SameCA reports whether both trust the same certificates.
func (c *Certificates) SameCA(other *Certificates) bool { return bytes.Equal(c.pem, other.pem) }

// CheckMutual says why a certificate would be refused where both sides show one
// and trust the same CA, as on routes; nil if it would not.
func (t *TLS) CheckMutual(c *Certificates) error {
	switch {
	case c.cert == nil:
		return errors.New("routes are mutual: both sides show a certificate, and none is given")
	case c.ca == nil:
		return errors.New("routes are mutual: both sides verify the other's certificate, and no CA is given to verify it with")
	}
	for use, name := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "serverAuth", x509.ExtKeyUsageClientAuth: "clientAuth"} {
		between := x509.NewCertPool()
		for _, der := range c.cert.Certificate[1:] {
			if ca, err := x509.ParseCertificate(der); err == nil {
				between.AddCert(ca)
			}
		}
		_, err := c.cert.Leaf.Verify(x509.VerifyOptions{Roots: c.ca, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}})
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage {
			return fmt.Errorf("certificate %s can't be used for routes: its extendedKeyUsage lacks %s, and a node is both server and client", t.files.Cert, name)
		}
		if err != nil {
			return fmt.Errorf("certificate %s is not one that %s has signed, so other nodes would refuse it: %w", t.files.Cert, t.files.CA, err)
		}
	}
	return nil
}

// Listener is the configuration of a listener that demands what auth says of
// its clients, and speaks the protocols given (ALPN).
func (t *TLS) Listener(auth tls.ClientAuthType, protocols ...string) *tls.Config {
	return t.listener(tls.VersionTLS12, auth, protocols)
}

func (t *TLS) listener(lowest uint16, auth tls.ClientAuthType, protocols []string) *tls.Config {
	first := t.now.Load()
	return &tls.Config{
		MinVersion: lowest, ClientAuth: auth, NextProtos: protocols,
		Certificates: []tls.Certificate{*first.cert}, ClientCAs: first.ca, // for those who look; what counts is below
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := t.now.Load()
			return &tls.Config{
				MinVersion: lowest, ClientAuth: auth, NextProtos: protocols,
				Certificates: []tls.Certificate{*c.cert}, ClientCAs: c.ca,
				// A resumed session is one that an earlier CA may have let in.
				SessionTicketsDisabled: auth != tls.NoClientCert,
			}, nil
		},
	}
}

// Routes is the configuration of both sides of connections between nodes. The
// CA by which the side that connects verifies the other stays what it is now.
func (t *TLS) Routes() *tls.Config {
	conf := t.listener(tls.VersionTLS13, tls.RequireAndVerifyClientCert, nil)
	conf.RootCAs = conf.ClientCAs
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.now.Load().cert, nil }
	return conf
}

// routeTLS is the TLS of routes as it is now; nil in clear.
func (c *Cluster) routeTLS() *tls.Config {
	if c.TLS == nil {
		return nil
	}
	return c.TLS.Routes()
}

// readPair reads a certificate and its key.
func readPair(cert, key string) (*tls.Certificate, error) {
	switch {
	case key == "":
		return nil, fmt.Errorf("certificate %s comes without its private key", cert)
	case cert == "":
		return nil, fmt.Errorf("private key %s comes without its certificate", key)
	}
	certPEM, err := os.ReadFile(filepath.Clean(cert))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if _, err := parseCertificates(cert, certPEM); err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Clean(key))
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("private key %s does not go with certificate %s: %w", key, cert, err)
	}
	if err := current("certificate "+cert, pair.Leaf); err != nil {
		return nil, err
	}
	return &pair, nil
}

// readCA reads the certificates of CAs. It returns the file's content too.
func readCA(path string) (*x509.CertPool, []byte, error) {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, nil, fmt.Errorf("read CA: %w", err)
	}
	certs, err := parseCertificates(path, text)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	var old error
	usable := 0
	for _, c := range certs {
		if !c.IsCA {
			return nil, nil, fmt.Errorf("%s holds the certificate of %s, which is no CA: it may not sign others (basicConstraints CA:TRUE is missing); give the certificate that signed it", path, nameOf(c))
		}
		if err := current("CA "+path, c); err != nil {
			old = err
			continue
		}
		usable++
		pool.AddCert(c)
	}
	if usable == 0 {
		return nil, nil, old
	}
	return pool, text, nil
}

func parseCertificates(path string, text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate: there is no PEM block CERTIFICATE in it", path)
	}
	return certs, nil
}

// current refuses a certificate whose time is over, or has not come.
func current(what string, c *x509.Certificate) error {
	now := time.Now()
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%s (%s) expired on %s", what, nameOf(c), day(c.NotAfter))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s (%s) is valid from %s on, and this machine's clock says %s", what, nameOf(c), day(c.NotBefore), day(now))
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// nameOf is what a person knows a certificate by.
func nameOf(c *x509.Certificate) string {
	switch {
	case c.Subject.String() != "":
		return c.Subject.String()
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.IPAddresses) > 0:
		return net.IP(c.IPAddresses[0]).String()
	}
	return "serial " + c.SerialNumber.String()
}
