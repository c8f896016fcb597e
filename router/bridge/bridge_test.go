package bridge_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/bridge"
	"ripstop/router/jsonrpc"
)

// client is the far end of a Run: a person at the pipes.
type client struct {
	t      testing.TB
	in     *io.PipeWriter
	out    *bufio.Reader
	outEnd *io.PipeReader
	stop   context.CancelFunc
	done   chan error
}

// start runs a bridge on h. The test ends it with end, or by itself.
func start(t testing.TB, h router.Handler, retryFor time.Duration) *client {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	c := &client{t: t, in: inW, out: bufio.NewReader(outR), outEnd: outR, stop: stop, done: make(chan error, 1)}
	go func() {
		err := bridge.Run(ctx, bridge.Options{Handler: h, Server: "demo", In: inR, Out: outW, RetryFor: retryFor})
		_ = inR.Close()
		_ = outW.Close()
		c.done <- err
	}()
	return c
}

func (c *client) send(lines ...string) {
	c.t.Helper()
	for _, l := range lines {
		if _, err := io.WriteString(c.in, l+"\n"); err != nil {
			c.t.Fatalf("send %.80s: %v", l, err)
		}
	}
}

func (c *client) line() string {
	c.t.Helper()
	l, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read a line: %v", err)
	}
	return strings.TrimSuffix(l, "\n")
}

