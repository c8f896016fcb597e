package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/fabric"
	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/jsonrpc"
	"ripstop/router/session/keep"
	"ripstop/router/wire"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// lab is a node with a registry and a registrar, as `ripstop start` makes one.
type lab struct {
	node      *fabric.Node
	reg       *kv.Registry
	registrar *kv.Registrar
}

func newLab(t testing.TB) *lab {
	t.Helper()
	n, err := fabric.Open(t.Context(), fabric.Options{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	reg, r := serveRegistry(t, n)
	return &lab{n, reg, r}
}

// serveRegistry keeps the registry of n, as a node does.
func serveRegistry(t testing.TB, n *fabric.Node) (*kv.Registry, *kv.Registrar) {
	t.Helper()
	reg, err := kv.OpenRegistry(kv.RegistryOptions{Fabric: n.Fabric(), Node: n.Name(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	r, err := kv.NewRegistrar(reg, kv.RegistrarOptions{
		Agents: n.MCP(), ServerID: n.Server().ID(), Incarnation: n.Incarnation(), Speaks: wire.Own.Speaks,
		Open: func(c kv.Conn) bool { return n.Connected(c.ServerID, c.ClientID) }, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	serveSessions(t, n, reg)
	if err := n.OnDisconnect(func(s string, id uint64) {
		r.Disconnected(kv.Conn{ServerID: s, ClientID: id})
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.MCP().Flush(); err != nil { // from here on others' requests find them
		t.Fatal(err)
	}
	return reg, r
}

// serveSessions keeps the sessions of n's agents, as a node does.
func serveSessions(t testing.TB, n *fabric.Node, reg *kv.Registry) *keep.Keep {
	t.Helper()
	store, err := sessions.Open(sessions.Options{Fabric: n.Fabric(), Replicas: n.Votes(), Node: n.Name(), Incarnation: n.Incarnation(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	k := keep.New(keep.Options{
		Store: store, Registry: reg, Region: n.Region(), Node: n.Name(), Logger: quiet(),
		Pick: func(server, avoid string) *kv.Instance {
			for _, i := range reg.Instances(server) {
				if i.Instance != avoid {
					return i
				}
			}
			return nil
		},
		Writable: func() bool { return true }, NodeUp: func(string) bool { return true },
	})
	s, err := k.Serve(n.MCP(), n.Server().ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); k.Close(); store.Close() })
	return k
}

func (l *lab) dial(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(l.node.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (l *lab) client(t testing.TB) *wire.Client {
	t.Helper()
	c, err := wire.NewClient(l.dial(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (l *lab) attach(t testing.TB, server string, h router.HandlerFunc) *agent.Agent {
	t.Helper()
	nc := l.dial(t)
	relay, err := wire.NewClient(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	a, err := agent.Attach(agent.Options{
		Server: server, Transport: "go", Conn: nc, Relay: relay, Logger: quiet(),
		Backend: agent.Func(router.Info{Name: server, Versions: []string{"2025-11-25"}, Capabilities: []byte(`{"tools":{}}`)}, h),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(context.Background()) })
	select {
	case <-a.Registered():
	case <-time.After(5 * time.Second):
		t.Fatal("not registered within 5 s")
	}
	return a
}

func message(t testing.TB, text string) *jsonrpc.Message {
	t.Helper()
	m, err := jsonrpc.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const callEcho = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}`

func echo(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
	return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{"ok":true}`))}, nil
}

func TestPlainNATSRequest(t *testing.T) {
	l := newLab(t)
	var era router.Era = 99
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		era = req.Era
		// A bare caller takes one message; these must not reach it.
		out.Send(ctx, []byte(`{"jsonrpc":"2.0","method":"notifications/message"}`))
		return echo(ctx, req, out)
	})
	msg, err := l.dial(t).Request("mcp.v1.req.demo.tools.call.echo", []byte(callEcho), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(msg.Data), `{"jsonrpc":"2.0","id":1,"result":{"ok":true}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if era != router.EraBare || msg.Header.Get("Mcp-Frame") != "end" {
		t.Errorf("era %v, frame %q", era, msg.Header.Get("Mcp-Frame"))
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	l.attach(t, "demo", echo)
	nc := l.dial(t)
	for name, tt := range map[string]struct {
		subject, body, want string
	}{
		"other tool":        {"tools.call.safe", callEcho, `-32017`},
		"no name":           {"tools.call", callEcho, `-32017`},
		"other method":      {"tools.list", callEcho, `-32017`},
		"not canonical":     {"tools.call.%65cho", callEcho, `-32017`},
		"lower-case hex":    {"tools.call.a%2fb", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a/b"}}`, `-32017`},
		"method as name":    {"tools.call.echo", `{"jsonrpc":"2.0","id":1,"method":"tools/call/echo"}`, `-32017`},
		"malformed":         {"tools.call.echo", `{"jsonrpc":`, `-32700`},
		"no JSON-RPC":       {"tools.call.echo", `{"a":1}`, `-32600`},
		"unknown session":   {"_end", ``, `-32017`},
		"name is no string": {"tools.call.echo", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}`, `-32602`},
	} {
		t.Run(name, func(t *testing.T) {
			msg, err := nc.Request("mcp.v1.req.demo."+tt.subject, []byte(tt.body), 2*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(msg.Data), `"code":`+tt.want) || msg.Header.Get("Mcp-Frame") != "err" {
				t.Errorf("got %s %v, want code %s", msg.Data, msg.Header, tt.want)
			}
		})
	}
}

func TestNamesTravel(t *testing.T) {
	l := newLab(t)
	got := make(chan string, 1)
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		got <- req.Message.Name
		return echo(ctx, req, out)
	})
	c := l.client(t)
	for _, name := range []string{"", "a.b", "* >", "_x", "%41", "~y", "é", "file:///tmp/a b", strings.Repeat("n", 1024), strings.Repeat("n", 5000), strings.Repeat("é", 900)} {
		body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%s}}`, jsonrpc.Quote(name))
		_, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, body)}, router.Discard)
		if err != nil {
			t.Fatalf("name %.40q: %v", name, err)
		}
		if g := <-got; g != name {
			t.Errorf("name %.40q arrived as %.40q", name, g)
		}
	}
}

// collect is a Stream that keeps what it gets.
type collect struct {
	mu   sync.Mutex
	msgs []string
}

func (c *collect) Send(_ context.Context, msg []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.msgs = append(c.msgs, string(msg))
	return nil
}

func TestFramesArriveInOrder(t *testing.T) {
	l := newLab(t)
	const n = 2000
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		for i := range n {
			if err := out.Send(ctx, fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"n","params":{"i":%d}}`, i)); err != nil {
				return nil, err
			}
		}
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{}`)), Session: "s", Status: 206, Stream: true}, nil
	})
	var out collect
	reply, err := l.client(t).Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, callEcho)}, &out)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Session != "s" || reply.Status != 206 || !reply.Stream || len(out.msgs) != n {
		t.Fatalf("reply %+v after %d messages, want %d", reply, len(out.msgs), n)
	}
	for i, m := range out.msgs {
		if want := fmt.Sprintf(`{"jsonrpc":"2.0","method":"n","params":{"i":%d}}`, i); m != want {
			t.Fatalf("message %d is %s", i, m)
		}
	}
}

