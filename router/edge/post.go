package edge

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// post takes one message, or a batch of them.
func (e *Edge) post(x *exchange, r *http.Request) error {
	if err := checkPostHeaders(r.Header); err != nil {
		return err
	}
	body, err := e.readBody(x, r)
	if err != nil {
		return err
	}
	if jsonrpc.IsBatch(body) {
		return e.batch(x, r.Header, body)
	}
	m, err := jsonrpc.Parse(body)
	if err != nil {
		return err
	}
	if err := e.classify(x, r.Header, m); err != nil {
		return err
	}
	switch {
	case m.Kind != jsonrpc.Request:
		x.kind = oneway
	case m.Method == "initialize" && x.era == eraLegacy:
		x.kind = opening
	case m.Method == "subscriptions/listen" && x.era == eraModern:
		x.endless = true
		return x.runLong(r)
	case x.era == eraLegacy:
		x.req.StreamID = newStreamID(m.ID)
	}
	return x.run()
}

// batch takes a JSON array of messages, which only MCP 2025-03-26 knows (and a
// client that sends no version may speak it).
func (e *Edge) batch(x *exchange, h http.Header, body []byte) error {
	x.era, x.method = eraLegacy, "batch"
	v, err := version(h)
	if err != nil {
		return err
	}
	if v != "" && v != router.Version20250326 {
		return invalidRequest("invalid request: JSON-RPC batches are part of MCP %s only, not %s; send one message a POST", router.Version20250326, v)
	}
	x.req.Version = v
	if x.req.Session, err = session(h); err != nil {
		return err
	}
	parts, err := jsonrpc.SplitBatch(body)
	if err != nil {
		return err
	}
	if len(parts) > maxBatch {
		return invalidRequest("invalid request: a batch of %d messages; the most is %d", len(parts), maxBatch)
	}
	items, err := parseBatch(x, parts)
	if err != nil {
		return err
	}
	ctx, err := x.begin()
	if err != nil {
		return err
	}
	defer x.end()
	e.serveBatch(ctx, x, items)
	x.finishBatch(items)
	return nil
}

// item is one message of a batch and, if it gets one, its reply.
type item struct {
	req   *router.Request
	reply *router.Reply
}

// parseBatch reads every message. What is wrong with one is answered in its
// place; what no batch may hold refuses all of it.
func parseBatch(x *exchange, parts [][]byte) ([]item, error) {
	x.kind = oneway
	items := make([]item, len(parts))
	for i, part := range parts {
		m, err := jsonrpc.Parse(part)
		switch {
		case err != nil:
			items[i].reply = router.ErrorReply(nil, err)
			x.kind = call
			continue
		case m.HasVersion:
			return nil, invalidRequest("invalid request: a batch can't hold messages of MCP %s", router.Version20260728)
		case m.Method == "initialize":
			return nil, invalidRequest("invalid request: initialize can't be part of a batch")
		case m.Kind == jsonrpc.Request:
			x.kind = call
		}
		req := x.req
		req.Message = m
		if m.Kind == jsonrpc.Request {
			req.StreamID = newStreamID(nil)
		}
		items[i].req = &req
	}
	return items, nil
}

// sender is an exchange without event ids: a batch is answered by one stream,
// and its calls have one each, so it can't be resumed. They go on without their
// client all the same.
type sender struct{ x *exchange }

func (s sender) Send(ctx context.Context, msg []byte) error { return s.x.Send(ctx, msg) }

// serveBatch runs calls side by side, and notifications and responses in their
// place, so that what follows one finds it done.
func (e *Edge) serveBatch(ctx context.Context, x *exchange, items []item) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for i := range items {
		it := &items[i]
		switch {
		case it.req == nil: // could not be read
		case it.req.Message.Kind == jsonrpc.Request:
			calls.Go(func() {
				reply, err := e.call(ctx, it.req, sender{x})
				it.reply = x.settle(ctx, it.req.ID(), reply, err)
			})
		default:
			if reply, err := e.call(context.WithoutCancel(ctx), it.req, sender{x}); err != nil || reply != nil && reply.Status >= 400 {
				e.log.Debug("batch: message not taken", "server", x.req.Server, "method", it.req.Method(), "error", err)
			}
		}
	}
}

// finishBatch answers with one array or, where a stream was begun, with one
// event a reply.
func (x *exchange) finishBatch(items []item) {
	items = slices.DeleteFunc(items, func(it item) bool { return it.reply == nil || len(it.reply.Body) == 0 })
	streaming, gone := x.close()
	switch {
	case gone:
		x.edge.metrics.observe(x, outcomeDisconnected)
	case streaming:
		for _, it := range items {
			if x.event("", it.reply.Body) != nil {
				break
			}
		}
		x.edge.metrics.observe(x, outcomeOK)
	default:
		x.answer(batchReply(items))
	}
}

// batchReply joins replies. They share one HTTP status, so it says something
// only if all agree: 404 for a session that is gone.
func batchReply(items []item) *router.Reply {
	if len(items) == 0 {
		return &router.Reply{}
	}
	status, size := items[0].reply.Status, 2
	for _, it := range items {
		size += len(it.reply.Body) + 1
		if it.reply.Status != status {
			status = http.StatusOK
		}
	}
	body := append(make([]byte, 0, size), '[')
	for i, it := range items {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, it.reply.Body...)
	}
	return &router.Reply{Body: append(body, ']'), Status: status}
}

func invalidRequest(format string, args ...any) error {
	err := refused(http.StatusBadRequest, format, args...)
	err.Code = jsonrpc.CodeInvalidRequest
	return err
}
