package aggregate_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	sdk "github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/aggregate"
	"ripstop/router/jsonrpc"
)

// overHTTP is a member behind an http.Handler, called in memory.
type overHTTP struct{ h http.Handler }

func (m overHTTP) Serve(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	method, body := http.MethodPost, []byte(nil)
	switch req.Op {
	case router.OpListen:
		method = http.MethodGet
	case router.OpEnd:
		method = http.MethodDelete
	default:
		body = req.Message.Raw
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1/mcp", bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	setHeaders(r.Header, req)
	pr, pw := io.Pipe()
	w := &response{header: http.Header{}, body: pw, begun: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		m.h.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		pw.Close()
	})
	defer wg.Wait()
	defer pr.Close()
	defer cancel()
	var cancelled sync.WaitGroup
	defer cancelled.Wait()
	cancelled.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer cancelled.Done()
		if req.Era == router.EraLegacy && req.ID() != nil && req.Message.Kind == jsonrpc.Request {
			m.cancelled(req) // a closed connection cancels nothing in the legacy era
		}
		pr.CloseWithError(context.Canceled)
	})
	defer func() {
		if stop() {
			cancelled.Done()
		}
	}()
	select {
	case <-w.begun:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	reply, err := readResponse(ctx, w, pr, req, out)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return reply, err
}

func (m overHTTP) cancelled(req *router.Request) {
	msg, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + string(req.ID()) + `}}`))
	if err != nil {
		panic(err)
	}
	note := *req
	note.Message = msg
	m.Serve(context.Background(), &note, router.Discard)
}

func setHeaders(h http.Header, req *router.Request) {
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	for key, v := range map[string]string{"Mcp-Session-Id": req.Session, "Mcp-Protocol-Version": req.Version} {
		if v != "" {
			h.Set(key, v)
		}
	}
	if req.Era == router.EraModern && req.Message != nil {
		h.Set("Mcp-Method", req.Method())
		if req.Message.Named {
			h.Set("Mcp-Name", req.Message.Name)
		}
	}
	for k, v := range req.Params {
		h.Set(k, v)
	}
}

func readResponse(ctx context.Context, w *response, body io.Reader, req *router.Request, out router.Stream) (*router.Reply, error) {
	if !strings.HasPrefix(w.header.Get("Content-Type"), "text/event-stream") {
		raw, err := io.ReadAll(body)
		switch {
		case err != nil:
			return nil, err
		case w.status == http.StatusNotFound && req.Session != "":
			return nil, router.Errorf(router.ErrSessionNotFound, "%s", raw)
		case w.status >= 400 && !bytes.HasPrefix(raw, []byte("{")):
			return nil, router.Errorf(router.ErrBackend, "HTTP %d: %s", w.status, raw)
		}
		return &router.Reply{Body: bytes.TrimSpace(raw), Status: w.status, Session: w.header.Get("Mcp-Session-Id")}, nil
	}
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok || len(data) == 0 {
			continue
		}
		m, err := jsonrpc.Parse(bytes.Clone(data))
		if err != nil {
			return nil, err
		}
		if m.Kind == jsonrpc.Response {
			return &router.Reply{Body: m.Raw, Status: w.status, Session: w.header.Get("Mcp-Session-Id")}, nil
		}
		if err := out.Send(ctx, m.Raw); err != nil {
			return nil, err
		}
	}
	return &router.Reply{}, lines.Err()
}

// response is an http.ResponseWriter whose body is read as it is written.
type response struct {
	header http.Header
	body   io.Writer
	begun  chan struct{}
	once   sync.Once
	status int
}

func (r *response) Header() http.Header { return r.header }
func (r *response) Flush()              {}
func (r *response) WriteHeader(status int) {
	r.once.Do(func() { r.status = status; close(r.begun) })
}
func (r *response) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(p)
}

// transport lets a go-sdk client use a backend.
type transport struct{ b *aggregate.Backend }

func (t transport) Connect(context.Context) (mcp.Connection, error) {
	c := &connection{b: t.b, in: make(chan []byte, 64), calls: map[string]context.CancelFunc{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c, nil
}

type connection struct {
	b    *aggregate.Backend
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	in   chan []byte

	mu      sync.Mutex
	session string
	calls   map[string]context.CancelFunc
}

func (c *connection) Read(ctx context.Context) (sdk.Message, error) {
	select {
	case raw := <-c.in:
		return sdk.DecodeMessage(raw)
	case <-c.ctx.Done():
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Send implements router.Stream.
func (c *connection) Send(_ context.Context, msg []byte) error {
	if len(msg) == 0 {
		return nil
	}
	select {
	case c.in <- bytes.Clone(msg):
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

func (c *connection) Write(_ context.Context, msg sdk.Message) error {
	raw, err := sdk.EncodeMessage(msg)
	if err != nil {
		return err
	}
	m, err := jsonrpc.Parse(raw)
	if err != nil {
		return fmt.Errorf("write %s: %w", raw, err)
	}
	c.mu.Lock()
	req := &router.Request{Session: c.session, Message: m}
	c.mu.Unlock()
	if m.HasVersion {
		req.Session, req.Era, req.Version = "", router.EraModern, m.Version
	}
	if m.Kind != jsonrpc.Request {
		if c.SessionID() == "" {
			c.cancel(string(m.CancelID))
			return nil
		}
		_, err := c.b.Serve(c.ctx, req, c)
		return err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	c.calls[string(m.ID)] = cancel
	c.mu.Unlock()
	c.wg.Go(func() { c.call(ctx, req) })
	return nil
}

func (c *connection) call(ctx context.Context, req *router.Request) {
	defer c.cancel(string(req.ID()))
	reply, err := c.b.Serve(ctx, req, c)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		reply = router.ErrorReply(req.ID(), err)
	}
	if reply.Session != "" {
		c.mu.Lock()
		c.session = reply.Session
		c.mu.Unlock()
		c.wg.Go(func() { c.b.Serve(c.ctx, &router.Request{Op: router.OpListen, Session: reply.Session}, c) })
	}
	c.Send(ctx, reply.Body)
}

func (c *connection) cancel(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.calls[id]; cancel != nil {
		cancel()
		delete(c.calls, id)
	}
}

func (c *connection) SessionID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func (c *connection) Close() error {
	var err error
	if s := c.SessionID(); s != "" && c.ctx.Err() == nil {
		_, err = c.b.Serve(context.Background(), &router.Request{Op: router.OpEnd, Session: s}, c)
		if errors.Is(err, router.ErrUnavailable) {
			err = nil
		}
	}
	c.stop()
	c.wg.Wait()
	return err
}
