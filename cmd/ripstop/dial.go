package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/nats-io/nats.go"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/wire"
)

// natsClient is the fabric over NATS, as a client command uses it.
type natsClient struct {
	*wire.Client
	nc  *nats.Conn
	reg kv.RegistryClient
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
		nc  *nats.Conn
		err error
	}
	done := make(chan dialled, 1)
	go func() { // bounded by the connection's own timeout
		nc, err := c.Dial(stubborn)
		done <- dialled{nc, err}
	}()
	var d dialled
	select {
	case d = <-done:
	case <-ctx.Done():
		go func() {
			if d := <-done; d.nc != nil {
				d.nc.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if d.err != nil {
		return nil, d.err
	}
	client, err := wire.NewClient(d.nc)
	if err != nil {
		d.nc.Close()
		return nil, fmt.Errorf("connect to %s: %w", s.URLs, err)
	}
	return &natsClient{Client: client, nc: d.nc, reg: kv.RegistryClient{Conn: d.nc}}, nil
}

// Instances returns the registry.
func (c *natsClient) Instances(ctx context.Context) ([]kv.Instance, error) {
	list, err := c.reg.List(ctx)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, router.Errorf(router.ErrUnavailable, "this NATS server is no Ripstop node: nobody keeps a registry")
	}
	return list, err
}

// Close ends the connection.
func (c *natsClient) Close() {
	c.Client.Close()
	c.nc.Close()
}
