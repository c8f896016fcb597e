package access_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/access"
	"ripstop/router/agent"
	"ripstop/router/demo"
	"ripstop/router/edge"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// world is a NATS server with users, two servers attached to it ("demo" and
// "other"), and an HTTP edge.
type world struct {
	t     *testing.T
	node  *fabric.Node
	guard *access.Guard
	http  *httptest.Server
}

func newWorld(t *testing.T, users ...access.User) *world {
	t.Helper()
	var of []fabric.User
	for i := range users {
		u := &users[i]
		if u.Role == "" {
			u.Role = access.Client
		}
		u.Token = "the token of " + u.Name
		of = append(of, fabric.User{Name: u.Name, Token: u.Token, Publish: u.Publish(), Subscribe: u.Subscribe()})
	}
	n, err := fabric.Open(t.Context(), fabric.Options{
		Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet(), Users: of, Tokens: fabric.Tokens{Client: "the clients' token"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	keepRegistry(t, n)
	for _, name := range []string{"demo", "other"} {
		attach(t, n, name)
	}
	client, err := wire.NewClient(n.MCP())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	w := &world{t: t, node: n, guard: access.NewGuard(client, users)}
	t.Cleanup(w.guard.Close)
	w.http = httptest.NewServer(edge.New(edge.Options{Handler: w.guard, Users: w.guard.Authenticate, Token: func() string { return "the clients' token" }}))
	t.Cleanup(w.http.Close)
	return w
}

func attach(t *testing.T, n *fabric.Node, name string) {
	t.Helper()
	id := router.NewInstanceID()
	b, err := gosdk.New(id, demo.New(quiet()), quiet())
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.Attach(agent.Options{Server: name, Instance: id, Transport: "go", Backend: b, Conn: n.MCP(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-a.Registered():
	case <-time.After(10 * time.Second):
		t.Fatalf("%s is not registered", name)
	}
}

func keepRegistry(t *testing.T, n *fabric.Node) {
	t.Helper()
	reg, err := kv.OpenRegistry(kv.RegistryOptions{Fabric: n.Fabric(), Node: n.Name(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	r, err := kv.NewRegistrar(reg, kv.RegistrarOptions{
		Agents: n.MCP(), ServerID: n.Server().ID(), Incarnation: n.Incarnation(), Logger: quiet(),
		Open: func(c kv.Conn) bool { return n.Connected(c.ServerID, c.ClientID) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
}

// dial connects as a user, with the options of its own clients.
func (w *world) dial(user string) *nats.Conn {
	w.t.Helper()
	nc, err := agent.Connection{URLs: w.node.ClientURL(), User: user, Token: "the token of " + user, Logger: quiet()}.Dial(false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

func message(method, params string) *jsonrpc.Message {
	m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":` + params + `}`))
	if err != nil {
		panic(err)
	}
	return m
}

func echo(tool string) *jsonrpc.Message {
	return message("tools/call", `{"name":"`+tool+`","arguments":{"text":"hi"}}`)
}

// post sends a message over HTTP as a 2025-06-18 client without a session, or
// with one.
func (w *world) post(token, server, session string, m *jsonrpc.Message) (int, http.Header, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.http.URL+"/mcp/"+server, bytes.NewReader(m.Raw))
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
		"Authorization": "Bearer " + token, "Mcp-Session-Id": session,
	} {
		if v != "" {
			r.Header.Set(k, v)
		}
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

const initParams = `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`

// tries are what a user with the one tool "demo.echo" may and may not do.
var tries = []struct {
	server  string
	message *jsonrpc.Message
	may     bool
	names   string // what a refusal names
}{
	{"demo", echo("echo"), true, ""},
	{"demo", message("tools/list", "{}"), true, ""},
	{"demo", message("ping", "{}"), true, ""},
	{"demo", echo("count"), false, `tool "count" of server "demo"`},
	{"other", echo("echo"), false, `tool "echo" of server "other"`},
	{"other", message("tools/list", "{}"), false, `method "tools/list" of server "other"`},
	{"other", message("initialize", initParams), false, `method "initialize" of server "other"`},
	{"demo", message("resources/list", "{}"), false, `method "resources/list" of server "demo"`},
	{"demo", message("resources/read", `{"uri":"demo://x"}`), false, `resource "demo://x" of server "demo"`},
	{"demo", message("prompts/get", `{"name":"p"}`), false, `prompt "p" of server "demo"`},
	{"demo", message("completion/complete", "{}"), false, `method "completion/complete"`},
	{"demo", message("tasks/list", "{}"), false, `method "tasks/list"`},
}

func TestOneToolOverNATS(t *testing.T) {
	w := newWorld(t, access.User{Name: "ci", Tools: []string{"demo.echo"}})
	nc := w.dial("ci")
	client, err := wire.NewClient(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, tt := range tries {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		reply, err := client.Serve(ctx, &router.Request{Server: tt.server, Message: tt.message, Era: router.EraBare}, router.Discard)
		cancel()
		switch {
		case tt.may && (err != nil || !bytes.Contains(reply.Body, []byte(`"result"`))):
			t.Errorf("%s on %s: %v, %v", tt.message.Method, tt.server, reply, err)
		case !tt.may && (!errors.Is(err, router.ErrRefused) || !strings.Contains(err.Error(), tt.names)):
			t.Errorf("%s on %s: error %v does not name %s", tt.message.Method, tt.server, err, tt.names)
		}
	}
	// With no library at all.
	msg, err := nc.Request("mcp.v1.req.demo.tools.call.echo", echo("echo").Raw, 5*time.Second)
	if err != nil || !bytes.Contains(msg.Data, []byte("hi")) {
		t.Fatalf("a bare request: %v, %v", msg, err)
	}
	// The subject is what was granted, and the body must agree with it.
	msg, err = nc.Request("mcp.v1.req.demo.tools.call.echo", echo("count").Raw, 5*time.Second)
	if err != nil || !bytes.Contains(msg.Data, []byte("-32017")) {
		t.Errorf("another tool's body on the granted subject: %s, %v", msg.Data, err)
	}
}

func TestOneToolOverHTTP(t *testing.T) {
	w := newWorld(t, access.User{Name: "ci", Tools: []string{"demo.echo"}})
	status, header, body := w.post("the token of ci", "demo", "", message("initialize", initParams))
	session := header.Get("Mcp-Session-Id")
	if status != 200 || session == "" {
		t.Fatalf("initialize: %d %s", status, body)
	}
	for _, tt := range tries {
		id := session
		if tt.server != "demo" {
			id = ""
		}
		status, _, body := w.post("the token of ci", tt.server, id, tt.message)
		switch {
		case tt.may && (status != 200 || !strings.Contains(body, `"result"`)):
			t.Errorf("%s on %s: %d %s", tt.message.Method, tt.server, status, body)
		case tt.may || tt.server != "demo" && tt.message.Method != "initialize":
		case status != 403 || !strings.Contains(body, "-32017") || !strings.Contains(body, strings.ReplaceAll(tt.names, `"`, `\"`)) || !strings.Contains(body, "demo.echo"):
			t.Errorf("%s on %s: %d %s does not name %s", tt.message.Method, tt.server, status, body, tt.names)
		}
	}
	for token, want := range map[string]int{"the clients' token": 200, "another": 401, "": 401} {
		if status, _, body := w.post(token, "other", "", message("initialize", initParams)); status != want {
			t.Errorf("with %q: %d %s", token, status, body)
		}
	}
}

// TestListsHideWhatMayNotBeCalled over HTTP. Over NATS a list passes whole: it
// is one message between two others.
func TestListsHideWhatMayNotBeCalled(t *testing.T) {
	w := newWorld(t,
		access.User{Name: "one", Tools: []string{"demo.echo", "demo.absent"}},
		access.User{Name: "any", Tools: []string{"demo.*"}},
		access.User{Name: "whole", Servers: []string{"demo"}},
		access.User{Name: "free"})
	count := map[string]int{}
	for _, user := range []string{"one", "any", "whole", "free"} {
		_, header, _ := w.post("the token of "+user, "demo", "", message("initialize", initParams))
		status, _, body := w.post("the token of "+user, "demo", header.Get("Mcp-Session-Id"), message("tools/list", "{}"))
		if _, data, ok := strings.Cut(body, "data: "); ok {
			body = data
		}
		var list struct {
			Result struct{ Tools []struct{ Name string } }
		}
		if err := json.Unmarshal([]byte(body), &list); status != 200 || err != nil {
			t.Fatalf("%s: %d %s (%v)", user, status, body, err)
		}
		count[user] = len(list.Result.Tools)
		if public := strings.Contains(body, `"cacheScope":"public"`); public == (user == "one") {
			t.Errorf("%s: a shared cache may keep it: %v", user, public)
		}
		if user == "one" && (count[user] != 1 || list.Result.Tools[0].Name != "echo") {
			t.Errorf("%s sees %v", user, list.Result.Tools)
		}
	}
	if count["any"] < 2 || count["any"] != count["whole"] || count["any"] != count["free"] {
		t.Errorf("tools seen: %v", count)
	}
}

// TestInboxesArePrivate: nobody but the user, and the node, may read replies
// that are meant for it.
func TestInboxesArePrivate(t *testing.T) {
	w := newWorld(t, access.User{Name: "a", Tools: []string{"demo.echo"}}, access.User{Name: "b"},
		access.User{Name: "agent-c", Role: access.Agent, Servers: []string{"other"}})
	role, err := agent.Connection{URLs: w.node.ClientURL(), Token: "the clients' token", Logger: quiet()}.Dial(false)
	if err != nil {
		t.Fatal(err)
	}
	defer role.Close()
	attacher, err := agent.Connection{URLs: w.node.ClientURL(), User: "agent", Token: "the clients' token", Logger: quiet()}.Dial(false)
	if err != nil {
		t.Fatal(err)
	}
	defer attacher.Close()
	a := w.dial("a")
	for name, nc := range map[string]*nats.Conn{"a": a, "b": w.dial("b"), "agent-c": w.dial("agent-c"), "client": role, "agent": attacher} {
		for _, subject := range []string{"_INBOX.user.a.>", "_INBOX.user.a.x.y", "_INBOX.>", "_INBOX.user.>", "_INBOX.user.*.>", ">", "*.>", "_INBOX.*.*.*.*", "*.*.a.x.y"} {
			got := hears(t, nc, w.node.MCP(), subject, "_INBOX.user.a.x.y")
			if own := name == "a" && strings.HasPrefix(subject, "_INBOX.user.a."); got != own {
				t.Errorf("%s hears what is for a on %s: %v", name, subject, got)
			}
		}
	}
	for name, nc := range map[string]*nats.Conn{"client": role, "agent": attacher} {
		if !hears(t, nc, w.node.MCP(), "_INBOX.abc.*", "_INBOX.abc.d") {
			t.Errorf("role %s does not hear what is for it", name)
		}
	}
}

// hears reports whether nc, subscribed to subject, gets what the node sends on
// another.
func hears(t *testing.T, nc, node *nats.Conn, subject, sent string) bool {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err == nil {
		err = nc.Flush()
	}
	if err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		t.Fatal(err)
	}
	if err := errors.Join(node.Publish(sent, nil), node.Flush(), nc.Flush()); err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		t.Fatal(err)
	}
	_, err = sub.NextMsg(10 * time.Millisecond) // it came before the answer to the last flush, or will not
	_ = sub.Unsubscribe()
	return err == nil
}

// TestAgentOfOneServer attaches what it may, and is told what it may not.
func TestAgentOfOneServer(t *testing.T) {
	w := newWorld(t, access.User{Name: "gh", Role: access.Agent, Servers: []string{"mine"}}, access.User{Name: "caller", Tools: []string{"mine.hello"}})
	run := func(ctx context.Context, server string) error {
		hello := agent.Func(router.Info{Name: "t"}, func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
			return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":{"hello":"there"}}`)}, nil
		})
		return agent.Run(ctx, agent.RunOptions{
			Connection: agent.Connection{URLs: w.node.ClientURL(), User: "gh", Token: "the token of gh", Logger: quiet()},
			Server:     server, Transport: "go", Backend: hello, Drain: time.Second,
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := run(ctx, "demo"); err == nil || !strings.Contains(err.Error(), `NATS user "gh" may not attach`) || ctx.Err() != nil {
		t.Errorf("attach another server: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- run(ctx, "mine") }()
	nc := w.dial("caller")
	for deadline := time.Now().Add(5 * time.Second); ; {
		msg, err := nc.Request("mcp.v1.req.mine.tools.call.hello", echo("hello").Raw, time.Second)
		if err == nil && bytes.Contains(msg.Data, []byte("there")) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("call: %v, %v", msg, err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("detach: %v", err)
	}
}

// TestRevoked: a user who loses a right loses its requests in flight, and one
// who doesn't keeps them.
func TestRevoked(t *testing.T) {
	began, over := make(chan string, 2), make(chan string, 2)
	h := router.HandlerFunc(func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		began <- req.Principal
		<-ctx.Done()
		return nil, ctx.Err()
	})
	keeps, loses := access.User{Name: "keeps", Token: "1", Role: access.Client, Tools: []string{"demo.echo"}}, access.User{Name: "loses", Token: "2", Role: access.Client}
	g := access.NewGuard(h, []access.User{keeps, loses})
	ctx, stop := context.WithCancel(t.Context())
	errs := map[string]chan error{"keeps": make(chan error, 1), "loses": make(chan error, 1)}
	for name, c := range errs {
		go func() {
			_, err := g.Serve(ctx, &router.Request{Server: "demo", Message: echo("echo"), Principal: name}, router.Discard)
			c <- err
			over <- name
		}()
		<-began
	}
	keeps.Token = "3"
	loses.Tools = []string{"demo.count"}
	g.Use([]access.User{keeps, loses})
	if name := <-over; name != "loses" {
		t.Errorf("%s lost its request", name)
	}
	if err := <-errs["loses"]; !errors.Is(err, router.ErrRefused) || !strings.Contains(err.Error(), "may no longer use tool") {
		t.Errorf("got %v", err)
	}
	for token, want := range map[string]string{"1": "", "2": "loses", "3": "keeps", "": ""} {
		if name, ok := g.Authenticate(token); name != want || ok != (want != "") {
			t.Errorf("token %q is %q", token, name)
		}
	}
	g.Use([]access.User{loses})
	if err := <-errs["keeps"]; !errors.Is(err, router.ErrRefused) {
		t.Errorf("a user that is gone: %v", err)
	}
	if _, err := g.Serve(ctx, &router.Request{Server: "demo", Message: echo("echo"), Principal: "keeps"}, router.Discard); err == nil || !strings.Contains(err.Error(), "not in the users file") {
		t.Errorf("a request of a user that is gone: %v", err)
	}
	stop()
}
