package main

import (
	"context"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// tap is a handler that looks at what passes: it shows progress and log
// messages in the order the server sent them, before the result (the SDK calls
// its handlers at its leisure), and keeps a tool's result as it came, with the
// fields the SDK does not know.
type tap struct {
	router.Handler
	console *console

	mu     sync.Mutex
	result []byte // of the last tools/call; nil = none
}

// Serve passes req on.
func (t *tap) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	reply, err := t.Handler.Serve(ctx, req, tapStream{t, out})
	if err == nil && reply != nil && req.Method() == "tools/call" {
		if m, parseErr := jsonrpc.Parse(reply.Body); parseErr == nil {
			t.mu.Lock()
			t.result = m.Result
			t.mu.Unlock()
		}
	}
	return reply, err
}

// last returns the result of the last tools/call.
func (t *tap) last() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.result
}

type tapStream struct {
	tap *tap
	out router.Stream
}

func (s tapStream) Send(ctx context.Context, msg []byte) error {
	if m, err := jsonrpc.Parse(msg); err == nil {
		switch m.Method {
		case "notifications/progress":
			s.tap.console.progress(m.Params)
		case "notifications/message":
			s.tap.console.log(m.Params)
		}
	}
	return s.out.Send(ctx, msg)
}
