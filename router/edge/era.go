package edge

import (
	"net/http"
	"slices"
	"strings"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// era labels metrics; it is known only once a request's head is read.
type era uint8

const (
	eraUnknown era = iota
	eraLegacy
	eraModern
)

var eraNames = [...]string{"none", "legacy", "modern"}

// isModern reports whether a version is 2026-07-28 or later. The comparison is
// that of the official SDKs: a version nobody knows yet, whatever it looks
// like, is for the server to refuse (-32022, with the versions it speaks).
func isModern(version string) bool { return version >= router.Version20260728 }

// allVersions are the versions the fabric carries, newest first.
var allVersions = append([]string{router.Version20260728}, router.LegacyVersions...)

func checkLegacyVersion(v string) error {
	if v == "" || slices.Contains(router.LegacyVersions, v) {
		return nil
	}
	return router.UnsupportedVersion(v, allVersions)
}

// classify decides the era of x's message and checks its headers against it.
// Body metadata decides; the headers must agree with it (MCP 2026-07-28,
// "Server Validation"). The order is go-sdk's, so that a client hears of the
// same mistake first.
func (e *Edge) classify(x *exchange, h http.Header, m *jsonrpc.Message) error {
	x.req.Message, x.method = m, methodLabel(m)
	v, err := version(h)
	if err != nil {
		return err
	}
	x.req.Version = v
	if m.HasVersion || m.Kind == jsonrpc.Request && isModern(v) {
		switch {
		case v == "":
			return mismatch("MCP-Protocol-Version header is required for requests carrying %q", jsonrpc.MetaVersion)
		case m.Version == "":
			return &router.Error{Code: jsonrpc.CodeInvalidParams, Status: http.StatusBadRequest,
				Text: "missing or invalid _meta field " + jsonrpc.Quote(jsonrpc.MetaVersion)}
		case m.Version != v:
			return mismatch("MCP-Protocol-Version header %q does not match the body's %.64q", v, m.Version)
		}
	}
	if isModern(v) {
		x.era, x.req.Era = eraModern, router.EraModern
		return e.checkModern(x, h, m)
	}
	x.era, x.req.Era = eraLegacy, router.EraLegacy
	if err := checkLegacyVersion(v); err != nil {
		return err
	}
	x.req.Session, err = session(h)
	return err
}

// checkModern holds the mirrored headers against the body.
func (e *Edge) checkModern(x *exchange, h http.Header, m *jsonrpc.Message) error {
	if m.Kind == jsonrpc.Response {
		return &router.Error{Code: jsonrpc.CodeInvalidRequest, Status: http.StatusBadRequest,
			Text: "invalid request: MCP 2026-07-28 clients send no responses; answer input requests with a new request"}
	}
	if err := checkMethod(h[hdrMethod], m); err != nil {
		return err
	}
	if err := checkName(h[hdrName], m); err != nil {
		return err
	}
	for key, values := range h {
		if !strings.HasPrefix(key, hdrParamPrefix) {
			continue
		}
		if len(values) != 1 {
			return mismatch("%.100s header appears %d times", key, len(values))
		}
		if x.req.Params == nil {
			x.req.Params = make(map[string]string)
		}
		x.req.Params[key] = values[0]
	}
	return nil
}

// checkMethod: the spec leaves headers of notifications undefined, so there an
// absent one is fine, but not a wrong one.
func checkMethod(values []string, m *jsonrpc.Message) error {
	switch {
	case len(values) > 1:
		return mismatch("Mcp-Method header appears %d times", len(values))
	case len(values) == 0 && m.Kind == jsonrpc.Request:
		return mismatch("missing required Mcp-Method header for method %.100q", m.Method)
	case len(values) == 1 && values[0] != m.Method:
		return mismatch("Mcp-Method header %.100q does not match the body's method %.100q", values[0], m.Method)
	}
	return nil
}

// checkName: Mcp-Name is required for three methods and, where tasks are
// spoken, allowed for tasks/*.
func checkName(values []string, m *jsonrpc.Message) error {
	switch m.Method {
	case "tools/call", "prompts/get", "resources/read":
		if len(values) == 0 {
			return mismatch("missing required Mcp-Name header for method %q", m.Method)
		}
	default:
		if len(values) == 0 || !strings.HasPrefix(m.Method, "tasks/") || !m.Named {
			return nil
		}
	}
	if len(values) > 1 {
		return mismatch("Mcp-Name header appears %d times", len(values))
	}
	name, ok := decode(values[0])
	switch {
	case !ok:
		return mismatch("Mcp-Name header %.100q is not valid Base64", values[0])
	case !m.Named || name != m.Name:
		return mismatch("Mcp-Name header %.100q does not match the body's %.100q", name, m.Name)
	}
	return nil
}

func mismatch(format string, args ...any) error {
	err := refused(http.StatusBadRequest, "header mismatch: "+format, args...)
	err.Code = router.CodeHeaderMismatch
	return err
}
