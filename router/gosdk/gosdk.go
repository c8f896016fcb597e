// Package gosdk attaches servers written with the official Go SDK
// (github.com/modelcontextprotocol/go-sdk) in process: no port, no copy of the
// messages on a wire, both protocol eras.
package gosdk

import (
	"bytes"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/upstream"
)

// maxBody is the largest request in bytes, a little more than the fabric
// carries. The SDK's own default is 4 MiB.
const maxBody = 17 << 20

// Handler returns an http.Handler that serves both eras of server. One handler
// of the SDK can't: 2026-07-28 needs a stateless one, which knows no sessions.
//
// Sessions do not expire by themselves; whoever opens one ends it, as
// [upstream.Backend] does for its clients. A nil logger logs nothing.
func Handler(server *mcp.Server, logger *slog.Logger) http.Handler {
	get := func(*http.Request) *mcp.Server { return server }
	return &handler{
		modern: mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{
			Stateless: true, PropagateRequestCancellation: true, MaxRequestBodyBytes: maxBody, Logger: logger,
		}),
		legacy: mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{
			MaxRequestBodyBytes: maxBody, Logger: logger,
		}),
	}
}

type handler struct{ modern, legacy http.Handler }

// ServeHTTP tells the eras apart by the version header, which 2026-07-28
// demands of every request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Mcp-Protocol-Version") >= router.Version20260728:
		h.modern.ServeHTTP(w, plainName(r))
	case r.Method != http.MethodPost || r.Header.Get("Mcp-Session-Id") != "":
		h.legacy.ServeHTTP(w, r)
	default:
		h.open(w, r)
	}
}

// open serves a legacy request without a session. The SDK would answer it in a
// session of its own that nobody learns of, with an error that has no code.
func (h *handler) open(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		r = r.WithContext(r.Context()) // a copy: the request is the caller's
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	m, bad := jsonrpc.Parse(body)
	if err != nil || bad != nil || m.Method == "initialize" {
		h.legacy.ServeHTTP(w, r) // which has the right answer to what can't be read
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(jsonrpc.NewError(m.ID, jsonrpc.CodeInvalidRequest, "Mcp-Session-Id is required; send initialize first", nil)) // a client that is gone needs no answer
}

const (
	base64Prefix = "=?base64?"
	base64Suffix = "?="
)

// plainName decodes Mcp-Name (MCP 2026-07-28, "Header value encoding"). The SDK
// compares the header with the body as it stands, and would refuse every name
// that is not plain ASCII.
func plainName(r *http.Request) *http.Request {
	v, ok := strings.CutPrefix(r.Header.Get("Mcp-Name"), base64Prefix)
	if ok {
		v, ok = strings.CutSuffix(v, base64Suffix)
	}
	if !ok {
		return r
	}
	name, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return r
	}
	r = r.WithContext(r.Context())
	r.Header = r.Header.Clone()
	r.Header["Mcp-Name"] = []string{string(name)}
	return r
}

// New returns a backend for server in this process. Closing it ends the
// sessions it opened, and waits for calls that still run, up to a few seconds.
// A nil logger logs nothing.
func New(instance string, server *mcp.Server, logger *slog.Logger) (*upstream.Backend, error) {
	return upstream.New(upstream.Options{
		Instance:  instance,
		URL:       upstream.InProcessURL,
		Transport: upstream.InProcess(Handler(server, logger)),
		Logger:    logger,
	})
}
