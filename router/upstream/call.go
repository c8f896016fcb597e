package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// maxRedirects bounds how often one request follows the server to another path.
const maxRedirects = 3

// call is one message on its way to the upstream.
type call struct {
	req       *router.Request
	method    string // HTTP method; "" = POST
	body      []byte
	id        []byte // raw id of the response awaited; nil = none
	session   string // the upstream's Mcp-Session-Id; "" = none
	lastEvent string // resume after this event; "" = don't
	out       router.Stream

	resumed  int              // attempts to resume since the last event
	assigned string           // Mcp-Session-Id of the answer
	answer   *jsonrpc.Message // the response, once it is there
}

// post sends a message and returns the reply to it.
func (b *Backend) post(ctx context.Context, c *call) (*router.Reply, error) {
	resp, p, err := b.exchange(ctx, c)
	if p != nil {
		defer p.cut()
	}
	if err != nil {
		return nil, b.failed(ctx, c, p, err)
	}
	if v := resp.Header[headerSession]; len(v) > 0 {
		c.assigned = v[0]
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return b.refused(ctx, c, resp)
	}
	if c.id == nil { // a notification or a response: accepted
		discard(resp)
		return &router.Reply{Status: http.StatusAccepted}, nil
	}
	switch kind := mediaType(resp); kind {
	case typeJSON:
		return b.single(ctx, c, resp)
	case typeSSE:
		return b.stream(ctx, c, resp)
	default:
		resp.Body.Close()
		return nil, misspoken(c, "%s answered %s with HTTP %d and content type %q instead of JSON or an event stream; check that the URL is an MCP endpoint", b.where(), c.req.Method(), resp.StatusCode, clip(kind, 80))
	}
}

// single reads a response that came as one JSON body.
func (b *Backend) single(ctx context.Context, c *call, resp *http.Response) (*router.Reply, error) {
	body, err := readBody(resp, maxMessage)
	if err != nil {
		resp.Body.Close()
		return nil, b.failed(ctx, c, nil, err)
	}
	m, err := jsonrpc.Parse(body)
	if err != nil {
		return nil, b.errJunk(c, err.Error())
	}
	if m.Kind != jsonrpc.Response || !answers(m, c.id) {
		return nil, b.errJunk(c, "it is not the response to this request")
	}
	c.answer = m
	return &router.Reply{Body: m.Raw, Status: resp.StatusCode}, nil
}

func (b *Backend) errJunk(c *call, why string) error {
	return misspoken(c, "%s answered %s with something else than its JSON-RPC response: %s", b.where(), c.req.Method(), clip(why, 200))
}

// misspoken is the error for an answer that is no MCP, to a request that did
// arrive. Only of the handshake, and of what asks for nothing, it is certain that
// nothing was executed, which is what [router.ErrBackend] promises.
func misspoken(c *call, format string, args ...any) error {
	switch c.req.Method() {
	case "", "initialize", "server/discover", "ping":
		return router.Errorf(router.ErrBackend, format, args...)
	}
	e := router.Errorf(router.ErrOutcomeUnknown, format+"; it may have been executed, check before you repeat it", args...)
	e.Status = http.StatusBadGateway
	return e
}

// exchange sends c and returns the response, whatever its status. The payload
// is nil for a request without a body; the caller cuts it when it is done with
// the response.
func (b *Backend) exchange(ctx context.Context, c *call) (*http.Response, *payload, error) {
	header, err := b.header(c)
	if err != nil {
		return nil, nil, err
	}
	for hops := 0; ; hops++ {
		u := b.target.Load()
		r, p := b.request(ctx, c, u, header)
		resp, err := b.transport.RoundTrip(r)
		if err != nil {
			return nil, p, err
		}
		if resp.StatusCode != http.StatusTemporaryRedirect && resp.StatusCode != http.StatusPermanentRedirect {
			return resp, p, nil
		}
		discard(resp)
		if p != nil {
			p.cut()
		}
		if err := b.follow(u, resp, hops); err != nil {
			return nil, p, err
		}
	}
}

