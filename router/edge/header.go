package edge

import (
	"encoding/base64"
	"mime"
	"net/http"
	"strings"

	"ripstop/router"
)

// Request headers, as net/http spells them.
const (
	hdrVersion     = "Mcp-Protocol-Version"
	hdrSession     = "Mcp-Session-Id"
	hdrMethod      = "Mcp-Method"
	hdrName        = "Mcp-Name"
	hdrParamPrefix = "Mcp-Param-"
	hdrLastEventID = "Last-Event-Id"
)

// first returns a header's first value, or "". key must be canonical.
func first(h http.Header, key string) string {
	if v := h[key]; len(v) != 0 {
		return v[0]
	}
	return ""
}

// version reads MCP-Protocol-Version. It goes on to other machines, so it is
// held to what every version so far looks like.
func version(h http.Header) (string, error) {
	v := h[hdrVersion]
	if len(v) == 0 {
		return "", nil
	}
	if len(v) > 1 || len(v[0]) > 64 || !visible(v[0], 0x21) {
		return "", refused(http.StatusBadRequest, "MCP-Protocol-Version must be one version, such as %s", router.Version20260728)
	}
	return v[0], nil
}

// session reads Mcp-Session-Id (MCP 2025-11-25, transports, "Session
// Management": visible ASCII only).
func session(h http.Header) (string, error) {
	v := h[hdrSession]
	if len(v) == 0 {
		return "", nil
	}
	if len(v) > 1 || len(v[0]) > maxSession || !visible(v[0], 0x21) {
		return "", refused(http.StatusBadRequest, "Mcp-Session-Id must be one id of up to %d visible ASCII characters", maxSession)
	}
	return v[0], nil
}

// visible reports whether s has only ASCII characters from low to 0x7E.
func visible(s string, low byte) bool {
	for _, c := range []byte(s) {
		if c < low || c > 0x7E {
			return false
		}
	}
	return true
}

// checkPostHeaders checks what MCP demands of every POST.
func checkPostHeaders(h http.Header) error {
	if t := first(h, "Content-Type"); t != "application/json" {
		if media, _, err := mime.ParseMediaType(t); err != nil || media != "application/json" {
			return refused(http.StatusUnsupportedMediaType, "Content-Type must be application/json, not %.100q", t)
		}
	}
	if enc := first(h, "Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return refused(http.StatusUnsupportedMediaType, "Content-Encoding %.50q is not supported; send the JSON as it is", enc)
	}
	if json, sse := accepts(h["Accept"]); !json || !sse {
		return refused(http.StatusNotAcceptable, "Accept must admit both application/json and text/event-stream")
	}
	return nil
}

// accepts reports whether Accept values admit JSON and event streams. MCP
// requires the header, so an absent one admits nothing.
func accepts(values []string) (json, sse bool) {
	for _, value := range values {
		if value == "application/json, text/event-stream" {
			return true, true
		}
		for part := range strings.SplitSeq(value, ",") {
			media, params, _ := strings.Cut(part, ";")
			if params != "" && zeroQuality(params) {
				continue
			}
			switch strings.ToLower(strings.TrimSpace(media)) {
			case "*/*":
				json, sse = true, true
			case "application/json", "application/*":
				json = true
			case "text/event-stream", "text/*":
				sse = true
			}
		}
	}
	return json, sse
}

// zeroQuality reports whether media type parameters say "not acceptable"
// (RFC 9110, section 12.4.2).
func zeroQuality(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		q, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q=")
		if ok && q != "" && strings.Trim(q, "0.") == "" {
			return true
		}
	}
	return false
}

// decode returns a header value as the client meant it: values that are not
// safe in a header come as =?base64?…?= (MCP 2026-07-28, "Value Encoding").
func decode(value string) (string, bool) {
	enc, ok := strings.CutPrefix(value, "=?base64?")
	if !ok {
		return value, true
	}
	if enc, ok = strings.CutSuffix(enc, "?="); !ok {
		return value, true
	}
	out, err := base64.StdEncoding.Strict().DecodeString(enc)
	return string(out), err == nil
}