func (c *client) want(want string) {
	c.t.Helper()
	if got := c.line(); got != want {
		c.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// wantError reads an error response.
func (c *client) wantError(id string, code int) string {
	c.t.Helper()
	line := c.line()
	var m struct {
		ID    json.RawMessage
		Error struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal([]byte(line), &m); err != nil || string(m.ID) != id || m.Error.Code != code {
		c.t.Fatalf("got %s, want error %d for id %s", line, code, id)
	}
	return m.Error.Message
}

// end closes the client's end, and wants Run to return nil with nothing more
// written.
func (c *client) end() {
	c.t.Helper()
	_ = c.in.Close()
	rest, _ := io.ReadAll(c.out)
	if err := <-c.done; err != nil {
		c.t.Errorf("Run: %v", err)
	}
	if len(rest) > 0 {
		c.t.Errorf("left over: %s", rest)
	}
	c.stop()
}

func request(id int, method string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q}`, id, method)
}

func modern(id int, method string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q,"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`, id, method)
}

func result(id any, result string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%v,"result":%s}`, id, result)
}

func ok(req *router.Request, body string) (*router.Reply, error) {
	return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(body))}, nil
}

func TestEraPerMessage(t *testing.T) {
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Op == router.OpEnd {
			return &router.Reply{}, nil
		}
		body := fmt.Sprintf(`{"protocolVersion":"2025-06-18","saw":"%s %s %s/%s"}`, req.Server, req.Era, req.Session, req.Version)
		reply, err := ok(req, body)
		if req.Method() == "initialize" {
			reply.Session = "s1"
		}
		return reply, err
	}), 0)
	c.send(modern(1, "tools/list"))
	c.want(result(1, `{"protocolVersion":"2025-06-18","saw":"demo modern /2026-07-28"}`))
	c.send(request(2, "initialize"))
	c.want(result(2, `{"protocolVersion":"2025-06-18","saw":"demo legacy /"}`))
	c.send(request(3, "tools/list"))
	c.want(result(3, `{"protocolVersion":"2025-06-18","saw":"demo legacy s1/2025-06-18"}`))
	c.send(modern(4, "tools/list"))
	c.want(result(4, `{"protocolVersion":"2025-06-18","saw":"demo modern /2026-07-28"}`))
	c.end()
}

func TestBadLines(t *testing.T) {
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		switch req.Method() {
		case "void":
			return &router.Reply{}, nil
		case "boom":
			return nil, errors.New("boom")
		}
		return ok(req, "{}")
	}), -1)
	c.send("", "  ", "{oops")
	c.wantError("null", jsonrpc.CodeParse)
	c.send(`{"jsonrpc":"2.0","id":7,"method":5}`)
	c.wantError("7", jsonrpc.CodeInvalidRequest)
	c.send(`[` + request(1, "ping") + `]`)
	if text := c.wantError("null", jsonrpc.CodeInvalidRequest); !strings.Contains(text, "2025-03-26") {
		t.Errorf("a batch is refused with %q", text)
	}
	go c.send(`{"x":"`+strings.Repeat("x", bridge.MaxLine)+`"}`, request(8, "ping"))
	c.wantError("null", router.CodeTooLarge)
	c.want(result(8, "{}"))
	c.send(request(9, "void"))
	c.wantError("9", router.CodeBackend)
	c.send(request(10, "boom"))
	c.wantError("10", jsonrpc.CodeInternal)
	c.send(request(11, "ping") + "\r")
	c.want(result(11, "{}"))
	c.end()
}

func TestLongestLine(t *testing.T) {
	pad := strings.Repeat("x", bridge.MaxLine-len(`{"jsonrpc":"2.0","id":1,"method":""}`))
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		return ok(req, fmt.Sprint(len(req.Message.Raw)))
	}), -1)
	go c.send(`{"jsonrpc":"2.0","id":1,"method":"` + pad + `"}`)
	c.want(result(1, fmt.Sprint(bridge.MaxLine)))
	c.end()
}

func TestMessagesAreWholeLines(t *testing.T) {
	c := start(t, router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		if err := out.Send(ctx, []byte("{\n \"a\":\r\n1}")); err != nil {
			return nil, err
		}
		return ok(req, "{\n}")
	}), -1)
	c.send(request(1, "x"))
	c.want(`{  "a":  1}`)
	c.want(result(1, "{ }"))
	c.end()
}

func TestBatch(t *testing.T) {
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Message != nil && req.Message.Kind != jsonrpc.Request {
			return &router.Reply{Status: 202}, nil
		}
		return ok(req, `{"protocolVersion":"2025-03-26"}`)
	}), -1)
	c.send(request(1, "initialize"))
	c.want(result(1, `{"protocolVersion":"2025-03-26"}`))
	c.send("[" + request(2, "a") + `,{"jsonrpc":"2.0","method":"notifications/x"},5,` + request(3, "b") + "]")
	var got []struct{ ID any }
	if err := json.Unmarshal([]byte(c.line()), &got); err != nil || len(got) != 3 {
		t.Fatalf("got %v, %v, want three responses", got, err)
	}
	ids := []string{fmt.Sprint(got[0].ID), fmt.Sprint(got[1].ID), fmt.Sprint(got[2].ID)}
	slices.Sort(ids)
	if want := []string{"2", "3", "<nil>"}; !slices.Equal(ids, want) {
		t.Errorf("ids %v, want %v", ids, want)
	}
	c.send(`[{"jsonrpc":"2.0","method":"notifications/x"}]`, request(4, "c"))
	c.want(result(4, `{"protocolVersion":"2025-03-26"}`)) // a batch of notifications has no answer
	c.end()
}

// TestOrder holds a notification up and wants the request after it to wait, but
// not the cancel.
func TestOrder(t *testing.T) {
	hold := make(chan struct{})
	cancelled := make(chan struct{})
	var order []string // written in turn, which is what is tested
	c := start(t, router.HandlerFunc(func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		switch req.Method() {
		case "slow":
			<-ctx.Done()
			close(cancelled)
			return nil, ctx.Err()
		case "notifications/a":
			<-hold
		}
		order = append(order, req.Method())
		if req.Message.Kind != jsonrpc.Request {
			return &router.Reply{Status: 202}, nil
		}
		return ok(req, "{}")
	}), -1)
	c.send(request(1, "slow"),
		`{"jsonrpc":"2.0","method":"notifications/a"}`, `{"jsonrpc":"2.0","method":"notifications/b"}`, request(2, "last"),
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}`)
	<-cancelled
	close(hold)
	c.want(result(2, "{}")) // and no answer to 1
	c.end()
	if want := []string{"notifications/a", "notifications/b", "last"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestTooManyRequests(t *testing.T) {
	release := make(chan struct{})
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		<-release
		return ok(req, "{}")
	}), -1)
	go func() {
		for i := range 1025 {
			c.send(request(i, "x"))
		}
	}()
	c.wantError("1024", router.CodeOverloaded)
	close(release)
	for range 1024 {
		c.line()
	}
	c.end()
}
