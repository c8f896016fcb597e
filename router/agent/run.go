package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/wire"
)

// Connection says how a process outside a node reaches the fabric.
type Connection struct {
	URLs   string // NATS URLs, separated by commas
	User   string // NATS user that Token belongs to; "" = client, or agent in Run
	Token  string // "" = none
	Name   string // shown in the server's connection list
	Logger *slog.Logger

	// TokenFunc returns the token at every connect, so that one that has
	// changed is used from the next reconnect on; nil = Token.
	TokenFunc func() string

	// PEM files of TLS, read at every connect. CAFile verifies servers ("" =
	// the system's CAs); CertFile and KeyFile are shown to servers that ask.
	CAFile, CertFile, KeyFile string
}

// The NATS users that tokens belong to: the built-in roles.
const (
	clientUser   = "client"
	agentUser    = "agent"
	operatorUser = "operator"
)

// Dial connects to the fabric. The connection is retried for ever if stubborn,
// else it fails at once when no server answers; once connected, it reconnects
// for ever.
func (c Connection) Dial(stubborn bool, opts ...nats.Option) (*nats.Conn, error) {
	all := []nats.Option{
		nats.Name(c.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 500*time.Millisecond),
		nats.Timeout(2 * time.Second),
		nats.RetryOnFailedConnect(stubborn),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // what can't be sent now fails now: a call must not run minutes later
		nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.Logger.Warn("NATS connection", "err", err)
		}),
	}
	all = append(all, c.credentials()...)
	nc, err := nats.Connect(c.URLs, append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.URLs, err)
	}
	return nc, nil
}

// credentials are what the connection shows of itself and believes of the
// server.
func (c Connection) credentials() []nats.Option {
	var opts []nats.Option
	switch c.User {
	case "":
		c.User = clientUser
	case clientUser, agentUser, operatorUser:
	default:
		opts = append(opts, nats.CustomInboxPrefix(wire.InboxPrefix(c.User)))
	}
	switch {
	case c.TokenFunc != nil:
		opts = append(opts, nats.UserInfoHandler(func() (string, string) { return c.User, c.TokenFunc() }))
	case c.Token != "":
		opts = append(opts, nats.UserInfo(c.User, c.Token))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	if c.CertFile != "" {
		opts = append(opts, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	return opts
}

// RunOptions are what Run attaches, and where.
type RunOptions struct {
	Connection
	Server      string
	Instance    string
	Transport   string // stdio, http or go
	Backend     router.Backend
	Software    string
	Scope       string // as in Options
	Exclusive   bool
	Standby     bool
	Fallback    bool   // as in eras.Options
	OnMove      string // as in Options, as are Idle and MaxSessions
	Idle        time.Duration
	MaxSessions int
	MaxInFlight int             // as in Options
	Drain       time.Duration   // how long calls in flight may take at the end; 0 = 30 s
	Attached    func(id string) // called once, when the instance stands in the registry; may be nil
}

// Run attaches a backend to the fabric from a process of its own and serves
// until ctx ends, clients of both eras whichever the server speaks (see
// router/eras). It waits for the fabric, and reconnects to it, for ever; from a
// node that is about to stop it moves to another first. It fails when another instance holds the server's name (kv.ErrAlreadyRegistered),
// unless it is to stand by. The backend is closed when Run returns.
func Run(ctx context.Context, opts RunOptions) error {
	if opts.Drain == 0 {
		opts.Drain = 30 * time.Second
	}
	if opts.User == "" {
		opts.User = agentUser
	}
	if opts.Instance == "" {
		opts.Instance = router.NewInstanceID()
	}
	opts.Backend = eras.Wrap(opts.Backend, eras.Options{Instance: opts.Instance, Fallback: opts.Fallback, Logger: opts.Logger})
	back := make(chan struct{}, 1)
	note := func(*nats.Conn) {
		select {
		case back <- struct{}{}:
		default:
		}
	}
	refused := make(chan error, 1)
	link, err := opts.Link(true,
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			opts.Logger.Warn("NATS connection", "err", err)
			if mayNotAttach(err) {
				select {
				case refused <- fmt.Errorf("attach %s: NATS user %q may not attach this server; the node's users file says which it may", opts.Server, opts.User):
				default:
				}
			}
		}),
		nats.ConnectHandler(note),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			opts.Logger.Info("connected again", "url", nc.ConnectedUrlRedacted())
			note(nc)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil && err != nil { // nil when it was left
				opts.Logger.Warn("connection to the fabric lost; reconnecting", "err", err)
			}
		}))
	if err != nil {
		return errors.Join(err, opts.Backend.Close())
	}
	defer link.Close()
	nc := link.Conn()
	a, err := Attach(Options{
		Server: opts.Server, Instance: opts.Instance, Transport: opts.Transport, Backend: opts.Backend,
		Conn: nc, Relay: link, Software: opts.Software, Logger: opts.Logger,
		Scope: opts.Scope, Exclusive: opts.Exclusive, Standby: opts.Standby,
		OnMove: opts.OnMove, Idle: opts.Idle, MaxSessions: opts.MaxSessions, MaxInFlight: opts.MaxInFlight,
	})
	if err != nil {
		return errors.Join(err, opts.Backend.Close())
	}
	link.Follow(nc, a.Move)
	registered := a.Registered()
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.Drain)
			defer cancel()
			return a.Close(end)
		case err := <-refused:
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.Drain)
			defer cancel()
			return errors.Join(err, a.Close(end))
		case <-back:
			a.Reconnected()
		case why := <-a.Refused():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), opts.Drain)
			defer cancel()
			return errors.Join(why, a.Close(end))
		case <-registered:
			registered = nil
			if opts.Attached != nil {
				opts.Attached(a.Instance())
			}
		}
	}
}

// mayNotAttach reports whether err is the NATS server's refusal to let this user
// answer for the server (nats-server, server/client.go, processSub).
func mayNotAttach(err error) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `Subscription to "mcp.v1.`)
}

// Func returns a backend for a server written against this package: f answers
// every request, of either era, and keeps whatever sessions it has itself.
func Func(info router.Info, f router.HandlerFunc) router.Backend {
	return funcBackend{f, info}
}

type funcBackend struct {
	router.HandlerFunc
	info router.Info
}

func (b funcBackend) Probe(context.Context) (router.Info, error) { return b.info, nil }
func (b funcBackend) Close() error                               { return nil }
