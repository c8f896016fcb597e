package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric/addrtest"
	"ripstop/fabric/tlstest"
)

// secured is a node whose listeners have TLS.
type secured struct {
	*process
	http, nats string
	ca         string
}

func startSecured(t testing.TB, ca string, args ...string) *secured {
	t.Helper()
	n := launchSecured(t, ca, args...)
	n.greeted(t)
	return n
}

// launchSecured starts a node that may have to wait for others.
func launchSecured(t testing.TB, ca string, args ...string) *secured {
	t.Helper()
	full := append([]string{"start", "--nats-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data"), "--tls-ca", ca}, args...)
	return &secured{process: start(t, ripstop(t), full...), ca: ca}
}

// greeted waits for the greeting and takes the addresses from it.
func (n *secured) greeted(t testing.TB) {
	t.Helper()
	n.nats = wordWith(n.expect(t, "MCP over NATS", 20*time.Second), "tls://")
	n.http = strings.TrimSuffix(wordWith(n.expect(t, "/health", time.Second), "https://"), "/health")
	if n.nats == "" || n.http == "" {
		t.Fatal("the greeting does not say tls:// and https://")
	}
}

// client returns an HTTP client that believes the node's CA, with a connection
// of its own.
func (n *secured) client(t testing.TB, certs ...tls.Certificate) *http.Client {
	t.Helper()
	text, err := os.ReadFile(n.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// send makes a request and returns its answer and what the server showed.
func (n *secured) send(t testing.TB, c *http.Client, method, path, body, token, session string) (answer, *tls.ConnectionState) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, n.http+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}, resp.TLS
}

func (n *secured) cli(t testing.TB, args ...string) result {
	t.Helper()
	return run(t, 60*time.Second, "", ripstop(t), append(args, "--nats", n.nats, "--tls-ca", n.ca)...)
}

