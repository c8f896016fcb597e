package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ripstop/fabric"
	"ripstop/router/access"
)

// secrets are who may come in and what this node shows of itself: all that
// SIGHUP reads again.
type secrets struct {
	Tokens      fabric.Tokens
	Users       []access.User
	TLS, Routes *fabric.Certificates // nil = in clear
}

// secrets reads the files that hold secrets.
func (l *loaded) secrets(bad complain) secrets {
	s := secrets{Tokens: fabric.Tokens{
		Client: l.token("token-file", bad), Agent: l.token("agent-token-file", bad), Operator: l.token("operator-token-file", bad),
	}}
	path := l.v.GetString("users-file")
	if path == "" {
		return s
	}
	var err error
	if s.Users, err = access.Load(path); err == nil {
		err = fabric.CheckUsers(natsUsers(s.Users))
	}
	if err != nil {
		bad("users-file", "%v", err)
	}
	for _, u := range s.Users {
		if u.Token == s.Tokens.Client || u.Token == s.Tokens.Agent || u.Token == s.Tokens.Operator {
			bad("users-file", "user %s has the token of one of the roles; it needs one of its own", u.Name)
		}
	}
	return s
}

// natsUsers are users as the NATS server needs them.
func natsUsers(users []access.User) []fabric.User {
	var out []fabric.User
	for _, u := range users {
		out = append(out, fabric.User{Name: u.Name, Token: u.Token, Publish: u.Publish(), Subscribe: u.Subscribe()})
	}
	return out
}

// tls reads what the listeners for clients show, or nil.
func (l *loaded) tls(bad complain) (t *fabric.TLS, verify bool) {
	verify = l.boolean("tls-verify", bad)
	files := fabric.TLSFiles{Cert: l.v.GetString("tls-cert"), Key: l.v.GetString("tls-key"), CA: l.v.GetString("tls-ca")}
	switch {
	case files == fabric.TLSFiles{} && !verify:
		return nil, false
	case files.Cert == "":
		bad("tls-cert", "is missing: without a certificate of this node there is no TLS for clients")
		return nil, verify
	case verify && files.CA == "":
		bad("tls-verify", "needs --tls-ca, the CA that has signed the clients' certificates")
		return nil, verify
	}
	t, err := fabric.OpenTLS(files)
	if err != nil {
		bad("tls-cert", "%v", err)
	}
	return t, verify
}

// routeTLS reads what routes show and verify, or nil.
func (l *loaded) routeTLS(bad complain) *fabric.TLS {
	get := func(key string) string { return l.v.GetString(key) }
	files := fabric.TLSFiles{Cert: get("cluster-tls-cert"), Key: get("cluster-tls-key"), CA: get("cluster-tls-ca")}
	own := files != fabric.TLSFiles{}
	if files.Cert == "" && files.Key == "" {
		files.Cert, files.Key = get("tls-cert"), get("tls-key")
	}
	if files.CA == "" {
		files.CA = get("tls-ca")
	}
	switch {
	case files.Cert == "" && own:
		bad("cluster-tls-cert", "is missing: routes with TLS show a certificate")
		return nil
	case files.Cert == "":
		return nil
	case files.CA == "":
		bad("cluster-tls-ca", "is missing: with TLS the nodes of a cluster verify each other; name the CA that has signed their certificates here, or with --tls-ca")
		return nil
	}
	t, err := fabric.OpenTLS(files)
	if err == nil {
		var c *fabric.Certificates
		if c, err = t.Read(); err == nil {
			err = t.CheckMutual(c)
		}
	}
	if err != nil {
		bad("cluster-tls-cert", "%v", err)
	}
	return t
}

// guarded reports whether callers must prove who they are.
func (s *nodeSettings) guarded() bool { return s.Token != "" || len(s.Users) > 0 || s.Verify }

// reread reads the secrets again: all, or none with every problem named.
func (l *loaded) reread(s *nodeSettings) (secrets, error) {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	next := l.secrets(bad)
	read := func(key string, t *fabric.TLS) *fabric.Certificates {
		if t == nil {
			return nil
		}
		c, err := t.Read()
		if err != nil {
			bad(key, "%v", err)
		}
		return c
	}
	next.TLS = read("tls-cert", s.TLS)
	if s.Cluster != nil && s.Cluster.TLS != nil {
		next.Routes = read("cluster-tls-cert", s.Cluster.TLS)
		if next.Routes != nil {
			if err := s.Cluster.TLS.CheckMutual(next.Routes); err != nil {
				bad("cluster-tls-cert", "%v", err)
			}
		}
	}
	return next, errors.Join(errs...)
}