func (b *Backend) request(ctx context.Context, c *call, u *url.URL, header http.Header) (*http.Request, *payload) {
	r := http.Request{Method: c.method, URL: u, Host: b.host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if c.method != "" {
		return r.WithContext(ctx), nil
	}
	p := newPayload(c.body)
	r.Method = http.MethodPost
	r.Body, r.GetBody, r.ContentLength = &p.first, p.again, int64(len(c.body))
	return r.WithContext(ctx), p
}

// follow moves the target to where a 307 or 308 points: servers that answer at
// /mcp/ redirect /mcp there. Another origin would get the static headers, which
// may hold credentials, so that is left to the operator.
func (b *Backend) follow(from *url.URL, resp *http.Response, hops int) error {
	to, err := from.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil:
		return router.Errorf(router.ErrBackend, "%s redirects to a location that can't be read; nothing was executed", b.where())
	case to.Scheme != from.Scheme || to.Host != from.Host:
		return router.Errorf(router.ErrBackend, "%s redirects to another origin, %s; nothing was executed, attach that URL instead", b.where(), to.Redacted())
	case hops >= maxRedirects:
		return router.Errorf(router.ErrBackend, "%s redirects more than %d times; nothing was executed", b.where(), maxRedirects)
	}
	to.User, to.Fragment = nil, ""
	b.target.Store(to)
	return nil
}

// failed turns an exchange's error into what the client gets to see, and cancels
// the call at the upstream where it is the client who went away. p is nil where
// the request certainly was sent, or has no body.
func (b *Backend) failed(ctx context.Context, c *call, p *payload, err error) error {
	sent := p == nil || p.sent.Load()
	if ctx.Err() != nil && b.ctx.Err() == nil {
		if sent {
			b.cancelUpstream(c)
		}
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("call %s: %w", b.where(), context.Cause(ctx))
		}
		err = context.DeadlineExceeded
	}
	return b.broken(ctx, p, err)
}

// broken says what a failed exchange means for the call.
func (b *Backend) broken(ctx context.Context, p *payload, err error) error {
	var known *router.Error
	if errors.As(err, &known) {
		return known
	}
	if b.ctx.Err() != nil {
		err = errors.New("the backend is closing")
	}
	var dial *net.OpError
	if p != nil && !p.sent.Load() || p == nil && errors.As(err, &dial) && dial.Op == "dial" {
		return router.Errorf(router.ErrUnavailable, "%s can't be reached: %s; nothing was executed, try again when it is up", b.where(), plainText(err))
	}
	return router.Errorf(router.ErrOutcomeUnknown, "the exchange with %s broke off before its response: %s; it may have been executed, check before you repeat it", b.where(), plainText(err))
}

// refused turns an answer outside 2xx into a reply: as it is if the server
// speaks JSON-RPC, or wrapped.
func (b *Backend) refused(ctx context.Context, c *call, resp *http.Response) (*router.Reply, error) {
	defer resp.Body.Close()
	var body []byte
	var err error
	if mediaType(resp) == typeJSON {
		if body, err = readBody(resp, maxMessage); err != nil {
			return nil, b.failed(ctx, c, nil, err)
		}
	} else { // the beginning will do, whatever becomes of the rest
		body, _ = io.ReadAll(io.LimitReader(resp.Body, 4*maxErrorText))
	}
	m, err := jsonrpc.Parse(body)
	known := err == nil && m.Kind == jsonrpc.Response && m.Error != nil
	if resp.StatusCode == http.StatusNotFound && c.session != "" && !(known && errorCode(m.Error) == jsonrpc.CodeMethodNotFound) {
		return nil, errSessionGone
	}
	if known {
		c.answer = m
		return &router.Reply{Body: m.Raw, Status: resp.StatusCode}, nil
	}
	if e := looseError(body); e != nil { // an error object without the id that JSON-RPC demands
		return &router.Reply{Body: jsonrpc.NewError(c.id, e.Code, e.Message, e.Data), Status: resp.StatusCode}, nil
	}
	text := bodyText(body)
	if resp.StatusCode == http.StatusBadRequest && strings.HasPrefix(text, notHandled) && c.req.Message != nil {
		e := jsonrpc.NewError(c.id, jsonrpc.CodeMethodNotFound, fmt.Sprintf("method not found: %.100q", c.req.Message.Method), nil)
		return &router.Reply{Body: e, Status: resp.StatusCode}, nil
	}
	return nil, b.errStatus(resp.StatusCode, text, c.req.Method())
}

// notHandled begins the page by which the Go SDK answers a method that it does
// not know, in a session; a client shall see the JSON-RPC error that is meant.
const notHandled = "JSON RPC not handled"

type rpcError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

func errorCode(raw []byte) int {
	var e rpcError
	if json.Unmarshal(raw, &e) != nil {
		return 0
	}
	return e.Code
}