func TestBigMessagesBothWays(t *testing.T) {
	l := newLab(t)
	l.attach(t, "demo", func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Message.Name == "huge" {
			return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(jsonrpc.Quote(strings.Repeat("x", 21<<20))))}, nil
		}
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), req.Message.Params)}, nil
	})
	c := l.client(t)
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","a":"` + strings.Repeat("x", 16<<20) + `"}}`
	reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, body)}, router.Discard)
	if err != nil || len(reply.Body) < 16<<20 {
		t.Fatalf("16 MiB: %d bytes back, %v", len(reply.Body), err)
	}
	huge := message(t, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"huge"}}`)
	reply, err = c.Serve(t.Context(), &router.Request{Server: "demo", Message: huge}, router.Discard)
	if err != nil || !strings.Contains(string(reply.Body), `"id":7,"error":{"code":-32015`) {
		t.Errorf("a result of 21 MiB: %.200s, %v", reply.Body, err)
	}
	body = strings.Replace(body, `"a":"`, `"a":"`+strings.Repeat("y", 5<<20), 1)
	_, err = c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, body)}, router.Discard)
	if !errors.Is(err, router.ErrTooLarge) {
		t.Errorf("a request of 21 MiB: %v, want ErrTooLarge", err)
	}
}

func TestCancelReachesTheServer(t *testing.T) {
	l := newLab(t)
	began, ended := make(chan struct{}), make(chan struct{})
	l.attach(t, "demo", func(ctx context.Context, _ *router.Request, _ router.Stream) (*router.Reply, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	_, err := l.client(t).Serve(ctx, &router.Request{Server: "demo", Message: message(t, callEcho)}, router.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v", err)
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
		t.Error("the server was not told")
	}
}

func TestNobodyThere(t *testing.T) {
	l := newLab(t)
	c := l.client(t)
	_, err := c.Serve(t.Context(), &router.Request{Server: "none", Message: message(t, callEcho)}, router.Discard)
	if !errors.Is(err, router.ErrServerNotFound) {
		t.Errorf("unknown server: %v", err)
	}
	_, err = c.Serve(t.Context(), &router.Request{Server: "none", Instance: "abcdefghij", Message: message(t, callEcho)}, router.Discard)
	if !errors.Is(err, router.ErrUnavailable) {
		t.Errorf("unknown instance: %v", err)
	}
}

// opener is a server that opens sessions and says who it is.
func opener(id *string) router.HandlerFunc {
	return func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		reply := &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(jsonrpc.Quote(*id)))}
		if req.Method() == "initialize" {
			reply.Body = jsonrpc.NewResult(req.ID(), []byte(`{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"t","version":"1"}}`))
			reply.Session = router.NewSessionID(*id)
		}
		return reply, nil
	}
}

const callInitialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`

