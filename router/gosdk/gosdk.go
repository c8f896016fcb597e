// Package gosdk attaches servers written with the official Go SDK
// (github.com/modelcontextprotocol/go-sdk) in process: no port, no copy of the
// messages on a wire, both protocol eras.
package gosdk

import (
	"log/slog"
	"net/http"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
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
	if r.Header.Get("Mcp-Protocol-Version") >= router.Version20260728 {
		h.modern.ServeHTTP(w, r)
		return
	}
	h.legacy.ServeHTTP(w, r)
}

// New returns a backend for server in this process. Closing it ends the
// sessions it opened, and waits for calls that still run, up to a few seconds.
// A nil logger logs nothing.
func New(instance string, server *mcp.Server, logger *slog.Logger) (*upstream.Backend, error) {
	return upstream.New(upstream.Options{
		Instance:  instance,
		URL:       "http://in-process/mcp",
		Transport: upstream.InProcess(Handler(server, logger)),
		Logger:    logger,
	})
}
