package edge_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/edge"
)

// arriving sends a call that arrives on a local address, as net/http tells it.
func arriving(t *testing.T, e http.Handler, method, local, host string, head http.Header) *httptest.ResponseRecorder {
	t.Helper()
	ctx := context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.ParseIP(local), Port: 8080}))
	r := httptest.NewRequestWithContext(ctx, method, "/mcp/demo", strings.NewReader(legacyCall))
	r.Host, r.Header = host, head
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	return w
}

func TestHost(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, AllowedHosts: []string{"MCP.local", "other:81"}})
	for _, tt := range []struct {
		local, host string
		ok          bool
	}{
		{"127.0.0.1", "localhost", true},
		{"127.0.0.1", "LOCALHOST:8080", true},
		{"127.0.0.1", "127.0.0.1:8080", true},
		{"127.8.0.1", "127.255.255.254", true},
		{"::1", "[::1]:8080", true},
		{"::1", "[::1]", true},
		{"127.0.0.1", "[::ffff:127.0.0.1]:80", true},
		{"127.0.0.1", "mcp.local", true},
		{"127.0.0.1", "mcp.LOCAL:9999", true},
		{"127.0.0.1", "other:81", true},
		{"127.0.0.1", "other:82", false},
		{"127.0.0.1", "evil.example.com", false},
		{"127.0.0.1", "localhost.evil.com", false},
		{"127.0.0.1", "127.0.0.1.evil.com:80", false},
		{"127.0.0.1", "192.168.1.1", false},
		{"::1", "evil.example.com:8080", false},
		{"127.0.0.1", "", false},
		{"127.0.0.1", ":8080", false},
		{"192.168.1.1", "anything.example.com", true},
	} {
		w := arriving(t, e, "POST", tt.local, tt.host, header())
		if tt.ok && w.Code != 200 {
			t.Errorf("Host %q on %s: %d %s, want 200", tt.host, tt.local, w.Code, w.Body)
		} else if !tt.ok {
			wantError(t, w, 403, router.CodeRefused, "null")
		}
	}
}

func TestLoopbackOption(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, Loopback: true})
	w := do(t, e, "POST", "/mcp/demo", legacyCall, header()) // httptest's Host is example.com
	wantError(t, w, 403, router.CodeRefused, "null")
}

func TestOrigin(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, AllowedOrigins: []string{"https://app.example.com", "http://x.test:81/"}})
	for _, tt := range []struct {
		local, origin string
		ok            bool
	}{
		{"127.0.0.1", "http://localhost:6274", true},
		{"127.0.0.1", "http://127.0.0.1", true},
		{"127.0.0.1", "https://[::1]:8443", true},
		{"127.0.0.1", "https://app.example.com", true},
		{"192.168.1.1", "https://APP.example.com", true},
		{"127.0.0.1", "http://x.test:81", true},
		{"127.0.0.1", "http://x.test", false},
		{"127.0.0.1", "https://evil.example.com", false},
		{"127.0.0.1", "http://localhost.evil.com", false},
		{"127.0.0.1", "http://localhost@evil.com", false},
		{"127.0.0.1", "null", false},
		{"127.0.0.1", "file://", false},
		{"127.0.0.1", "ftp://localhost", false},
		{"192.168.1.1", "http://localhost", false},
		{"192.168.1.1", "http://192.168.1.1", false},
	} {
		host := "localhost"
		if tt.local != "127.0.0.1" {
			host = "192.168.1.1"
		}
		w := arriving(t, e, "POST", tt.local, host, header("Origin", tt.origin))
		if tt.ok {
			if w.Code != 200 || w.Header().Get("Access-Control-Allow-Origin") != tt.origin || w.Header().Get("Vary") != "Origin" ||
				!strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), "Mcp-Session-Id") {
				t.Errorf("Origin %q on %s: %d %v", tt.origin, tt.local, w.Code, w.Header())
			}
			continue
		}
		wantError(t, w, 403, router.CodeRefused, "null")
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("Origin %q is refused and allowed", tt.origin)
		}
	}
	head := header()
	head["Origin"] = []string{"http://localhost", "https://evil.com"}
	wantError(t, arriving(t, e, "POST", "127.0.0.1", "localhost", head), 403, router.CodeRefused, "null")

	e = edge.New(edge.Options{Handler: &recording{}, AllowedOrigins: []string{"*"}})
	if w := arriving(t, e, "POST", "192.168.1.1", "h", header("Origin", "https://any.example.com")); w.Code != 200 {
		t.Errorf("any origin: %d", w.Code)
	}
}

func TestToken(t *testing.T) {
	token := "s3cret"
	h := &recording{}
	e := edge.New(edge.Options{Handler: h, Token: func() string { return token }})
	for _, tt := range []struct{ auth, challenge string }{
		{"", "Bearer"},
		{"Basic czNjcmV0", "Bearer"},
		{"Bearer", "Bearer"},
		{"Bearer ", "Bearer"},
		{"Bearer s3cre", `Bearer error="invalid_token"`},
		{"Bearer s3cret2", `Bearer error="invalid_token"`},
		{"Bearer S3CRET", `Bearer error="invalid_token"`},
	} {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			w := do(t, e, method, "/mcp/demo", legacyCall, header("Authorization", tt.auth, "Mcp-Session-Id", "s"))
			wantError(t, w, 401, router.CodeRefused, "null")
			if got := w.Header().Get("WWW-Authenticate"); got != tt.challenge {
				t.Errorf("%q: challenge %q, want %q", tt.auth, got, tt.challenge)
			}
		}
	}
	if h.count() != 0 {
		t.Errorf("the handler got %d requests", h.count())
	}
	if w := do(t, e, "POST", "/mcp/demo", legacyCall, header("Authorization", "bearer s3cret")); w.Code != 200 {
		t.Errorf("right token: %d %s", w.Code, w.Body)
	}
	token = "" // as when a setting is reloaded
	if w := do(t, e, "POST", "/mcp/demo", legacyCall, header()); w.Code != 200 {
		t.Errorf("no token set: %d %s", w.Code, w.Body)
	}
}

func TestPreflight(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}, Token: func() string { return "x" }, AllowedOrigins: []string{"https://app.example.com"}})
	w := do(t, e, "OPTIONS", "/mcp/demo", "", http.Header{"Origin": {"https://app.example.com"}, "Access-Control-Request-Method": {"POST"},
		"Access-Control-Request-Headers": {"content-type, Mcp-Session-Id,mcp-param-region, x-evil, mcp-param-\x01"}})
	h := w.Header()
	if w.Code != 204 || h.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
		h.Get("Access-Control-Allow-Methods") != "POST, GET, DELETE, OPTIONS" ||
		h.Get("Access-Control-Allow-Headers") != "content-type, mcp-session-id, mcp-param-region" {
		t.Errorf("preflight: %d %v", w.Code, h)
	}
	w = do(t, e, "OPTIONS", "/mcp/demo", "", http.Header{"Origin": {"https://evil.com"}, "Access-Control-Request-Method": {"POST"}})
	wantError(t, w, 403, router.CodeRefused, "null")
	w = do(t, e, "OPTIONS", "/mcp/demo", "", http.Header{})
	if w.Code != 204 || w.Header().Get("Allow") == "" || w.Header().Get("Access-Control-Allow-Methods") != "" {
		t.Errorf("plain OPTIONS: %d %v", w.Code, w.Header())
	}
}

func TestUsersTokens(t *testing.T) {
	var got string
	h := router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		got = req.Principal
		return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":{}}`)}, nil
	})
	users := func(token string) (string, bool) { return "ci", token == "of-ci" }
	shared := edge.New(edge.Options{Handler: h, Users: users, Token: func() string { return "s3cret" }})
	none := edge.New(edge.Options{Handler: h, Users: users})
	for _, tt := range []struct {
		e         *edge.Edge
		token     string
		status    int
		principal string
	}{
		{shared, "of-ci", 200, "ci"},
		{shared, "s3cret", 200, router.Anybody},
		{shared, "other", 401, ""},
		{none, "of-ci", 200, "ci"},
		{none, "s3cret", 401, ""},
		{none, "", 401, ""},
	} {
		got = ""
		w := do(t, tt.e, "POST", "/mcp/demo", legacyCall, header("Authorization", "Bearer "+tt.token))
		if w.Code != tt.status || got != tt.principal {
			t.Errorf("token %q: %d as %q, want %d as %q", tt.token, w.Code, got, tt.status, tt.principal)
		}
	}
}