func TestSessionsReachTheirInstance(t *testing.T) {
	l := newLab(t)
	var ids [3]string
	for i := range ids {
		ids[i] = l.attach(t, "demo", opener(&ids[i])).Instance()
	}
	c := l.client(t)
	owners := map[string]bool{}
	for range 10 {
		opened, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, callInitialize)}, router.Discard)
		if err != nil || opened.Session == "" {
			t.Fatalf("%+v, %v", opened, err)
		}
		owner := router.SessionInstance(opened.Session)
		owners[owner] = true
		for range 10 { // the queue group picks another instance most of the time
			reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Session: opened.Session, Message: message(t, callEcho)}, router.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(reply.Body), owner) {
				t.Fatalf("session of %s was answered by %s", owner, reply.Body)
			}
		}
	}
	if len(owners) < 2 {
		t.Errorf("10 sessions are all with %v", owners)
	}
	for _, id := range []string{router.NewSessionID("zzzzzzzzzz"), router.NewSessionID(ids[0]), "junk"} {
		reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Session: id, Message: message(t, callEcho)}, router.Discard)
		if err != nil || reply.Status != 404 {
			t.Errorf("session that never was, %s: %+v, %v", id, reply, err)
		}
	}
}

// TestSessionOutlivesItsInstance: over NATS, the client keeps its session id.
func TestSessionOutlivesItsInstance(t *testing.T) {
	l := newLab(t)
	var ids [2]string
	agents := map[string]*agent.Agent{}
	for i := range ids {
		a := l.attach(t, "demo", opener(&ids[i]))
		ids[i] = a.Instance()
		agents[a.Instance()] = a
	}
	c := l.client(t)
	opened, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, callInitialize)}, router.Discard)
	if err != nil {
		t.Fatal(err)
	}
	owner := router.SessionInstance(opened.Session)
	if err := agents[owner].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		began := time.Now()
		reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Session: opened.Session, Message: message(t, callEcho)}, router.Discard)
		if err != nil || reply.Status != 0 || strings.Contains(string(reply.Body), owner) {
			t.Fatalf("call %d after its instance went: %+v, %v", i, reply, err)
		}
		if marked := strings.Contains(string(reply.Body), "ripstop/reinitialized"); marked && i > 0 {
			t.Errorf("call %d says again that the server's session is new: %s", i, reply.Body)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("call %d took %s", i, took)
		}
	}
}

