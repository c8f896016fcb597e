package raft

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

const (
	// A process that is being killed may accept and reset before it refuses; a proxy
	// in front of a dead one does so for ever. This many in a row are taken for death.
	resetsOfTheDead = 5
	resetPause      = 5 * time.Millisecond
	maxInfo         = 32 << 10 // an INFO line is below 2 KB
)

// redial finds out whether the process of p is gone: the address at which it
// answered once must refuse. An answer that takes longer than ctx is silence: the
// process may be stopped, or the network cut, and its leader alive.
func redial(ctx context.Context, p Peer, conf *tls.Config) (dead bool, reason string) {
	if p.Addr == "" {
		return false, "its cluster address is not known"
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for n := 1; ; n++ {
		id, err := probe(ctx, p.Addr, conf)
		switch {
		case err == nil && id.ServerID == p.ServerID:
			return false, p.Addr + " answers"
		case err == nil:
			return true, fmt.Sprintf("%s is now server %s of %q", p.Addr, id.ServerID, id.Name)
		case errors.Is(err, syscall.ECONNREFUSED), closed(err) && n >= resetsOfTheDead:
			return true, err.Error()
		case !closed(err):
			return false, err.Error()
		}
		pause.Reset(resetPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return false, err.Error()
		}
	}
}

// closed reports that the far end accepted a connection and gave it up.
func closed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// identity is what a NATS server says of itself to a new route.
type identity struct {
	ServerID string `json:"server_id"`
	Name     string `json:"server_name"`
}

// probe asks the NATS server at the cluster address addr who it is. A route
// listener sends INFO first (server/route.go, createRoute), after TLS if it uses it.
func probe(ctx context.Context, addr string, conf *tls.Config) (identity, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return identity{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in := conn
	if conf != nil {
		in = tlsClient(conn, conf)
	}
	line, err := bufio.NewReader(io.LimitReader(in, maxInfo)).ReadBytes('\n')
	if err != nil {
		return identity{}, fmt.Errorf("read INFO from %s: %w", addr, err)
	}
	body, ok := bytes.CutPrefix(line, []byte("INFO "))
	var id identity
	if !ok || json.Unmarshal(body, &id) != nil || id.ServerID == "" {
		return identity{}, fmt.Errorf("read INFO from %s: not a NATS server", addr)
	}
	return id, nil
}

// tlsClient checks the certificate's chain, and its name only if conf has one: addr
// is often an address that a name led to, and the server id in INFO is what counts.
func tlsClient(conn net.Conn, conf *tls.Config) net.Conn {
	if conf.ServerName == "" && !conf.InsecureSkipVerify {
		conf = conf.Clone()
		conf.InsecureSkipVerify = true // VerifyConnection does it
		conf.VerifyConnection = func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: conf.RootCAs, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		}
	}
	return tls.Client(conn, conf)
}

func hostPort(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }
