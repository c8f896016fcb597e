package edge

import (
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"ripstop/router"
)

// Header values that never change share one slice.
var (
	allowAll  = []string{"POST, GET, DELETE, OPTIONS"}
	allowPost = []string{"POST"}

	varyOrigin    = []string{"Origin"}
	exposeHeaders = []string{"Mcp-Session-Id, Retry-After, WWW-Authenticate"}
)

// admit checks what must hold before anything else of a request is looked at.
func (e *Edge) admit(x *exchange, r *http.Request) error {
	local := e.loopback || onLoopback(r)
	if err := e.checkHost(r.Host, local); err != nil {
		return err
	}
	if origin := r.Header["Origin"]; len(origin) != 0 {
		if err := e.checkOrigin(x.w.Header(), origin, local); err != nil {
			return err
		}
	}
	if r.Method != http.MethodOptions { // a preflight carries no credentials
		if err := e.checkToken(x, r); err != nil {
			return err
		}
	}
	return e.route(x, r.URL.Path)
}

// onLoopback reports whether the request arrived on a loopback address.
func onLoopback(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return addr != nil && addr.IP.IsLoopback()
}

// checkHost refuses what a browser sends after DNS rebinding: a request that
// reaches a local address under a name of the attacker's.
func (e *Edge) checkHost(host string, local bool) error {
	if !local || isLoopbackHost(host) {
		return nil
	}
	lower := strings.ToLower(host)
	if e.hosts[lower] || e.hosts[withoutPort(lower)] {
		return nil
	}
	return refused(http.StatusForbidden, "Host %.100q is not this node's; use localhost, or have the node allow that host", host)
}

// checkOrigin refuses browsers on other sites (MCP, transports, "Security"),
// and tells those it admits what they may read of the answer.
func (e *Edge) checkOrigin(h http.Header, origin []string, local bool) error {
	if len(origin) != 1 || !e.originAllowed(origin[0], local) {
		return refused(http.StatusForbidden, "Origin %.100q may not use this node; have the node allow that origin", origin[0])
	}
	h["Access-Control-Allow-Origin"] = origin
	h["Access-Control-Expose-Headers"] = exposeHeaders
	h["Vary"] = varyOrigin
	return nil
}

func (e *Edge) originAllowed(origin string, local bool) bool {
	if e.origins["*"] || e.origins[strings.ToLower(origin)] {
		return true
	}
	if !local {
		return false
	}
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil &&
		u.Path == "" && u.RawQuery == "" && u.Fragment == "" && isLoopbackHost(u.Host)
}

// checkToken finds out who the caller is. The token all share is compared in
// constant time.
func (e *Edge) checkToken(x *exchange, r *http.Request) error {
	want := ""
	if e.token != nil {
		want = e.token()
	}
	if want == "" && e.users == nil {
		return nil
	}
	const scheme = "bearer "
	got := first(r.Header, "Authorization")
	if len(got) <= len(scheme) || !strings.EqualFold(got[:len(scheme)], scheme) {
		x.w.Header()["Www-Authenticate"] = []string{"Bearer"}
		return refused(http.StatusUnauthorized, "this node needs the header Authorization: Bearer <token>")
	}
	got = strings.TrimSpace(got[len(scheme):])
	if want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1 {
		x.req.Principal = router.Anybody
		return nil
	}
	if e.users != nil {
		if name, ok := e.users(got); ok {
			x.req.Principal = name
			return nil
		}
	}
	x.w.Header()["Www-Authenticate"] = []string{`Bearer error="invalid_token"`}
	return refused(http.StatusUnauthorized, "the bearer token is not this node's")
}

// preflight answers OPTIONS: a browser asking before it calls (Fetch standard,
// "CORS-preflight fetch"), or anyone asking for the methods.
func (x *exchange) preflight(r *http.Request) {
	h := x.w.Header()
	h["Allow"] = allowAll
	if h["Access-Control-Allow-Origin"] != nil && len(r.Header["Access-Control-Request-Method"]) != 0 {
		h["Access-Control-Allow-Methods"] = allowAll
		h["Access-Control-Max-Age"] = []string{"600"}
		h["Vary"] = []string{"Origin, Access-Control-Request-Headers"}
		if asked := admittedHeaders(first(r.Header, "Access-Control-Request-Headers")); asked != "" {
			h["Access-Control-Allow-Headers"] = []string{asked}
		}
	}
	x.w.WriteHeader(http.StatusNoContent)
	x.method = "options"
	x.edge.metrics.observe(x, outcomeOK)
}

// mcpHeaders are the request headers a page may set, beyond Mcp-Param-*.
var mcpHeaders = map[string]bool{
	"accept": true, "authorization": true, "content-type": true, "last-event-id": true, "mcp-method": true,
	"mcp-name": true, "mcp-protocol-version": true, "mcp-session-id": true,
	"traceparent": true, "tracestate": true, "baggage": true,
}

// admittedHeaders returns those of the headers asked for that MCP clients use.
func admittedHeaders(asked string) string {
	var out []string
	for name := range strings.SplitSeq(asked, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		if mcpHeaders[name] || strings.HasPrefix(name, "mcp-param-") && isToken(name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// isToken reports whether s has only characters of lower-case header names.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}

// isLoopbackHost reports whether a Host value, with or without a port, names
// this machine to itself.
func isLoopbackHost(host string) bool {
	name := withoutPort(host)
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	return err == nil && ip.Zone() == "" && ip.Unmap().IsLoopback()
}

// withoutPort cuts the port off host, keeping the brackets of an IPv6 address.
func withoutPort(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 && (host[0] == '[' || strings.IndexByte(host, ':') == i) {
		return host[:i]
	}
	return host
}

func lowerSet(list []string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, s := range list {
		set[strings.ToLower(strings.TrimSuffix(s, "/"))] = true
	}
	return set
}
