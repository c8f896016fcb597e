package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
)

// ErrRefused: a node has answered, and will not do what it was asked for.
var ErrRefused = errors.New("refused")

// RegistryClient asks a node's registrar, over NATS.
type RegistryClient struct{ Conn *nats.Conn }

// Put registers i, or changes its record, with the node it is connected to. It
// reports whether the bucket has the record too; if not yet, the node goes on
// trying. It fails with ErrAlreadyRegistered when another holds the server.
func (c RegistryClient) Put(ctx context.Context, i Instance) (stored bool, err error) {
	a, err := c.askNode(ctx, i, "put")
	return a.Stored, err
}

// Remove takes i out of the registry.
func (c RegistryClient) Remove(ctx context.Context, i Instance) error {
	_, err := c.askNode(ctx, i, "remove")
	return err
}

func (c RegistryClient) askNode(ctx context.Context, i Instance, verb string) (answer, error) {
	if i.Conn.ServerID == "" {
		return answer{}, fmt.Errorf("register %s: %w", i.Server, nats.ErrDisconnected)
	}
	return c.ask(ctx, subjectAgent+i.Conn.ServerID+"."+verb+"."+i.Server, i)
}

// List returns every instance, sorted by server and id, as the node knows them
// that this connection leads to, or any other if that NATS server is no node.
func (c RegistryClient) List(ctx context.Context) ([]Instance, error) {
	a, err := c.ask(ctx, subjectList+"."+c.Conn.ConnectedServerId(), struct{}{})
	if errors.Is(err, nats.ErrNoResponders) {
		a, err = c.ask(ctx, subjectList, struct{}{})
	}
	return a.Instances, err
}

// OnCensus calls f whenever a node asks instance to register again.
func (c RegistryClient) OnCensus(instance string, f func()) (*nats.Subscription, error) {
	return c.Conn.Subscribe(subjectCensus, func(m *nats.Msg) {
		var to census // what does not decode is for everyone
		if err := json.Unmarshal(m.Data, &to); err == nil {
			if to.Instance != "" && to.Instance != instance || to.ServerID != "" && to.ServerID != c.Conn.ConnectedServerId() {
				return
			}
		}
		f()
	})
}

func (c RegistryClient) ask(ctx context.Context, subject string, what any) (answer, error) {
	var a answer
	data, err := json.Marshal(what)
	if err != nil {
		return a, fmt.Errorf("encode for %s: %w", subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg, err := c.Conn.RequestWithContext(ctx, subject, data)
	if err != nil {
		return a, fmt.Errorf("ask %s: %w", subject, err)
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, fmt.Errorf("ask %s: %w", subject, err)
	}
	switch {
	case a.Held != nil:
		return a, a.Held
	case a.Error != "":
		return a, fmt.Errorf("ask %s: %w: %s", subject, ErrRefused, a.Error)
	}
	return a, nil
}
