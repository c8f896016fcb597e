package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ripstop/fabric/admin"
)

func newAdminCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Look after the nodes of a cluster",
		Long: `Look after the nodes of a cluster. The commands go to the operator's service of
any node, over NATS; from another machine, say --server URL and give the
operator's token. What can't be taken back is shown first, and done when it is
confirmed.`,
		Example: `  ripstop admin drain n3
  ripstop admin step-down --to n1
  ripstop admin export backup.jsonl --server nats://n2.example.com:4222 --operator-token-file op.token`,
	}
	status := &cobra.Command{
		Use:   admin.VerbStatus,
		Short: "Show the cluster, as ripstop status does",
		Long: `Show the cluster: nodes, roles, leaders, versions, latency, lag and health, and
what to do about what is wrong. It is the same as "ripstop status".`,
		Example: `  ripstop admin get-cluster-status -o json`,
		Args:    cobra.NoArgs,
	}
	addStatus(status)
	cmd.AddCommand(status, newStepDownCommand())
	for _, p := range planned {
		cmd.AddCommand(newPlannedCommand(p))
	}
	cmd.AddCommand(newExportCommand(), newImportCommand(), newValidateSessionsCommand())
	return cmd
}

func newStepDownCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "step-down [GROUP]",
		Short: "Have another node lead the meta group, or a stream",
		Long: `Have the leader of a group hand over: of the meta group if none is named, else of
the stream of that name, or, with --node, of everything that node leads. Writes
wait for the next leader, some 10 ms.`,
		Example: `  ripstop admin step-down
  ripstop admin step-down KV_registry_local_g1 --to n2
  ripstop admin step-down --node n3`,
		Args:              wantArgs("[GROUP]"),
		ValidArgsFunction: completeGroup,
	}
	to := cmd.Flags().String("to", "", "node that should lead next; default: whoever is elected")
	node := cmd.Flags().String("node", "", "everything that this node leads")
	byName := func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completeNode(cmd, nil, word)
	}
	for _, flag := range []string{"to", "node"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, byName) // fails only for an unknown flag
	}
	mustBeTyped(cmd)
	addAdminFlags(cmd, adminTimeout)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		group := strings.Join(args, "")
		if group != "" && *node != "" {
			return usagef("GROUP and --node exclude each other")
		}
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			r, err := c.StepDown(ctx, group, *node, *to)
			if err != nil {
				return suggestNode(ctx, c, strings.TrimSpace(*node+*to), err)
			}
			return printDone(cmd, r)
		})
	}
	return cmd
}

// mustBeTyped keeps the flags that cmd has so far from being read from the
// environment.
func mustBeTyped(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		f.Annotations = map[string][]string{notFromEnv: {"true"}}
	})
}

// plannedCommand is a verb that is shown before it is done.
type plannedCommand struct {
	verb, short, long string
}

var planned = []plannedCommand{
	{admin.VerbDrain, "Have a node finish its work, and stop", `Have a node finish its work: it says that it is not ready, takes no new sessions,
lets calls in flight finish, hands leaders and sessions on, and stops. SIGTERM to
its process does the same.`},
	{admin.VerbRemove, "Remove a node that will not come back", `Remove a node that is down and will not come back: it no longer votes, and its
replicas are made anew elsewhere. Its name is not to be used again. A node that is
up is refused: drain it first. NODE may be a peer id, of a node whose name nobody
remembers.`},
	{admin.VerbEvacuate, "Move all replicas off a node", `Move all replicas off a node, to other voters. It goes on voting and serving. Where
every other voter has a replica already, it is given up without another.`},
}

func newPlannedCommand(p plannedCommand) *cobra.Command {
	cmd := &cobra.Command{
		Use:   p.verb + " NODE",
		Short: p.short,
		Long: p.long + `

The plan is shown first, and carried out when it is confirmed: at the terminal, by
--confirm with the plan's token, or by --yes. If the cluster has changed so that
the plan would be another, it is refused (exit code 8).`,
		Example: `  ripstop admin ` + p.verb + ` n3
  ripstop admin ` + p.verb + ` n3 --confirm 4t2hgk6x
  ripstop admin ` + p.verb + ` n3 --yes -o json`,
		Args:              wantArgs("NODE"),
		ValidArgsFunction: completeNode,
	}
	token := cmd.Flags().String("confirm", "", "carry out the plan with this token")
	yes := cmd.Flags().Bool("yes", false, "carry out the plan, whatever it is")
	mustBeTyped(cmd)
	addAdminFlags(cmd, 0) // a person reads the plan; each request is bounded by itself
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			return runPlanned(ctx, cmd, c, p.verb, args[0], *token, *yes)
		})
	}
	return cmd
}

func runPlanned(ctx context.Context, cmd *cobra.Command, c *operator, verb, node, token string, yes bool) error {
	if token == "" {
		ask, cancel := context.WithTimeout(ctx, adminTimeout)
		plan, err := c.Plan(ask, verb, node)
		if err != nil {
			err = suggestNode(ask, c, node, err)
		}
		cancel()
		if err != nil {
			return err
		}
		if !wantsJSON(cmd) || !yes {
			if err := printPlan(cmd, plan); err != nil {
				return err
			}
		}
		if !yes {
			if err := confirm(ctx, cmd, plan); err != nil {
				return err
			}
		}
		token = plan.Confirm
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	r, err := c.Confirm(ctx, verb, node, token)
	if err != nil {
		return suggestNode(ctx, c, node, err)
	}
	return printDone(cmd, r)
}

// confirm asks at the terminal; without one there is nobody to ask.
func confirm(ctx context.Context, cmd *cobra.Command, p admin.Plan) error {
	no := &failure{code: exitRefused, what: p.Verb + " " + p.Target, why: "not confirmed; nothing was done", try: fmt.Sprintf("%s %s --confirm %s", cmd.CommandPath(), p.Target, p.Confirm)}
	if !isTerminal(cmd.InOrStdin()) || wantsJSON(cmd) {
		return no
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Type %s to go on: ", p.Target)
	line, err := newLineReader(cmd.InOrStdin()).read(ctx)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if strings.TrimSpace(line) != p.Target {
		return no
	}
	return nil
}

func printPlan(cmd *cobra.Command, p admin.Plan) error {
	out := cmd.OutOrStdout()
	if wantsJSON(cmd) {
		return printJSON(out, p)
	}
	fmt.Fprintf(out, "%s\n", paint(out, bold, printable(p.Verb+" "+p.Target+" will:")))
	for _, e := range p.Effects {
		fmt.Fprintf(out, "  - %s\n", printable(oneLine(e)))
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(out, "%s\n", paint(out, red, printable(oneLine("warning: "+w))))
	}
	return nil
}

func printDone(cmd *cobra.Command, r admin.Result) error {
	out := cmd.OutOrStdout()
	if wantsJSON(cmd) {
		return printJSON(out, r)
	}
	for _, d := range r.Done {
		fmt.Fprintln(out, printable(oneLine(d)))
	}
	if r.Watch != "" {
		fmt.Fprintf(out, "follow it: %s\n", printable(r.Watch))
	}
	return nil
}
