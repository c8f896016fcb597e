package bridgetest

import (
	"context"
	"slices"
	"sync"

	sdkrpc "github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// link is a go-sdk server session, and our end of its pipe.
type link struct {
	conn mcp.Connection
	ss   *mcp.ServerSession
	done chan struct{} // closed when the session is over

	mu    sync.Mutex
	calls []*pending
	early [][]byte // messages for nobody yet; the next stream gets them
}

// pending is a request that waits, or the session's own stream (id "").
type pending struct {
	id, token string
	ctx       context.Context
	out       router.Stream
	reply     chan []byte
}

func open(server *mcp.Server) (*link, error) {
	ctx := context.Background()
	theirs, ours := mcp.NewInMemoryTransports()
	ss, err := server.Connect(ctx, theirs, nil)
	if err != nil {
		return nil, err
	}
	conn, err := ours.Connect(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, ss: ss, done: make(chan struct{})}
	go l.read()
	return l, nil
}

func (l *link) close() {
	_ = l.conn.Close() // the pipe is ours
	<-l.done
	_ = l.ss.Wait() // says only that the pipe was closed
}

func (l *link) read() {
	defer close(l.done)
	for {
		msg, err := l.conn.Read(context.Background())
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
		switch p := l.target(m); {
		case p == nil:
		case m.Kind == jsonrpc.Response:
			p.reply <- raw
		default:
			_ = p.out.Send(p.ctx, raw) // fails when the client is gone
		}
	}
}

// target picks who m is for: its request, the request whose progress it
// reports, else the newest request in flight, else the session's own stream,
// which gets later what came before it was open.
func (l *link) target(m *jsonrpc.Message) *pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *pending
	for _, p := range l.calls {
		switch {
		case m.Kind == jsonrpc.Response:
			if p.id == string(m.ID) {
				return p
			}
		case m.ProgressToken != nil && p.token == string(m.ProgressToken):
			return p
		case best == nil || p.id != "":
			best = p
		}
	}
	if best == nil && m.Kind != jsonrpc.Response {
		l.early = append(l.early, m.Raw)
	}
	return best
}

func (l *link) add(p *pending) (remove func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, p)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.calls = slices.DeleteFunc(l.calls, func(q *pending) bool { return q == p })
	}
}

func (l *link) write(raw []byte) error {
	msg, err := sdkrpc.DecodeMessage(raw)
	if err != nil {
		return err
	}
	return l.conn.Write(context.Background(), msg)
}

func (l *link) call(ctx context.Context, m *jsonrpc.Message, out router.Stream) (*router.Reply, error) {
	if m.Kind != jsonrpc.Request {
		return &router.Reply{Status: 202}, l.write(m.Raw)
	}
	p := &pending{id: string(m.ID), token: string(m.ProgressToken), ctx: ctx, out: out, reply: make(chan []byte, 1)}
	defer l.add(p)()
	if err := l.write(m.Raw); err != nil {
		return nil, err
	}
	select {
	case body := <-p.reply:
		return &router.Reply{Body: body}, nil
	case <-ctx.Done():
		_ = l.write(jsonrpc.NewRequest(nil, "notifications/cancelled", []byte(`{"requestId":`+p.id+`}`))) // the pipe may be closed
		return nil, ctx.Err()
	case <-l.done:
		return nil, router.Errorf(router.ErrOutcomeUnknown, "outcome unknown: the server died during %s", m.Method)
	}
}

func (l *link) listen(ctx context.Context, out router.Stream) (*router.Reply, error) {
	defer l.add(&pending{ctx: ctx, out: out})()
	l.mu.Lock()
	early := l.early
	l.early = nil
	l.mu.Unlock()
	for _, raw := range early {
		if err := out.Send(ctx, raw); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.done:
		return &router.Reply{}, nil
	}
}
