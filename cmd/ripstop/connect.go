package main

import (
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ripstop/router"
	"ripstop/router/bridge"
)

// connectFlags are the flags of `ripstop connect`.
type connectFlags struct {
	wait  time.Duration
	debug bool
}

func newConnectCommand(dial dialFunc) *cobra.Command {
	var f connectFlags
	cmd := &cobra.Command{
		Use:   "connect [NAME]",
		Short: "Be an MCP server on stdio that stands for a server of the fabric",
		Long: `Speak MCP on standard input and output, and pass everything on to server NAME of
the fabric; without NAME, to all servers as one. This is what a desktop client
runs. Logs go to standard error.

It starts before the fabric and outlives it: while no instance of the server can be reached, requests
wait for up to --retry-for. A session outlives the instance and the node it is
with; what the server kept in memory is gone then, and the first result says so
in its _meta ("ripstop/reinitialized"). One that ended is opened again unseen. A
call that may have been executed is sent again only if it is a read, or of a tool
annotated as read-only or idempotent.

For Claude Desktop put this into claude_desktop_config.json, with the full path
of ripstop:

  {
    "mcpServers": {
      "demo": {
        "command": "/usr/local/bin/ripstop",
        "args": ["connect", "demo"]
      }
    }
  }

The command ends with its standard input, or with SIGTERM.`,
		Example: `  ripstop connect demo
  ripstop connect --nats nats://10.0.0.5:4222,nats://10.0.0.6:4222 --token-file token
  npx @modelcontextprotocol/inspector ripstop connect demo`,
		Args:              wantArgs("[NAME]"),
		ValidArgsFunction: completeServer(dial),
		RunE: func(cmd *cobra.Command, args []string) error {
			server := allServers
			if len(args) > 0 {
				server = args[0]
			}
			return runConnect(cmd, dial, f, server)
		},
	}
	cmd.Flags().DurationVar(&f.wait, "retry-for", bridge.DefaultRetryFor, "how long to wait for a fabric that can't be reached ("+envName("retry-for")+")")
	cmd.Flags().BoolVar(&f.debug, "debug", false, "log more")
	addClientFlags(cmd)
	return cmd
}

func runConnect(cmd *cobra.Command, dial dialFunc, f connectFlags, server string) error {
	if err := router.CheckServerName(server); err != nil {
		return usageError(err)
	}
	if f.wait < 0 {
		return usagef("--retry-for %s is negative", f.wait)
	}
	// A client that goes away closes the pipe. That must end the session, not
	// the process (os/signal, "SIGPIPE").
	signal.Ignore(syscall.SIGPIPE)
	level := slog.LevelInfo
	if f.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
	ctx := cmd.Context()
	c, err := connect(ctx, cmd, dial)
	if err != nil {
		return err
	}
	defer c.Close()
	log.Info("serving on stdio", "server", server)
	retryFor := f.wait
	if retryFor == 0 {
		retryFor = -1
	}
	err = bridge.Run(ctx, bridge.Options{
		Handler: c, Server: server, In: cmd.InOrStdin(), Out: cmd.OutOrStdout(), Logger: log, RetryFor: retryFor,
	})
	if ctx.Err() != nil {
		return nil // being told to end is how this ends
	}
	return err
}