// reload sends SIGHUP and waits for the log to say text once more.
func (n *secured) reload(t testing.TB, text string) {
	t.Helper()
	before := strings.Count(n.stderr.String(), text)
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() string {
		if strings.Count(n.stderr.String(), text) > before {
			return ""
		}
		return "the log does not say " + text
	})
}

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSecretsChangeUnderALiveNode rotates the certificate and the token of a
// node that serves: new connections see the new ones, and an agent, a NATS
// client and an HTTP stream that were there stay.
func TestSecretsChangeUnderALiveNode(t *testing.T) {
	ca := tlstest.NewCA(t, "CA")
	cert, key := ca.Issue(t, "node")
	const first, second = "the-first-token-of-all", "the-second-token-of-all"
	token := writeFile(t, filepath.Join(t.TempDir(), "token"), first)
	n := startSecured(t, ca.File, "--tls-cert", cert, "--tls-key", key, "--token-file", token)
	agent := start(t, ripstop(t), "serve", "more", "--nats", n.nats, "--tls-ca", ca.File, "--token-file", token, "--shared", "--", everything(t))
	agent.expect(t, "Attached as instance", 20*time.Second)

	a, before := n.send(t, n.client(t), "POST", "/mcp/demo", initialize, first, "")
	session := a.header.Get("Mcp-Session-Id")
	if a.status != 200 || session == "" || before.NegotiatedProtocol != "h2" {
		t.Fatalf("initialize: %d %s over %q", a.status, a.body, before.NegotiatedProtocol)
	}
	nc, err := nats.Connect(n.nats, nats.RootCAs(ca.File), nats.UserInfo("client", first), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	streams := []io.Reader{openStream(t, n, n.client(t), first, session)}
	one := n.client(t)
	one.Transport.(*http.Transport).ForceAttemptHTTP2 = false // HTTP/1.1: the edge takes such a stream over
	one.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	b, _ := n.send(t, one, "POST", "/mcp/demo", initialize, first, "")
	streams = append(streams, openStream(t, n, one, first, b.header.Get("Mcp-Session-Id")))

	ca.Issue(t, "node")
	writeFile(t, token, second)
	n.reload(t, "reloaded tokens, users and certificates")

	a, after := n.send(t, n.client(t), "POST", "/mcp/demo", initialize, second, "")
	if a.status != 200 || after.PeerCertificates[0].Equal(before.PeerCertificates[0]) {
		t.Errorf("new token, new connection: %d %s; same certificate: %v", a.status, a.body, after.PeerCertificates[0].Equal(before.PeerCertificates[0]))
	}
	if a, _ := n.send(t, n.client(t), "POST", "/mcp/demo", initialize, first, ""); a.status != 401 {
		t.Errorf("old token: %d", a.status)
	}
	if _, err := nats.Connect(n.nats, nats.RootCAs(ca.File), nats.UserInfo("client", first)); err == nil {
		t.Error("a new NATS connection with the old token")
	}
	if err := nc.Flush(); err != nil {
		t.Errorf("the NATS client that was there: %v", err)
	}
	n.cli(t, "tools", "more", "--token-file", token).ok(t)
	n.send(t, n.client(t), "POST", "/mcp/demo", callBody(7, "count", `{"to":1}`), second, session)
	for i, s := range streams {
		if !stillOpen(s) {
			t.Errorf("HTTP stream %d ended", i+1)
		}
	}

	for file, bad := range map[string]string{token: "short", key: "no key"} {
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, bad)
		n.reload(t, "not reloaded: what was loaded before stays in force")
		if a, _ := n.send(t, n.client(t), "POST", "/mcp/demo", initialize, second, ""); a.status != 200 {
			t.Errorf("after a bad %s: %d %s", filepath.Base(file), a.status, a.body)
		}
		writeFile(t, file, string(good))
	}
	if code := n.stop(t); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// openStream opens the session's GET stream and returns it once it is open.
func openStream(t testing.TB, n *secured, c *http.Client, token, session string) io.Reader {
	t.Helper()
	c.Timeout = 0
	req, err := http.NewRequestWithContext(t.Context(), "GET", n.http+"/mcp/demo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Accept": {"text/event-stream"}, "Authorization": {"Bearer " + token}, "Mcp-Session-Id": {session}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		t.Fatalf("GET: %d", resp.StatusCode)
	}
	return resp.Body
}

// stillOpen reports whether a stream has not ended within a moment.
func stillOpen(r io.Reader) bool {
	end := make(chan struct{})
	go func() { // ends with the stream, at the latest with the test
		_, _ = io.Copy(io.Discard, r)
		close(end)
	}()
	select {
	case <-end:
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

// TestUsersOfANode: single tools over HTTP, NATS and the command line; what is
// refused is named.
func TestUsersOfANode(t *testing.T) {
	dir := t.TempDir()
	const free, limited = "the-token-of-a-free-user", "the-token-of-a-limited-user"
	users := writeFile(t, filepath.Join(dir, "users.yaml"), "users:\n  - {name: free, token: "+free+"}\n  - {name: ci, token: "+limited+", tools: [demo.echo]}\n")
	ciToken, freeToken := writeFile(t, filepath.Join(dir, "ci"), limited), writeFile(t, filepath.Join(dir, "free"), free)
	n := startNode(t, "--users-file", users)
	if r := n.cli(t, "ls"); r.code == 0 {
		t.Errorf("without a user: %s", r.out)
	}
	n.cli(t, "ls", "--user", "free", "--token-file", freeToken).ok(t).says(t, "demo")
	n.cli(t, "call", "demo", "echo", "text=hi", "--user", "ci", "--token-file", ciToken).ok(t).says(t, "hi")
	if r := n.cli(t, "call", "demo", "count", "to=1", "--user", "ci", "--token-file", ciToken).says(t, `tool "count" of server "demo"`); r.code == 0 {
		t.Error("called a tool that was not granted")
	}
	a := n.do(t, "POST", "/mcp/demo", initialize, "Authorization", "Bearer "+limited)
	id := a.header.Get("Mcp-Session-Id")
	call := func(tool, args string) answer {
		return n.do(t, "POST", "/mcp/demo", callBody(1, tool, args), "Authorization", "Bearer "+limited, "Mcp-Session-Id", id)
	}
	if a := call("echo", `{"text":"hi"}`); a.status != 200 || !strings.Contains(a.body, "hi") {
		t.Errorf("echo: %d %s", a.status, a.body)
	}
	if a := call("count", `{"to":1}`); a.status != 403 || !strings.Contains(a.body, `tool \"count\" of server \"demo\"`) {
		t.Errorf("count: %d %s", a.status, a.body)
	}
	if a := n.do(t, "POST", "/mcp", initialize, "Authorization", "Bearer "+limited); a.status != 403 {
		t.Errorf("all servers as one: %d %s", a.status, a.body)
	}
}

var opensslLine = regexp.MustCompile(`(?m)^    (openssl (?:req|x509) .*)$`)

// TestCertificatesOfTheDocs makes the certificates as docs/security.md says and
// runs a node with them that demands one of its clients.
func TestCertificatesOfTheDocs(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		need(t, "needs openssl")
	}
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	lines := opensslLine.FindAllSubmatch(text, -1)
	if len(lines) != 5 {
		t.Fatalf("%d openssl lines in the docs", len(lines))
	}
	for _, l := range lines {
		cmd := exec.Command("sh", "-c", string(l[1]))
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", l[1], err, out)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	n := startSecured(t, at("ca.crt"), "--tls-cert", at("n1.crt"), "--tls-key", at("n1.key"), "--tls-verify")
	n.cli(t, "call", "demo", "echo", "text=hi", "--tls-cert", at("ci.crt"), "--tls-key", at("ci.key")).ok(t).says(t, "hi")
	if r := n.cli(t, "ls").says(t, "demands a client certificate", "--tls-cert"); r.code != 3 {
		t.Errorf("without a certificate: exit %d\n%s%s", r.code, r.out, r.err)
	}
	run(t, 20*time.Second, "", ripstop(t), "ls", "--nats", n.nats).says(t, "signed by no CA", "--tls-ca FILE")
	run(t, 20*time.Second, "", ripstop(t), "status", "--nats", n.nats).says(t, "signed by no CA", "--tls-ca FILE")
	pair, err := tls.LoadX509KeyPair(at("ci.crt"), at("ci.key"))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/health": 200, "/ready": 200, "/metrics": 403, "/mcp/demo": 403} {
		if a, _ := n.send(t, n.client(t), "GET", path, "", "", ""); a.status != want {
			t.Errorf("%s without a certificate: %d %s", path, a.status, a.body)
		}
	}
	if a, _ := n.send(t, n.client(t, pair), "POST", "/mcp/demo", initialize, "", ""); a.status != 200 {
		t.Errorf("with a certificate: %d %s", a.status, a.body)
	}
	if a, _ := n.send(t, n.client(t, pair), "GET", "/metrics", "", "", ""); !strings.Contains(a.body, `ripstop_certificate_expiry_timestamp_seconds{for="clients"}`) {
		t.Error("no metric of the certificate's end")
	}
	resp, err := http.Post("http://"+strings.TrimPrefix(n.http, "https://")+"/mcp/demo", "application/json", bytes.NewReader([]byte(initialize)))
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("in clear: %d", resp.StatusCode)
		}
	}
	// A key of another certificate, and a CA that is none, are named at the start.
	for want, args := range map[string][]string{
		"does not go with certificate":          {"--tls-cert", at("n1.crt"), "--tls-key", at("ci.key")},
		"is no CA":                              {"--tls-cert", at("n1.crt"), "--tls-key", at("n1.key"), "--tls-ca", at("n1.crt")},
		"needs --tls-ca":                        {"--tls-cert", at("n1.crt"), "--tls-key", at("n1.key"), "--tls-verify"},
		"tls-cert (default): is missing":        {"--tls-verify"},
		"lacks serverAuth":                      {"--cluster-addr", "127.0.0.1:0", "--peers", "a:1,b:2,c:3", "--tls-ca", at("ca.crt"), "--tls-cert", at("ci.crt"), "--tls-key", at("ci.key")},
		"CA that has signed their certificates": {"--cluster-addr", "127.0.0.1:0", "--peers", "a:1,b:2,c:3", "--tls-cert", at("n1.crt"), "--tls-key", at("n1.key")},
	} {
		if r := run(t, 20*time.Second, "", ripstop(t), append([]string{"config", "show"}, args...)...).says(t, want); r.code != 2 {
			t.Errorf("%v: exit %d", args, r.code)
		}
	}
}

