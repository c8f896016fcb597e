package bridge

import (
	"bytes"
	"slices"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// batch collects the responses to a JSON-RPC batch, which MCP 2025-03-26, and
// only it, has ("Basic: Batching"): they are answered as one array.
type batch struct {
	c *Conn

	mu      sync.Mutex
	left    int
	replies [][]byte
}

// receiveBatch takes the messages of a batch one by one.
func (c *Conn) receiveBatch(raw []byte) {
	parts, err := jsonrpc.SplitBatch(raw)
	if err != nil {
		c.refuse(nil, err)
		return
	}
	if v := c.legacy.current().version; v != router.Version20250326 {
		c.refuse(nil, &jsonrpc.ParseError{Code: jsonrpc.CodeInvalidRequest,
			Text: "invalid request: batches exist in MCP " + router.Version20250326 + " only; send one message a line"})
		return
	}
	b := &batch{c: c, left: 1} // one for the loop, so that it can't end early
	for _, part := range parts {
		m, err := jsonrpc.Parse(part)
		if err != nil || m.Kind == jsonrpc.Request {
			b.mu.Lock()
			b.left++
			b.mu.Unlock()
		}
		if err != nil {
			b.reply(router.ErrorReply(nil, err).Body)
			continue
		}
		c.take(m, b.reply)
	}
	b.reply(nil)
}

// reply adds one response, or nil for none, and sends the array when it is the
// last.
func (b *batch) reply(body []byte) {
	b.mu.Lock()
	if body != nil {
		b.replies = append(b.replies, body)
	}
	b.left--
	left := b.left
	b.mu.Unlock()
	if left > 0 || len(b.replies) == 0 {
		return
	}
	b.c.write(slices.Concat([]byte("["), bytes.Join(b.replies, []byte(",")), []byte("]")))
}
