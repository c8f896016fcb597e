package main

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"ripstop/fabric"
	"ripstop/router/agent"
)

// credentials are what a command shows of itself, and believes of a node.
type credentials struct {
	User          string // NATS user the token belongs to; "" = the role the command needs
	TokenFile     string // "" = none
	CA, Cert, Key string // PEM files; "" = none
}

// addCredentialFlags is the part of addClientFlags about credentials.
func addCredentialFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("token-file", "", "file with the token of the fabric ("+envName("token-file")+")")
	f.String("user", "", "NATS user that the token belongs to; default: the role that the command needs ("+envName("user")+")")
	f.String("tls-ca", "", "CA certificates (PEM) that the node's certificate is verified with; default: the system's ("+envName("tls-ca")+")")
	f.String("tls-cert", "", "certificate (PEM) to show a node that demands one ("+envName("tls-cert")+")")
	f.String("tls-key", "", "private key of --tls-cert ("+envName("tls-key")+")")
}

// readCredentials reads the flags of addCredentialFlags, and checks the files.
func (s *clientSettings) readCredentials(cmd *cobra.Command) error {
	get := func(name string) string { return cmd.Flag(name).Value.String() }
	s.credentials = credentials{User: get("user"), TokenFile: get("token-file"), CA: get("tls-ca"), Cert: get("tls-cert"), Key: get("tls-key")}
	if s.TokenFile != "" {
		token, err := readToken(s.TokenFile)
		if err != nil {
			return usagef("--token-file: %w", err)
		}
		s.Token = token
	}
	if _, err := fabric.OpenTLS(fabric.TLSFiles{CA: s.CA}); err != nil {
		return usagef("--tls-ca: %w", err)
	}
	if _, err := fabric.OpenTLS(fabric.TLSFiles{Cert: s.Cert, Key: s.Key}); err != nil {
		return usagef("--tls-cert: %w", err)
	}
	return nil
}

// connection is how an agent.Connection is made of the settings. A token that
// has changed in its file is used from the next reconnect on.
func (s clientSettings) connection(name string, log *slog.Logger) agent.Connection {
	c := agent.Connection{
		URLs: s.URLs, User: s.User, Token: s.Token, Name: name, Logger: log,
		CAFile: s.CA, CertFile: s.Cert, KeyFile: s.Key,
	}
	if s.TokenFile != "" {
		c.TokenFunc = func() string {
			token, err := readToken(s.TokenFile)
			if err != nil {
				log.Warn("token file can't be read; the token it had is used", "err", err)
				return s.Token
			}
			return token
		}
	}
	return c
}

// explainTLS turns a failed handshake with the fabric into a failure that says
// what to give; nil if err is none.
func (s clientSettings) explainTLS(err error) error {
	f := &failure{code: exitUnreachable, what: "the fabric at " + s.URLs}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	text := err.Error()
	// In TLS 1.3 a client learns after the handshake that its certificate won't
	// do; if it writes first, only that the connection is gone.
	turnedAway := strings.Contains(text, "remote error: tls:") || strings.Contains(text, "closed by remote after TLS handshake")
	switch {
	case errors.As(err, &unknown):
		f.why, f.try = "its certificate is signed by no CA that this command knows", "--tls-ca FILE, with the CA that has signed the node's certificate"
	case errors.As(err, &name):
		f.why, f.try = name.Error(), "--nats URL, with a name that stands in the node's certificate"
	case turnedAway && s.Cert == "":
		f.why, f.try = "it demands a client certificate", "--tls-cert FILE --tls-key FILE"
	case turnedAway:
		f.why, f.try = "it refuses the certificate of --tls-cert: "+text, "--tls-cert FILE --tls-key FILE, signed by the CA that the node believes (its --tls-ca)"
	case errors.Is(err, nats.ErrSecureConnWanted):
		f.why, f.try = "it has no TLS", "--nats nats://…, without --tls-ca and --tls-cert; what is sent can be read on the way"
	default:
		return nil
	}
	return f
}

// clientFlags are the flags a command needs to get into a node with these
// settings.
func (s *nodeSettings) clientFlags() string {
	flags := ""
	switch {
	case s.Token != "":
		flags += " --token-file FILE"
	case len(s.Users) > 0:
		flags += " --user NAME --token-file FILE"
	}
	if s.TLS != nil && s.TLS.Files().CA != "" {
		flags += " --tls-ca " + s.TLS.Files().CA
	}
	if s.Verify {
		flags += " --tls-cert FILE --tls-key FILE"
	}
	return flags
}

// natsFlags is clientFlags for the nats CLI.
func (s *nodeSettings) natsFlags() string {
	flags := ""
	switch {
	case s.Token != "":
		flags += " --user client --password TOKEN"
	case len(s.Users) > 0:
		flags += " --user NAME --password TOKEN --inbox-prefix _INBOX.user.NAME"
	}
	if s.TLS != nil && s.TLS.Files().CA != "" {
		flags += " --tlsca " + s.TLS.Files().CA
	}
	if s.Verify {
		flags += " --tlscert FILE --tlskey FILE"
	}
	return flags
}