// TestClusterOverTLS: three nodes whose listeners and routes all have TLS, from
// two settings and a CA.
func TestClusterOverTLS(t *testing.T) {
	ca := tlstest.NewCA(t, "CA")
	secret := writeFile(t, filepath.Join(t.TempDir(), "secret"), "a-secret-that-the-nodes-share")
	peers := []string{addrtest.Reserve(t), addrtest.Reserve(t), addrtest.Reserve(t)}
	var nodes []*secured
	for i, addr := range peers {
		cert, key := ca.Issue(t, fmt.Sprintf("n%d", i+1))
		nodes = append(nodes, launchSecured(t, ca.File, "--name", fmt.Sprintf("n%d", i+1), "--tls-cert", cert, "--tls-key", key,
			"--secret-file", secret, "--cluster-addr", addr, "--peers", strings.Join(peers, ",")))
	}
	for _, n := range nodes {
		n.greeted(t)
	}
	healthy := func() {
		t.Helper()
		eventually(t, 30*time.Second, func() string {
			r := nodes[0].cli(t, "status")
			if r.code != 0 || strings.Count(r.out, " up ") != 3 || !strings.Contains(r.out, "region local: healthy") {
				return r.out + r.err
			}
			return ""
		})
	}
	healthy()
	for _, n := range nodes {
		n.reload(t, "reloaded tokens, users and certificates")
	}
	healthy()
}
