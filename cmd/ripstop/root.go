package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string) int {
	root := newRoot(dialFabric, dialStubborn)
	root.SetArgs(args)
	return execute(ctx, root)
}

func execute(ctx context.Context, root *cobra.Command) int {
	root.InitDefaultCompletionCmd() // keeps root's output, so not before it is set
	markUsageErrors(root)
	cmd, err := root.ExecuteContextC(ctx)
	return report(root.ErrOrStderr(), cmd, err)
}

const (
	groupNode   = "node"
	groupClient = "client"
)

// newRoot builds the commands. dial is for those that fail at once without a
// fabric, stubborn for those that wait for it.
func newRoot(dial, stubborn dialFunc) *cobra.Command {
	root := &cobra.Command{
		Use:   "ripstop",
		Short: "A highly available fabric for MCP, on NATS",
		Long: `Ripstop is a highly available fabric for the Model Context Protocol (MCP), on
NATS. A node (ripstop start) carries MCP between clients and servers; any MCP
server can be attached to it (ripstop serve) and is then reachable over HTTP,
stdio, NATS and from this command line.`,
		Example: `  ripstop start                                        # a node, with a demo server
  ripstop call demo echo text=hello                    # call a tool
  ripstop serve files -- npx -y @modelcontextprotocol/server-filesystem .
  ripstop connect files                                # what a desktop client runs`,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return flagsFromEnv(cmd)
		},
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	format := formatTable
	root.PersistentFlags().VarP(&format, "output", "o", "how to print: table or json ("+envName("output")+")")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{string(formatTable), string(formatJSON)}, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag

	root.AddGroup(&cobra.Group{ID: groupNode, Title: "The fabric:"}, &cobra.Group{ID: groupClient, Title: "Its servers:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupNode, newStartCommand(), newStatusCommand(), newAdminCommand(), newSessionCommand(), newServeCommand(), newConfigCommand(), newBenchCommand())
	add(groupClient, newLsCommand(dial), newToolsCommand(dial), newCallCommand(dial), newConnectCommand(stubborn))
	add("", newVersionCommand(), newExitCodesTopic())
	return root
}

// markUsageErrors makes what cobra finds wrong with a command line a usage
// error, and an unknown subcommand an error at all.
func markUsageErrors(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError(err) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return usageError(check(cmd, args)) }
	}
	if !cmd.Runnable() && cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			var names []string
			for _, c := range cmd.Commands() {
				if c.IsAvailableCommand() {
					names = append(names, c.Name())
				}
			}
			return usagef("unknown command %q of %q%s", args[0], cmd.CommandPath(), didYouMean(args[0], names))
		}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, c := range cmd.Commands() {
		markUsageErrors(c)
	}
}

// wantArgs demands the named arguments, of which those in brackets may be left
// out; a last one that ends in … may be repeated.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		last := names[len(names)-1]
		if len(args) > len(names) && !strings.HasSuffix(strings.TrimSuffix(last, "]"), "…") {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		if len(args) < len(names) && !strings.HasPrefix(names[len(args)], "[") {
			return fmt.Errorf("%s is missing", names[len(args)])
		}
		return nil
	}
}
