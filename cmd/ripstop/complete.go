package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
)

// completeFor bounds what completion asks the fabric: a shell waits for it.
const completeFor = time.Second

// completeFunc completes one argument.
type completeFunc = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective)

func completeServer(dial dialFunc) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return askServers(cmd, dial), cobra.ShellCompDirectiveNoFileComp
	}
}

func completeServerAndTool(dial dialFunc) completeFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return completeServer(dial)(cmd, args, word)
		}
		var names []cobra.Completion
		for _, t := range askTools(cmd, dial, args[0]) {
			description, _, _ := strings.Cut(cmp.Or(t.Description, t.Title), "\n")
			names = append(names, cobra.CompletionWithDesc(t.Name, printable(description)))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeCall also completes the names of arguments that were not given yet.
func completeCall(dial dialFunc) completeFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) < 2 || strings.Contains(word, "=") {
			return completeServerAndTool(dial)(cmd, args, word)
		}
		tools := askTools(cmd, dial, args[0])
		i := slices.IndexFunc(tools, func(t *mcp.Tool) bool { return t.Name == args[1] })
		if i < 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var words []cobra.Completion
		for _, p := range inputOf(tools[i]).properties() {
			given := slices.ContainsFunc(args[2:], func(a string) bool { return strings.HasPrefix(a, p.name+"=") || strings.HasPrefix(a, p.name+":=") })
			if !given {
				words = append(words, cobra.CompletionWithDesc(p.name+"=", printable(oneLine(p.typeName()+" "+p.schema.Description))))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// completing connects for a completion; it fails in silence, as completions do.
func completing(cmd *cobra.Command, dial dialFunc, ask func(ctx context.Context, c fabricClient)) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeFor)
	defer cancel()
	c, err := connect(ctx, cmd, dial)
	if err != nil {
		return
	}
	defer c.Close()
	ask(ctx, c)
}

func askServers(cmd *cobra.Command, dial dialFunc) (names []cobra.Completion) {
	completing(cmd, dial, func(ctx context.Context, c fabricClient) {
		if list, err := c.Instances(ctx); err == nil {
			names = serverNames(list)
		}
	})
	return names
}

func askTools(cmd *cobra.Command, dial dialFunc, server string) (tools []*mcp.Tool) {
	completing(cmd, dial, func(ctx context.Context, c fabricClient) {
		s, err := open(ctx, c, c, server, &mcp.ClientOptions{})
		if err != nil {
			return
		}
		defer s.Close()
		tools, _ = listTools(ctx, s, server)
	})
	return tools
}
