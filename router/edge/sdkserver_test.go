package edge_test

import (
	"context"
	"sync"
	"testing"

	sdkrpc "github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// sdkServer is a handler around a go-sdk server: what a backend is to the
// edge, at its simplest. A legacy session is one connection to the server, a
// modern request has its own.
type sdkServer struct {
	t      testing.TB
	server *mcp.Server
	opened chan struct{} // gets a value for each GET stream

	mu       sync.Mutex
	sessions map[string]*sdkConn
	pumps    sync.WaitGroup
}

func newSDKServer(t testing.TB, server *mcp.Server) *sdkServer {
	return &sdkServer{t: t, server: server, opened: make(chan struct{}, 10), sessions: make(map[string]*sdkConn)}
}

func (s *sdkServer) close() {
	s.mu.Lock()
	for _, c := range s.sessions {
		c.close()
	}
	s.mu.Unlock()
	s.pumps.Wait()
}

func (s *sdkServer) open() *sdkConn {
	near, far := mcp.NewInMemoryTransports()
	if _, err := s.server.Connect(context.Background(), far, nil); err != nil {
		s.t.Error(err)
	}
	conn, err := near.Connect(context.Background())
	if err != nil {
		s.t.Error(err)
	}
	c := &sdkConn{conn: conn, waiting: make(map[string]*sdkCall), done: make(chan struct{})}
	s.pumps.Go(c.pump)
	return c
}

func (s *sdkServer) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	if req.Era == router.EraModern {
		c := s.open()
		defer c.close()
		return c.serve(ctx, req, out)
	}
	s.mu.Lock()
	c := s.sessions[req.Session]
	if req.Session == "" && req.Method() == "initialize" {
		c = s.open()
		id := router.NewSessionID("abcdefghij")
		s.sessions[id] = c
		s.mu.Unlock()
		reply, err := c.serve(ctx, req, out)
		if reply != nil {
			reply.Session = id
		}
		return reply, err
	}
	if req.Op == router.OpEnd {
		delete(s.sessions, req.Session)
	}
	s.mu.Unlock()
	switch {
	case c == nil:
		return nil, router.Errorf(router.ErrSessionNotFound, "no session %q", req.Session)
	case req.Op == router.OpEnd:
		c.close()
		return nil, nil
	case req.Op == router.OpListen:
		return c.listen(ctx, out, s.opened)
	}
	return c.serve(ctx, req, out)
}

// sdkConn is one connection to the server.
type sdkConn struct {
	conn mcp.Connection
	done chan struct{}

	mu       sync.Mutex
	waiting  map[string]*sdkCall // by request id
	listener router.Stream
}

type sdkCall struct {
	ctx   context.Context
	out   router.Stream
	reply chan []byte
}

func (c *sdkConn) close() { _ = c.conn.Close() }

// pump gives every message of the server to who waits for it: a reply to its
// call, anything else to a call in flight, or else to the session's stream.
func (c *sdkConn) pump() {
	defer close(c.done)
	for {
		msg, err := c.conn.Read(context.Background())
		if err != nil {
			return
		}
		raw, err := sdkrpc.EncodeMessage(msg)
		if err != nil {
			return
		}
		m, err := jsonrpc.Parse(raw)
		if err != nil {
			return
		}
		c.mu.Lock()
		if m.Kind == jsonrpc.Response {
			if call := c.waiting[string(m.ID)]; call != nil {
				call.reply <- raw
			}
			c.mu.Unlock()
			continue
		}
		ctx, out := context.Background(), c.listener
		if m.Method != "notifications/tools/list_changed" || out == nil {
			for _, call := range c.waiting {
				ctx, out = call.ctx, call.out
			}
		}
		c.mu.Unlock()
		if out != nil {
			_ = out.Send(ctx, raw) // a client that is gone hears nothing
		}
	}
}

func (c *sdkConn) serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	msg, err := sdkrpc.DecodeMessage(req.Message.Raw)
	if err != nil {
		return nil, err
	}
	if req.Message.Kind != jsonrpc.Request {
		return nil, c.conn.Write(ctx, msg)
	}
	call := &sdkCall{ctx, out, make(chan []byte, 1)}
	id := string(req.ID())
	c.mu.Lock()
	c.waiting[id] = call
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.conn.Write(ctx, msg); err != nil {
		return nil, err
	}
	select {
	case raw := <-call.reply:
		return &router.Reply{Body: raw}, nil
	case <-c.done:
		return nil, router.Errorf(router.ErrOutcomeUnknown, "the server ended")
	case <-ctx.Done():
		cancel := jsonrpc.NewRequest(nil, "notifications/cancelled", []byte(`{"requestId":`+id+`}`))
		if msg, err := sdkrpc.DecodeMessage(cancel); err == nil {
			_ = c.conn.Write(context.Background(), msg)
		}
		return nil, ctx.Err()
	}
}

func (c *sdkConn) listen(ctx context.Context, out router.Stream, opened chan<- struct{}) (*router.Reply, error) {
	c.mu.Lock()
	c.listener = out
	c.mu.Unlock()
	if err := out.Send(ctx, nil); err != nil {
		return nil, err
	}
	opened <- struct{}{}
	select {
	case <-ctx.Done():
	case <-c.done:
	}
	return nil, nil
}
