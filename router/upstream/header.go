package upstream

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"ripstop/router"
)

// Header names in Go's canonical form, which is how maps of them are keyed.
const (
	headerSession = "Mcp-Session-Id"
	headerVersion = "Mcp-Protocol-Version"
	headerMethod  = "Mcp-Method"
	headerName    = "Mcp-Name"
	headerParam   = "Mcp-Param-" // prefix
	headerEvent   = "Last-Event-Id"
)

// owned are the headers that a static header can't replace: they say what this
// package does, or would make net/http believe that a call may be sent twice.
var owned = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Connection": true, "Content-Length": true, "Content-Type": true,
	"Expect": true, "Idempotency-Key": true, "Keep-Alive": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "X-Idempotency-Key": true, headerEvent: true,
}

// staticHeader checks and canonicalizes the headers of every request, and
// returns the one for the host apart. Owned headers are left out: files that
// other clients read set Accept or Content-Type, rightly.
func staticHeader(in http.Header, u *url.URL) (header http.Header, host string, err error) {
	header = http.Header{"User-Agent": {"ripstop"}}
	for k, vs := range in {
		if !isToken(k) {
			return nil, "", fmt.Errorf("header %q: not a header name", k)
		}
		for _, v := range vs {
			if !isFieldValue(v) {
				return nil, "", fmt.Errorf("header %s: the value holds a control character", k)
			}
		}
		k = http.CanonicalHeaderKey(k)
		switch {
		case len(vs) == 0 || owned[k] || strings.HasPrefix(k, "Mcp-"):
		case k == "Host":
			host = vs[0]
		default:
			header[k] = slices.Clip(slices.Clone(vs)) // shared by all requests: nobody may append in place
		}
	}
	if u.User != nil && header.Get("Authorization") == "" {
		r := http.Request{Header: header}
		password, _ := u.User.Password()
		r.SetBasicAuth(u.User.Username(), password)
	}
	return header, host, nil
}

var (
	acceptBoth = []string{typeJSON + ", " + typeSSE}
	acceptSSE  = []string{typeSSE}
	isJSON     = []string{typeJSON}
)

// header returns the headers of one request.
func (b *Backend) header(c *call) (http.Header, error) {
	h := make(http.Header, len(b.static)+6+len(c.req.Params))
	maps.Copy(h, b.static)
	var bad string
	values := make([]string, 0, 5) // one allocation for all single values
	set := func(name, value string) {
		if value == "" {
			return
		}
		if !isFieldValue(value) {
			bad = name
		}
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	switch c.method {
	case "":
		h["Content-Type"], h["Accept"] = isJSON, acceptBoth
	case http.MethodGet:
		h["Accept"] = acceptSSE
	}
	set(headerSession, c.session)
	set(headerEvent, c.lastEvent)
	version := c.req.Version
	if m := c.req.Message; m != nil && c.req.Era == router.EraModern {
		if version == "" { // over NATS the body's is enough; HTTP demands both
			version = m.Version
		}
		set(headerMethod, m.Method)
		if m.Named && hasNameHeader(m.Method) {
			set(headerName, encodeValue(m.Name))
		}
		for k, v := range c.req.Params {
			if !strings.HasPrefix(k, headerParam) || !isToken(k) || !isFieldValue(v) {
				bad = "Mcp-Param-*"
			}
			h[k] = []string{v}
		}
	}
	set(headerVersion, version)
	if bad != "" {
		return nil, router.Errorf(router.ErrRefused, "header %s: the value can't stand in an HTTP header; nothing was executed", bad)
	}
	return h, nil
}

// hasNameHeader reports whether requests of method carry Mcp-Name (MCP
// 2026-07-28, transports, "Standard request headers").
func hasNameHeader(method string) bool {
	switch method {
	case "tools/call", "prompts/get", "resources/read":
		return true
	}
	return strings.HasPrefix(method, "tasks/")
}

const (
	base64Prefix = "=?base64?"
	base64Suffix = "?="
)

// encodeValue returns v as a header value: as it is if that is safe, else in
// the encoding of MCP 2026-07-28 ("Header value encoding"), which also covers
// values that look encoded.
func encodeValue(v string) string {
	safe := !strings.HasPrefix(v, base64Prefix) || !strings.HasSuffix(v, base64Suffix)
	for i := 0; i < len(v) && safe; i++ {
		safe = v[i] > ' ' && v[i] < 0x7f || v[i] == ' ' && i > 0 && i < len(v)-1
	}
	if safe {
		return v
	}
	return base64Prefix + base64.StdEncoding.EncodeToString([]byte(v)) + base64Suffix
}

// isFieldValue reports whether v can stand in an HTTP header as it is (RFC
// 9110, section 5.5): a line break in it would end the header.
func isFieldValue(v string) bool {
	for i := range len(v) {
		if v[i] < ' ' && v[i] != '\t' || v[i] == 0x7f {
			return false
		}
	}
	return true
}

// isToken reports whether s is a header name (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
