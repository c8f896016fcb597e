package main

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/agent"
)

// natsClient is the fabric over NATS, as a client command uses it.
type natsClient struct {
	*agent.Link
}

var _ fabricClient = (*natsClient)(nil)

// dialFabric connects to the fabric, and fails at once when no server answers.
func dialFabric(ctx context.Context, s clientSettings) (fabricClient, error) {
	return dialWith(ctx, s, false)
}

// dialStubborn connects for ever: a desktop client starts before the fabric, and
// outlives it.
func dialStubborn(ctx context.Context, s clientSettings) (fabricClient, error) {
	return dialWith(ctx, s, true)
}

func dialWith(ctx context.Context, s clientSettings, stubborn bool) (fabricClient, error) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil)) // commands report their own errors
	c := s.connection("ripstop", quiet)
	type dialled struct {
		link *agent.Link
		err  error
	}
	done := make(chan dialled, 1)
	go func() { // bounded by the connection's own timeout
		l, err := c.Link(stubborn)
		done <- dialled{l, err}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, d.err
		}
		return &natsClient{d.link}, nil
	case <-ctx.Done():
		go func() {
			if d := <-done; d.link != nil {
				d.link.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// Instances returns the registry.
func (c *natsClient) Instances(ctx context.Context) ([]kv.Instance, error) {
	list, err := kv.RegistryClient{Conn: c.Conn()}.List(ctx)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, router.Errorf(router.ErrUnavailable, "this NATS server is no Ripstop node: nobody keeps a registry")
	}
	return list, err
}