// reload reads the secrets again and lets them count for who comes in from now
// on. On error nothing has changed.
func (n *node) reload() error {
	next, err := n.settings.reread()
	if err != nil {
		return err
	}
	undo := n.show(next.TLS, next.Routes)
	if err := n.fabric.Reload(next.Tokens, natsUsers(next.Users)); err != nil {
		undo()
		return err
	}
	n.token.Store(&next.Tokens.Client)
	n.guard.Use(next.Users)
	return nil
}

// show replaces the certificates that are not nil.
func (n *node) show(clients, routes *fabric.Certificates) (undo func()) {
	var undos []func()
	if clients != nil {
		before := n.settings.TLS.Use(clients)
		undos = append(undos, func() { n.settings.TLS.Use(before) })
	}
	if routes != nil {
		before := n.settings.Cluster.TLS.Use(routes)
		undos = append(undos, func() { n.settings.Cluster.TLS.Use(before) })
	}
	return func() {
		for _, f := range undos {
			f()
		}
	}
}

// catchHangup takes SIGHUP, which would end the process, from the first moment.
func catchHangup() chan os.Signal {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	return hup
}

// reloadOnHangup reloads at every SIGHUP until the node closes.
func (n *node) reloadOnHangup() {
	n.wg.Go(func() {
		for {
			select {
			case <-n.ctx.Done():
				return
			case <-n.hup:
				if err := n.reload(); err != nil {
					n.log.Error("not reloaded: what was loaded before stays in force", "err", err)
					continue
				}
				n.log.Info("reloaded tokens, users and certificates")
				n.warnOfTLS()
			}
		}
	})
}

// soon is how long before its end a certificate is warned of.
const soon = 14 * 24 * time.Hour

// warnOfTLS says what about the node's security will not last, or is missing.
func (n *node) warnOfTLS() {
	for what, t := range n.certificates() {
		if left := time.Until(t.Expires()); left < soon {
			n.log.Warn("a certificate expires soon; replace its file and send SIGHUP", "for", what, "file", t.Files().Cert, "expires", t.Expires().UTC())
		}
	}
	if n.settings.TLS != nil || n.settings.Token == "" && len(n.settings.Users) == 0 {
		return
	}
	for _, key := range []string{n.settings.NATSAddr, n.settings.HTTPAddr} {
		if checkListen(key, false, "", "") != nil {
			n.log.Warn("tokens cross the network in clear; --tls-cert and --tls-key encrypt them", "listener", key)
		}
	}
}

// certificates are those the node shows, by what for.
func (n *node) certificates() map[string]*fabric.TLS {
	out := map[string]*fabric.TLS{}
	if n.settings.TLS != nil {
		out["clients"] = n.settings.TLS
	}
	if c := n.settings.Cluster; c != nil && c.TLS != nil {
		out["routes"] = c.TLS
	}
	return out
}

// collectTLS registers when the node's certificates end.
func (n *node) collectTLS() {
	for what, t := range n.certificates() {
		n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ripstop_certificate_expiry_timestamp_seconds", Help: "When a certificate of the node ends, in Unix time.",
			ConstLabels: prometheus.Labels{"for": what},
		}, func() float64 { return float64(t.Expires().Unix()) }))
	}
}

// tlsConfig is the TLS of the HTTP listener. A probe of /health has no
// certificate, so whether one is there is up to certified.
func (s *nodeSettings) tlsConfig() *tls.Config {
	auth := tls.NoClientCert
	if s.Verify {
		auth = tls.VerifyClientCertIfGiven
	}
	return s.TLS.Listener(auth, "h2", "http/1.1")
}

// certified demands a client certificate where the settings do.
func (s *nodeSettings) certified(h http.Handler) http.Handler {
	if !s.Verify {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			http.Error(w, "this node demands a client certificate (tls-verify)", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
