// Command ripstop is a highly available fabric for MCP on NATS: the node, the
// agents that attach servers to it, and a client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"ripstop/router/stdio"
)

func main() {
	stdio.RunGuard()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:]))
}
