package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
)

func newToolsCommand(dial dialFunc) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tools SERVER [TOOL]",
		Short: "List the tools of a server and their arguments",
		Long: `List the tools of a server: their names, arguments and descriptions. Arguments
stand as "ripstop call" takes them; those in brackets may be left out. With TOOL,
print everything the server says of that one.`,
		Example: `  ripstop tools demo
  ripstop tools demo echo
  ripstop tools demo -o json | jq '.[].inputSchema'`,
		Args:              wantArgs("SERVER", "[TOOL]"),
		ValidArgsFunction: completeServerAndTool(dial),
		RunE:              func(cmd *cobra.Command, args []string) error { return runTools(cmd, dial, args) },
	}
	addClientFlags(cmd)
	addTimeout(cmd, listTimeout)
	return cmd
}

func runTools(cmd *cobra.Command, dial dialFunc, args []string) error {
	ctx, cancel, err := withTimeout(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	c, err := connect(ctx, cmd, dial)
	if err != nil {
		return err
	}
	defer c.Close()
	server := args[0]
	s, err := open(ctx, c, c, server, &mcp.ClientOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	tools, err := listTools(ctx, s, server)
	if err != nil {
		return err
	}
	if len(args) > 1 {
		tool, err := findTool(tools, server, args[1])
		if err != nil {
			return err
		}
		if wantsJSON(cmd) {
			return printJSON(cmd.OutOrStdout(), tool)
		}
		return printTool(cmd.OutOrStdout(), server, tool)
	}
	rows := make([][]string, 0, len(tools))
	for _, t := range tools {
		first, _, _ := strings.Cut(strings.TrimSpace(cmp.Or(t.Description, t.Title)), "\n")
		rows = append(rows, []string{t.Name, signature(t), first})
	}
	return printRows(cmd, []string{"TOOL", "ARGUMENTS", "DESCRIPTION"}, rows, tools)
}

// signature is a tool's arguments as `ripstop call` takes them.
func signature(t *mcp.Tool) string {
	var words []string
	for _, p := range inputOf(t).properties() {
		word := p.name + "=" + strings.ToUpper(p.typeName())
		if !p.required {
			word = "[" + word + "]"
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

// printTool prints all a person needs to call t.
func printTool(w io.Writer, server string, t *mcp.Tool) error {
	var b strings.Builder
	call := "ripstop call " + server + " " + t.Name
	if s := signature(t); s != "-" {
		call += " " + s
	}
	fmt.Fprintf(&b, "%s\n", paint(w, bold, printable(call)))
	if d := strings.TrimSpace(cmp.Or(t.Description, t.Title)); d != "" {
		fmt.Fprintf(&b, "\n%s\n", printable(d))
	}
	if hints := hintsOf(t.Annotations); hints != "" {
		fmt.Fprintf(&b, "\nThe server says: %s.\n", hints)
	}
	properties := inputOf(t).properties()
	if len(properties) > 0 {
		b.WriteString("\n")
		rows := make([][]string, 0, len(properties))
		for _, p := range properties {
			need := "no"
			if p.required {
				need = "yes"
			}
			if d := p.defaultText(); d != "" {
				need += ", default " + d
			}
			rows = append(rows, []string{p.name, p.typeName(), need, p.schema.Description})
		}
		if err := printTable(&b, []string{"ARGUMENT", "TYPE", "REQUIRED", "DESCRIPTION"}, rows); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// hintsOf says in words what a tool's annotations promise.
func hintsOf(a *mcp.ToolAnnotations) string {
	if a == nil {
		return ""
	}
	var hints []string
	if a.ReadOnlyHint {
		hints = append(hints, "it changes nothing")
	}
	if a.DestructiveHint != nil && *a.DestructiveHint && !a.ReadOnlyHint {
		hints = append(hints, "it may destroy something")
	}
	if a.IdempotentHint {
		hints = append(hints, "calling it twice is like calling it once")
	}
	return strings.Join(hints, ", ")
}