func TestGoneWhenItsConnectionEnds(t *testing.T) {
	l := newLab(t)
	nc := l.dial(t)
	a, err := agent.Attach(agent.Options{Server: "demo", Conn: nc, Logger: quiet(), Backend: agent.Func(router.Info{}, echo)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close(t.Context())
	<-a.Registered()
	waitCount(t, l.reg, "demo", 1)
	start := time.Now()
	nc.Close() // what the node sees of a killed agent
	waitCount(t, l.reg, "demo", 0)
	if took := time.Since(start); took > time.Second {
		t.Errorf("gone after %s, want under 1 s", took)
	}
}

func waitCount(t testing.TB, reg *kv.Registry, server string, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); len(reg.Instances(server)) != n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d instances of %s after 5 s, want %d", len(reg.Instances(server)), server, n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRunSurvivesTheNode(t *testing.T) {
	dir := t.TempDir()
	openNode := func(addr string) *fabric.Node {
		n, err := fabric.Open(t.Context(), fabric.Options{Addr: addr, DataDir: dir, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := openNode("127.0.0.1:0")
	url := n.ClientURL()
	reg, _ := serveRegistry(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	attached := make(chan string, 1)
	go func() {
		done <- agent.Run(ctx, agent.RunOptions{
			Connection: agent.Connection{URLs: url, Logger: quiet()}, Server: "demo", Transport: "go",
			Backend: agent.Func(router.Info{}, echo), Attached: func(id string) { attached <- id },
		})
	}()
	<-attached
	waitCount(t, reg, "demo", 1)
	n.Close()
	n = openNode(strings.TrimPrefix(url, "nats://"))
	defer n.Close()
	reg, _ = serveRegistry(t, n)
	waitCount(t, reg, "demo", 1)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	waitCount(t, reg, "demo", 0)
}

func TestCloseLetsCallsFinish(t *testing.T) {
	l := newLab(t)
	began, finish := make(chan struct{}), make(chan struct{})
	a := l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		close(began)
		<-finish
		return echo(ctx, req, out)
	})
	c := l.client(t)
	got := make(chan error, 1)
	go func() {
		_, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, callEcho)}, router.Discard)
		got <- err
	}()
	<-began
	closed := make(chan error, 1)
	go func() { closed <- a.Close(t.Context()) }()
	waitCount(t, l.reg, "demo", 0)
	close(finish)
	if err := <-got; err != nil {
		t.Errorf("call in flight: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestMicroServiceShowsTheInstance(t *testing.T) {
	l := newLab(t)
	a := l.attach(t, "demo", echo)
	nc := l.dial(t)
	if _, err := nc.Request("mcp.v1.req.demo.tools.call.echo", []byte(callEcho), time.Second); err != nil {
		t.Fatal(err)
	}
	for subject, want := range map[string]string{
		"$SRV.PING.demo":                 `"type":"io.nats.micro.v1.ping_response"`,
		"$SRV.INFO.demo." + a.Instance(): `"subject":"mcp.v1.req.demo.\u003e"`,
		"$SRV.STATS.demo":                `"num_requests":1`,
	} {
		msg, err := nc.Request(subject, nil, time.Second)
		if err != nil || !strings.Contains(string(msg.Data), want) {
			t.Errorf("%s = %s, %v; want %s", subject, msg.Data, err, want)
		}
	}
}
