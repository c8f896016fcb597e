package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/fabric/admin"
)

// sessionFilter says which sessions are listed.
type sessionFilter struct {
	server, node, principal string
}

func (f sessionFilter) empty() bool { return f == sessionFilter{} }

// add defines the filter's flags. --server is also the address of a node, as for
// all operator's commands: a server's name has neither dot, colon nor slash.
func (f *sessionFilter) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&serverOrURL{cmd, f}, "server", "sessions: only those of this MCP server; or a NATS URL, as for --nats")
	fs.StringVar(&f.node, "node", "", "sessions: only those whose instance is attached to this node")
	fs.StringVar(&f.principal, "principal", "", "sessions: only those of this user")
	for _, name := range []string{"server", "node", "principal"} {
		fs.Lookup(name).Annotations = map[string][]string{notFromEnv: {"true"}}
	}
	_ = cmd.RegisterFlagCompletionFunc("node", func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completeNode(cmd, nil, word)
	}) // fails only for an unknown flag
}

// serverOrURL is the value of --server.
type serverOrURL struct {
	cmd *cobra.Command
	f   *sessionFilter
}

func (v *serverOrURL) String() string {
	if v.f == nil {
		return ""
	}
	return v.f.server
}

func (*serverOrURL) Type() string { return "string" }

func (v *serverOrURL) Set(s string) error {
	if strings.ContainsAny(s, ".:/,") {
		return v.cmd.Flags().Set("nats", s)
	}
	v.f.server = s
	return nil
}

// runLsSessions lists the sessions. They are the operator's to see: their ids
// open them.
func runLsSessions(cmd *cobra.Command, f sessionFilter) error {
	return asOperator(cmd, func(ctx context.Context, c *operator) error {
		list := []admin.Session{}
		err := c.Sessions(ctx, admin.SessionRequest{Server: f.server, Node: f.node, Principal: f.principal}, func(s admin.Session) error {
			list = append(list, s)
			return nil
		})
		if err != nil {
			return err
		}
		if len(list) == 0 && !wantsJSON(cmd) {
			sought := "no session is open"
			if !f.empty() {
				sought = "no such session is open"
			}
			fmt.Fprintln(cmd.ErrOrStderr(), sought)
			return nil
		}
		return printRows(cmd, []string{"SESSION", "SERVER", "INSTANCE", "NODE", "EPOCH", "AGE", "STATE", "REPLICATION", "PRINCIPAL", "CLIENT"}, sessionRows(list, time.Now()), list)
	})
}

func sessionRows(list []admin.Session, now time.Time) [][]string {
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		rows = append(rows, []string{s.ID, s.Server, s.Instance, dash(s.Node), strconv.FormatUint(s.Epoch, 10), age(now.Sub(s.Created)), s.State, s.Replication, dash(s.Principal), dash(s.Client)})
	}
	return rows
}

func newValidateSessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   admin.VerbValidate,
		Short: "Read all records of sessions, and say what is wrong with them",
		Long: `Read all that is stored of sessions and say what is wrong: what does not decode or
has a wrong checksum, replicas and indexes that differ, data of sessions that have
ended, and sessions whose instance is gone. With --repair, what can't be read is
removed, and sessions whose instance is gone are moved to another one; what is
repaired, it says.

The exit code is 0 if nothing is wrong, or all of it was repaired, and 1 else. A
session whose instance is gone is nothing wrong: its next request moves it.`,
		Example: `  ripstop admin validate-sessions
  ripstop admin validate-sessions --repair -o json`,
		Args: cobra.NoArgs,
	}
	repair := cmd.Flags().Bool("repair", false, "repair what can be")
	mustBeTyped(cmd)
	addAdminFlags(cmd, transferTimeout)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			v, err := c.ValidateSessions(ctx, *repair)
			if err != nil {
				return err
			}
			return printValidation(cmd, v)
		})
	}
	return cmd
}

func printValidation(cmd *cobra.Command, v admin.Validation) error {
	out := cmd.OutOrStdout()
	wrong := 0
	for _, f := range v.Findings {
		if !f.Repaired && f.Kind != findingOrphan {
			wrong++
		}
	}
	if wantsJSON(cmd) {
		if err := printJSON(out, v); err != nil {
			return err
		}
	} else {
		if len(v.Findings) > 0 {
			rows := make([][]string, 0, len(v.Findings))
			for _, f := range v.Findings {
				rows = append(rows, []string{dash(f.Key), f.Kind, map[bool]string{true: "yes", false: "no"}[f.Repaired], f.What})
			}
			if err := printTable(out, []string{"KEY", "KIND", "REPAIRED", "WHAT"}, rows); err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "%d sessions, %d findings\n", v.Sessions, len(v.Findings))
	}
	if wrong > 0 {
		return &failure{code: exitFailure, what: "the sessions", why: fmt.Sprintf("%d findings are not repaired", wrong), try: "ripstop admin " + admin.VerbValidate + " --repair"}
	}
	return nil
}
