package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func newStartCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run a node: an MCP fabric on this machine",
		Long: `Run a node. It embeds the NATS server, keeps the registry of MCP servers in
JetStream, and serves MCP on NATS subjects and over Streamable HTTP. Nothing else
needs to run.

Every flag can also be given as RIPSTOP_<KEY> in the environment or in
ripstop.yaml; "ripstop config show" prints what counts. Ctrl-C or SIGTERM drains
and exits 0; a second one ends at once.`,
		Example: `  ripstop start
  ripstop start --servers ~/.config/mcp.json
  ripstop start --http-addr 127.0.0.1:9000 --nats-addr 127.0.0.1:4300 --data-dir /tmp/n1
  ripstop start --http-addr 0.0.0.0:8080 --token-file /etc/ripstop/token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := load(cmd)
			if err != nil {
				return usageError(err)
			}
			s, err := l.settings()
			if err != nil {
				return usageError(err)
			}
			return runNode(cmd.Context(), s, cmd.OutOrStdout())
		},
	}
	addSettings(cmd)
	return cmd
}

// runNode runs a node until ctx ends, then drains it.
func runNode(ctx context.Context, s *nodeSettings, out io.Writer) error {
	began := time.Now()
	n, err := openNode(ctx, s)
	if err != nil {
		return err
	}
	if err := n.ready(ctx); err != nil && ctx.Err() == nil {
		n.log.Warn("not everything is attached yet", "err", err)
	}
	n.greet(out, time.Since(began))
	failed := n.wait(ctx)
	n.log.Info("draining", "timeout", s.Drain)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Drain)
	defer cancel()
	if err := n.close(end); err != nil && failed == nil {
		return fmt.Errorf("stop node: %w", err)
	}
	n.log.Info("stopped")
	return failed
}

// greet says where to connect and what to try next.
func (n *node) greet(out io.Writer, took time.Duration) {
	server := "SERVER"
	if names := n.members(); slices.Contains(names, "demo") {
		server = "demo"
	} else if len(names) > 0 {
		server = names[0]
	}
	fmt.Fprintf(out, `Ripstop %s: node %s is ready (%d ms)

  MCP over HTTP   %s/mcp/%s   (all servers as one: %s/mcp)
  MCP over NATS   %s   subjects mcp.v1.req.<server>.<method>[.<name>]
  Health          %s/health  /ready  /metrics
  Data            %s
`, buildVersion(), n.fabric.Name(), took.Milliseconds(), n.httpURL, server, n.httpURL, n.fabric.ClientURL(), n.httpURL, n.settings.DataDir)
	fmt.Fprintf(out, `
Try, in another terminal:

  ripstop ls%s
  ripstop tools %s%s
`, n.clientFlags(), server, n.clientFlags())
	if server == "demo" {
		fmt.Fprintf(out, `  ripstop call demo echo text=hello%s
  nats%s req mcp.v1.req.demo.tools.call.echo '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}'
`, n.clientFlags(), n.natsFlags())
	}
	fmt.Fprintf(out, "  ripstop serve files%s -- npx -y @modelcontextprotocol/server-filesystem .\n\n", n.clientFlags())
}

const defaultNATS = "nats://127.0.0.1:4222"

func (n *node) clientFlags() string {
	flags := ""
	if n.fabric.ClientURL() != defaultNATS {
		flags += " --nats " + n.fabric.ClientURL()
	}
	return flags + n.settings.clientFlags()
}

func (n *node) natsFlags() string {
	flags := ""
	if n.fabric.ClientURL() != defaultNATS {
		flags += " -s " + n.fabric.ClientURL()
	}
	return flags + n.settings.natsFlags()
}
