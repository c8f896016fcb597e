package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ripstop/fabric/admin"
	"ripstop/router/agent"
)

// adminTimeout bounds an operator's command, and transferTimeout one that moves
// data.
const (
	adminTimeout    = 20 * time.Second
	transferTimeout = 10 * time.Minute
)

// addAdminFlags defines how an operator's command reaches the fabric.
func addAdminFlags(cmd *cobra.Command, timeout time.Duration) {
	addClientFlags(cmd)
	addOperatorFlags(cmd)
	addTimeout(cmd, timeout)
}

// addOperatorFlags adds to addClientFlags what the operator's user needs.
func addOperatorFlags(cmd *cobra.Command) {
	cmd.Flags().Lookup("user").Usage = "NATS user; operator's commands default to operator (" + envName("user") + ")"
	cmd.Flags().String("operator-token-file", "", "file with the operator's token; default: that of --token-file ("+envName("operator-token-file")+")")
	cmd.Flags().Lookup("nats").Usage += "; --server is the same"
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "server" {
			name = "nats"
		}
		return pflag.NormalizedName(name)
	})
}

// operator is a connection of the operator's user.
type operator struct {
	admin.Client
	refused context.Context // ends with the server's word that the user may not do this
}

// dialOperator connects as cmd's flags say. Close the connection after use.
func dialOperator(ctx context.Context, cmd *cobra.Command) (*operator, error) {
	s, err := clientSettingsOf(cmd)
	if err != nil {
		return nil, err
	}
	if path := cmd.Flag("operator-token-file").Value.String(); path != "" {
		if s.Token, err = readToken(path); err != nil {
			return nil, usagef("--operator-token-file: %w", err)
		}
	}
	user := s.User
	if user == "" {
		user = "operator"
	}
	refused, refuse := context.WithCancelCause(context.WithoutCancel(ctx))
	notAllowed := &failure{code: exitUnreachable, what: "the fabric at " + s.URLs, why: "user " + quote(user) + " may not run operator's commands", try: cmd.CommandPath() + " --operator-token-file FILE"}
	opts := []nats.Option{
		nats.UserInfo(user, cmp.Or(s.Token, user)), // without tokens the password is the user (fabric.Tokens)
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				refuse(notAllowed)
			}
		}),
	}
	nc, err := dialNATS(ctx, agent.Connection{
		URLs: s.URLs, CAFile: s.CA, CertFile: s.Cert, KeyFile: s.Key, Name: "ripstop admin", Logger: slog.New(slog.DiscardHandler),
	}, opts)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, explain("the fabric at "+s.URLs, ctx.Err())
	case err != nil && s.explainTLS(err) != nil:
		return nil, s.explainTLS(err)
	case err != nil && refusesToken(err):
		why := "it refuses the token of user " + quote(user)
		if s.Token == "" {
			why = "it wants the token of user " + quote(user)
		}
		return nil, &failure{code: exitUnreachable, what: "the fabric at " + s.URLs, why: why, try: cmd.CommandPath() + " --operator-token-file FILE"}
	case err != nil:
		return nil, &failure{code: exitUnreachable, what: "the fabric can't be reached", why: err.Error(), try: "ripstop start"}
	}
	return &operator{Client: admin.Client{Conn: nc}, refused: refused}, nil
}

// dialNATS connects, or gives up when ctx ends.
func dialNATS(ctx context.Context, c agent.Connection, opts []nats.Option) (*nats.Conn, error) {
	type dialled struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan dialled, 1)
	go func() { // bounded by the connection's own timeout
		nc, err := c.Dial(false, opts...)
		done <- dialled{nc, err}
	}()
	select {
	case d := <-done:
		return d.nc, d.err
	case <-ctx.Done():
		go func() {
			if d := <-done; d.nc != nil {
				d.nc.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// asOperator runs f with a connection, bounded by --timeout.
func asOperator(cmd *cobra.Command, f func(ctx context.Context, c *operator) error) error {
	ctx, cancel, err := withTimeout(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	c, err := dialOperator(ctx, cmd)
	if err != nil {
		return err
	}
	defer c.Conn.Close()
	return c.run(ctx, cmd.Name(), f)
}

// run runs f until the server says that the user may not.
func (c *operator) run(ctx context.Context, what string, f func(ctx context.Context, c *operator) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.refused, func() { cancel(context.Cause(c.refused)) })()
	err := f(ctx, c)
	if err == nil {
		return nil
	}
	var no *failure
	if errors.As(context.Cause(ctx), &no) {
		return no
	}
	return explainAdmin(what, err)
}

// explainAdmin is explain for what the admin service answers.
func explainAdmin(what string, err error) error {
	var e *admin.Error
	if !errors.As(err, &e) {
		return explain(what, err)
	}
	f := &failure{code: exitFailure, what: what, why: err.Error(), try: e.Try}
	switch e.Code {
	case admin.CodeUsage:
		f.code = exitUsage
	case admin.CodeNotFound:
		f.code = exitNotFound
	case admin.CodeRefused:
		f.code = exitRefused
	case admin.CodeNoQuorum:
		f.code = exitUnreachable
	case admin.CodeUnknown:
		f.code = exitUnknown
	}
	return f
}

// suggestNode adds to "not found" what was probably meant.
func suggestNode(ctx context.Context, c *operator, name string, err error) error {
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != admin.CodeNotFound {
		return err
	}
	s, statusErr := c.Status(ctx)
	if statusErr != nil {
		return err
	}
	return &admin.Error{Code: e.Code, Text: e.Text + didYouMean(name, nodeNames(s)), Try: e.Try}
}

func nodeNames(s admin.Status) []string {
	names := make([]string, len(s.Nodes))
	for i, n := range s.Nodes {
		names[i] = n.Name
	}
	return names
}

// completeNode completes the name of a node; it fails in silence, as completions
// do.
func completeNode(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s := completionStatus(cmd)
	var names []cobra.Completion
	for _, n := range s.Nodes {
		names = append(names, cobra.CompletionWithDesc(n.Name, strings.TrimSpace(n.Role+" "+n.State+" "+n.Health)))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeGroup completes the name of a Raft group.
func completeGroup(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s := completionStatus(cmd)
	var names []cobra.Completion
	for _, g := range s.Groups {
		names = append(names, cobra.CompletionWithDesc(g.Name, "led by "+g.Leader))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completionStatus(cmd *cobra.Command) (s admin.Status) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, 2*completeFor) // a status waits for nodes that hang
	defer cancel()
	c, err := dialOperator(ctx, cmd)
	if err != nil {
		return s
	}
	defer c.Conn.Close()
	s, _ = c.Status(ctx)
	return s
}
