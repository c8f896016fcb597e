// Package sdkclient lets a go-sdk client talk to a server of the fabric through
// a router.Handler, without HTTP or a process in between.
package sdkclient

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/bridge"
)

// Transport returns a transport to server, for one [mcp.Client.Connect]. Either
// era works. A session that is lost is opened again unseen (see router/bridge),
// but a request that reaches nobody fails at once.
//
// Errors of the fabric are the JSON-RPC errors they are to any client:
// *jsonrpc.Error with the codes of package router.
func Transport(h router.Handler, server string) mcp.Transport {
	return &transport{h, server}
}

type transport struct {
	handler router.Handler
	server  string
}

// Connect opens the connection. It lives until Close, whatever becomes of ctx.
func (t *transport) Connect(ctx context.Context) (mcp.Connection, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &conn{ctx: ctx, cancel: cancel, incoming: make(chan jsonrpc.Message)}
	c.bridge = bridge.NewConn(ctx, bridge.Options{Handler: t.handler, Server: t.server, RetryFor: -1}, c.deliver)
	return c, nil
}

// conn is a bridge whose client is the SDK.
type conn struct {
	bridge   *bridge.Conn
	ctx      context.Context // done when the connection is
	cancel   context.CancelFunc
	incoming chan jsonrpc.Message
}

var _ mcp.Connection = (*conn)(nil)

// deliver hands one message of the server to Read.
func (c *conn) deliver(ctx context.Context, raw []byte) error {
	// DecodeMessage may keep parts of what it reads, and raw is only lent.
	msg, err := jsonrpc.DecodeMessage(bytes.Clone(raw))
	if err != nil {
		return fmt.Errorf("decode a message of the server: %w", err)
	}
	select {
	case c.incoming <- msg:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *conn) Read(ctx context.Context) (jsonrpc.Message, error) {
	select {
	case msg := <-c.incoming:
		return msg, nil
	case <-c.ctx.Done():
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Write starts msg on its way. What becomes of it comes through Read.
func (c *conn) Write(ctx context.Context, msg jsonrpc.Message) error {
	if c.ctx.Err() != nil {
		return io.ErrClosedPipe
	}
	raw, err := jsonrpc.EncodeMessage(msg)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	c.bridge.Receive(raw)
	return nil
}

// Close cancels what is in flight, waits for it and ends the session.
func (c *conn) Close() error {
	c.cancel()
	c.bridge.Close()
	return nil
}

func (c *conn) SessionID() string { return c.bridge.SessionID() }
