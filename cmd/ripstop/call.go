package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"

	"ripstop/router"
)

// logLevels are MCP's, which are syslog's.
var logLevels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}

// callFlags are the flags of `ripstop call`.
type callFlags struct {
	answers []string
	level   string
	quiet   bool
}

func newCallCommand(dial dialFunc) *cobra.Command {
	var f callFlags
	cmd := &cobra.Command{
		Use:   "call SERVER TOOL [JSON | k=v …]",
		Short: "Call a tool",
		Long: `Call a tool of a server and print its result.

Arguments are one JSON object, "-" for one on standard input, or words:

  k=v       v is converted to the type that the tool's schema wants: text, an
            integer, a number, true or false, JSON for an object. Repeat the word
            for every item of a list, or give the list as JSON.
  k:=JSON   the value as it is

Progress and the server's log messages go to standard error while the call runs;
with -o json, and no terminal there, progress is left out. What the server asks
of its user (elicitation) is asked on the terminal. Without one it is declined,
unless --answer says enough. Ctrl-C cancels the call.

The result's text is printed as it is; other content is named, and structured
content is printed where there is no text. -o json prints the whole result. If
the tool reports an error, its text goes to standard error and the exit code is
5; "ripstop help exit-codes" has the others.`,
		Example: `  ripstop call demo echo text=hello
  ripstop call demo add a=1 b=2 -o json
  ripstop call demo echo '{"text": "hello"}'
  ripstop call demo ask --answer name=Ann
  ripstop call github search_issues query="is:open" labels=bug labels=help --timeout 30s
  jq -n '{text: "hi"}' | ripstop call demo echo -`,
		Args:              wantArgs("SERVER", "TOOL", "[JSON | k=v …]"),
		ValidArgsFunction: completeCall(dial),
		RunE:              func(cmd *cobra.Command, args []string) error { return runCall(cmd, dial, f, args) },
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&f.answers, "answer", nil, "k=v to answer with if the server asks; repeatable")
	fs.StringVar(&f.level, "log-level", "info", "least severe log message to ask the server for, or none")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress and no log messages")
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(append([]string{"none"}, logLevels...), cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	addClientFlags(cmd)
	addTimeout(cmd, 0)
	return cmd
}

func runCall(cmd *cobra.Command, dial dialFunc, f callFlags, args []string) error {
	answers, err := f.check()
	if err != nil {
		return err
	}
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

	con := newConsole(cmd.ErrOrStderr(), f.quiet || wantsJSON(cmd) && !isTerminal(cmd.ErrOrStderr()))
	defer con.done()
	e := &elicitor{ctx: ctx, console: con, answers: answers}
	if isTerminal(cmd.InOrStdin()) {
		e.in = newLineReader(cmd.InOrStdin())
	}
	t := &tap{Handler: c, console: con}
	server, name, words := args[0], args[1], args[2:]
	s, err := open(ctx, c, t, server, &mcp.ClientOptions{
		ElicitationHandler: e.handle,
		Capabilities: &mcp.ClientCapabilities{Elicitation: &mcp.ElicitationCapabilities{
			Form: &mcp.FormElicitationCapabilities{}, URL: &mcp.URLElicitationCapabilities{},
		}},
	})
	if err != nil {
		return err
	}
	defer s.Close()
	tools, err := listTools(ctx, s, server)
	if err != nil {
		return err
	}
	tool, err := findTool(tools, server, name)
	if err != nil {
		return err
	}
	arguments, err := parseArguments(tool, words, cmd.InOrStdin())
	if err != nil {
		return &failure{code: exitUsage, what: "call " + server + " " + name, why: err.Error(), try: "ripstop tools " + server + " " + name}
	}
	params := &mcp.CallToolParams{Name: name, Arguments: arguments}
	params.SetProgressToken("ripstop")
	f.askForLog(ctx, s, params)
	res, err := s.CallTool(ctx, params)
	con.done()
	if err != nil {
		return callFailed(ctx, server, name, err)
	}
	return showResult(cmd, server, name, res, t.last())
}

// check reads the flags.
func (f callFlags) check() (map[string]string, error) {
	if f.level != "none" && !slices.Contains(logLevels, f.level) {
		return nil, usagef("--log-level %q is none of none, %s%s", f.level, strings.Join(logLevels, ", "), didYouMean(f.level, logLevels))
	}
	answers := map[string]string{}
	for _, a := range f.answers {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, usagef("--answer %q is not k=v", a)
		}
		answers[k] = v
	}
	return answers, nil
}

// metaLogLevel asks for log messages in a request of the modern era.
const metaLogLevel = "io.modelcontextprotocol/logLevel"

// askForLog asks the server for its log messages, in the way of its era. A call
// is worth no less without them, so failures don't matter.
func (f callFlags) askForLog(ctx context.Context, s *mcp.ClientSession, params *mcp.CallToolParams) {
	init := s.InitializeResult()
	switch {
	case f.level == "none" || f.quiet:
	case init.ProtocolVersion >= router.Version20260728:
		params.Meta[metaLogLevel] = f.level // SetProgressToken made the map
	//lint:ignore SA1019 deprecated in the modern era, but this is a legacy server
	case init.Capabilities != nil && init.Capabilities.Logging != nil:
		//lint:ignore SA1019 likewise
		_ = s.SetLoggingLevel(ctx, &mcp.SetLoggingLevelParams{Level: mcp.LoggingLevel(f.level)})
	}
}

// callFailed explains a call that has no result.
func callFailed(ctx context.Context, server, name string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err() // whatever else broke while the call was cancelled
	}
	err = explain("call "+server+" "+name, err)
	if f, ok := err.(*failure); ok && f.code == exitUnknown {
		f.try = "look at what the call would have changed, before calling again"
	}
	return err
}

// showResult prints a result, and returns an error if the tool reports one.
func showResult(cmd *cobra.Command, server, name string, res *mcp.CallToolResult, raw []byte) error {
	out := cmd.OutOrStdout()
	if res.IsError {
		out = cmd.ErrOrStderr()
	}
	var err error
	if wantsJSON(cmd) {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), indented(raw))
	} else {
		err = printResult(out, res, raw)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if res.IsError {
		return &failure{code: exitToolError, what: "call " + server + " " + name, why: "the tool reported an error"}
	}
	return nil
}
