package gosdk_test

import (
	"context"
	"log/slog"
	"os"
	"os/signal"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/gosdk"
)

// A Go server attaches itself to the fabric, without a port of its own.
func ExampleNew() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log := slog.Default()

	server := mcp.NewServer(&mcp.Implementation{Name: "mine", Version: "1.0.0"}, nil)
	// mcp.AddTool(server, …)

	id := router.NewInstanceID()
	b, err := gosdk.New(id, server, log)
	if err != nil {
		log.Error(err.Error())
		return
	}
	err = agent.Run(ctx, agent.RunOptions{
		Connection: agent.Connection{URLs: "nats://127.0.0.1:4222", Logger: log},
		Server:     "mine", Instance: id, Transport: "go", Backend: b,
	})
	if err != nil {
		log.Error(err.Error())
	}
}