func looseError(body []byte) *rpcError {
	var m struct {
		Error *rpcError `json:"error"`
	}
	if json.Unmarshal(body, &m) != nil || m.Error == nil || m.Error.Code == 0 {
		return nil
	}
	return m.Error
}

// errStatus wraps an error page that answered method.
func (b *Backend) errStatus(status int, text, method string) error {
	kind := &router.Error{Code: jsonrpc.CodeInvalidRequest}
	hint := ""
	switch {
	case status == http.StatusUnauthorized, status == http.StatusProxyAuthRequired:
		// A challenge is for us, who hold the credentials: the client could
		// not answer it, and would start an OAuth flow with the wrong party.
		return router.Errorf(router.ErrBackend, "%s refuses the fabric's credentials (HTTP %d): %s; set its \"headers\"", b.where(), status, text)
	case status == http.StatusRequestEntityTooLarge:
		kind = router.ErrTooLarge
	case status == http.StatusTooManyRequests:
		kind = router.ErrOverloaded
	case status == http.StatusServiceUnavailable && method != "tools/call":
		// A proxy says 503 too when its server went away in the middle of a
		// call. What only reads may be tried again, a tool may not.
		kind = router.ErrUnavailable
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status < 400:
		kind, hint = router.ErrBackend, "; check that the URL is an MCP endpoint"
	case status >= 500:
		kind, hint = router.ErrOutcomeUnknown, "; it may have been executed, check before you repeat it"
	}
	e := router.Errorf(kind, "%s answered HTTP %d: %s%s", b.where(), status, text, hint)
	e.Status = status
	if status < 400 {
		e.Status = http.StatusBadGateway
	}
	return e
}

const (
	typeJSON = "application/json"
	typeSSE  = "text/event-stream"
)

// mediaType returns the response's content type without parameters.
func mediaType(resp *http.Response) string {
	var v string
	if h := resp.Header["Content-Type"]; len(h) > 0 {
		v = h[0]
	}
	if v == typeJSON || v == typeSSE {
		return v
	}
	t, _, err := mime.ParseMediaType(v)
	if err != nil {
		return v
	}
	return t
}

// answers reports whether the response m is the one to the request with the
// raw id. An error response may have a null id: the server could not read the
// request's.
func answers(m *jsonrpc.Message, id []byte) bool {
	if bytes.Equal(m.ID, id) || m.Error != nil && string(m.ID) == "null" {
		return true
	}
	if m.ID[0] != '"' || len(id) == 0 || id[0] != '"' {
		return false
	}
	var x, y string // the same string may be escaped in two ways
	return json.Unmarshal(m.ID, &x) == nil && json.Unmarshal(id, &y) == nil && x == y
}

var errBodySize = router.Errorf(router.ErrTooLarge, "the server's answer is larger than the %d bytes the fabric carries; the call was executed", maxMessage)

// readBody reads all of a body of up to limit bytes; what is longer is an
// ErrTooLarge.
func readBody(resp *http.Response, limit int) ([]byte, error) {
	if resp.ContentLength > int64(limit) {
		return nil, errBodySize
	}
	if resp.ContentLength >= 0 {
		body := make([]byte, resp.ContentLength)
		_, err := io.ReadFull(resp.Body, body)
		if err == nil {
			resp.Body.Close()
		}
		return body, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err == nil && len(body) > limit {
		return body[:limit], errBodySize
	}
	if err == nil {
		resp.Body.Close()
	}
	return body, err
}

// bodyText makes one line of an error page.
func bodyText(body []byte) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "?")), " ")
	if text == "" {
		return "no explanation"
	}
	return clip(text, maxErrorText)
}

// plainText drops what net/http and net put around the reason.
func plainText(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return fmt.Sprintf("%s: %v", op.Op, op.Err)
	}
	return clip(err.Error(), 200)
}

// settler is a body whose connection can still be used when the rest of it is
// of no interest but will soon end by itself.
type settler interface{ settle() }

// settle is done with a body after the last thing worth reading in it.
func settle(body io.ReadCloser) {
	if s, ok := body.(settler); ok {
		s.settle()
		return
	}
	body.Close()
}

// discard is done with a response whose body does not matter.
func discard(resp *http.Response) {
	if resp.ContentLength >= 0 && resp.ContentLength <= 4<<10 {
		_, _ = io.Copy(io.Discard, resp.Body) // only to keep the connection
		resp.Body.Close()
		return
	}
	settle(resp.Body)
}
