package edge_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

// pipes is a listener whose connections are net.Pipes: they have deadlines and
// no buffer, and work in a synctest bubble, where 10 minutes pass at once.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// serve serves the edge on pipes until the test is over. It must be called
// inside the bubble.
func serve(t *testing.T, e *edge.Edge) *pipes {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := edge.NewServer("", e)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(p) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
		defer cancel()
		_ = e.Shutdown(ctx) // what goes on without its client has nothing else that ends it
		_ = srv.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("serve: %v", err)
		}
	})
	return p
}

// client is one connection of a client that reads and writes by hand.
type client struct {
	t     *testing.T
	conn  net.Conn
	r     *bufio.Reader
	body  *bufio.Reader
	start time.Time
}

// send opens a connection and writes one request. Without a length in head,
// the body's is added.
func send(t *testing.T, p *pipes, method, head, body string) *client {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	p.conns <- far
	c := &client{t: t, conn: near, r: bufio.NewReader(near), start: time.Now()}
	if !strings.Contains(head, "Content-Length") {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	c.write(method + " /mcp/demo HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n" + head + "\r\n" + body)
	return c
}

const (
	modernHead = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: echo\r\n"
	legacyHead = "MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: s1\r\n"
)

func (c *client) write(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// response reads the head of the response.
func (c *client) response(status int) *http.Response {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	if resp.StatusCode != status {
		c.t.Fatalf("status %d, want %d: %s", resp.StatusCode, status, readAll(c.t, resp.Body))
	}
	c.body = bufio.NewReader(resp.Body)
	return resp
}

// want reads the next event or comment, and checks when it came.
func (c *client) want(block string, at time.Duration) {
	c.t.Helper()
	var got strings.Builder
	for {
		line, err := c.body.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read stream after %q: %v", got.String(), err)
		}
		if line == "\n" {
			break
		}
		got.WriteString(line)
	}
	if got.String() != block+"\n" {
		c.t.Errorf("got %q, want %q", got.String(), block)
	}
	if since := time.Since(c.start); since != at {
		c.t.Errorf("%q came after %v, want %v", block, since, at)
	}
}

func (c *client) wantEvent(data string, at time.Duration) {
	c.t.Helper()
	c.want("event: message\ndata: "+data, at)
}

// wantFirst reads the first event, which carries the time to reconnect if the
// client knows of that.
func (c *client) wantFirst(data string, modern bool, at time.Duration) {
	c.t.Helper()
	if modern {
		c.wantEvent(data, at)
		return
	}
	c.want("event: message\nretry: 1000\ndata: "+data, at)
}

func (c *client) wantEnd() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.body); err != nil || len(rest) != 0 {
		c.t.Errorf("after the end: %q, %v", rest, err)
	}
}

func TestKeepalive(t *testing.T) {
	for _, modern := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			id := make(chan string, 1)
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				id <- req.StreamID
				for _, pause := range []time.Duration{20 * time.Second, 16 * time.Second, time.Second, 31 * time.Second} {
					time.Sleep(pause)
					if err := out.Send(ctx, []byte(note)); err != nil {
						return nil, err
					}
				}
				time.Sleep(14 * time.Second)
				return &router.Reply{Body: []byte(result)}, nil
			})}))
			head, body := legacyHead, legacyCall
			if modern {
				head, body = modernHead, modernCall
			}
			c := send(t, p, "POST", head, body)
			c.response(200)
			if modern {
				c.want(": keepalive", 3*time.Second)
			} else { // by which it can come back
				c.want("id: "+<-id+".0\nretry: 1000\ndata: ", 3*time.Second)
			}
			c.want(": keepalive", 18*time.Second)
			c.wantEvent(note, 20*time.Second)
			c.want(": keepalive", 35*time.Second) // 15 s after the last message
			c.wantEvent(note, 36*time.Second)
			c.wantEvent(note, 37*time.Second)
			c.want(": keepalive", 52*time.Second)
			c.want(": keepalive", 67*time.Second)
			c.wantEvent(note, 68*time.Second)
			c.wantEvent(result, 82*time.Second)
			c.wantEnd()
		})
	}
}

// What is not a stream stays none, however long it takes.
func TestNoKeepalive(t *testing.T) {
	for _, tt := range []struct {
		method, body string
		status       int
	}{
		{"POST", initialize, 200},
		{"POST", initialized, 202},
		{"DELETE", "", 204},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
				time.Sleep(time.Minute)
				if req.ID() == nil {
					return nil, nil
				}
				return &router.Reply{Body: []byte(result), Session: "s2"}, nil
			})}))
			c := send(t, p, tt.method, legacyHead, tt.body)
			resp := c.response(tt.status)
			if tt.status == 200 && resp.Header.Get("Mcp-Session-Id") != "s2" {
				t.Errorf("no session: %v", resp.Header)
			}
			if time.Since(c.start) != time.Minute {
				t.Errorf("answered after %v", time.Since(c.start))
			}
		})
	}
}

func TestListen(t *testing.T) {
	for _, tt := range []struct {
		name string
		says bool
		open time.Duration
	}{{"handler says it is open", true, 10 * time.Millisecond}, {"handler says nothing", false, 50 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			var got router.Request
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				got = *req
				time.Sleep(10 * time.Millisecond)
				if tt.says {
					if err := out.Send(ctx, nil); err != nil {
						return nil, err
					}
				}
				time.Sleep(20*time.Second - 10*time.Millisecond)
				if err := out.Send(ctx, []byte(note)); err != nil {
					return nil, err
				}
				return nil, nil
			})}))
			c := send(t, p, "GET", legacyHead+"Last-Event-ID: e9\r\n", "")
			resp := c.response(200)
			if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
				t.Errorf("Content-Type %q", ct)
			}
			c.want(": ok", tt.open)
			if tt.says {
				c.want(": keepalive", 15*time.Second+50*time.Millisecond-40*time.Millisecond)
			} else {
				c.want(": keepalive", 15*time.Second+50*time.Millisecond)
			}
			c.wantFirst(note, false, 20*time.Second)
			c.wantEnd()
			if got.Op != router.OpListen || got.Session != "s1" || got.LastEventID != "e9" || got.Version != "2025-11-25" || got.Message != nil {
				t.Errorf("request %+v", got)
			}
		})
	}
}

func TestListenFails(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{
		{router.Errorf(router.ErrSessionNotFound, "no session"), 404},
		{&router.Error{Code: router.CodeRefused, Status: 405, Text: "no GET stream"}, 405},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
				time.Sleep(40 * time.Millisecond)
				return nil, tt.err
			})}))
			c := send(t, p, "GET", legacyHead, "")
			resp := c.response(tt.status)
			wantErrorBody(t, []byte(readAll(t, resp.Body)), tt.err.(*router.Error).Code, "null")
		})
	}
	// Too late for a status: the stream just ends.
	synctest.Test(t, func(t *testing.T) {
		p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
			time.Sleep(time.Second)
			return nil, router.Errorf(router.ErrSessionNotFound, "ended")
		})}))
		c := send(t, p, "GET", legacyHead, "")
		c.response(200)
		c.want(": ok", 50*time.Millisecond)
		c.wantEnd()
	})
	// Over before it was open.
	synctest.Test(t, func(t *testing.T) {
		p := serve(t, edge.New(edge.Options{Handler: replying(nil, nil)}))
		c := send(t, p, "GET", legacyHead, "")
		if resp := c.response(200); resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("headers %v", resp.Header)
		}
		c.wantEnd()
	})
}

func TestDisconnect(t *testing.T) {
	for _, tt := range []struct {
		name, method, head, body string
		outlives                 bool // by the layer behind
		goesOn                   bool
	}{
		{"modern call", "POST", modernHead, modernCall, false, false},
		{"modern notification", "POST", "MCP-Protocol-Version: 2026-07-28\r\n", initialized, false, false},
		{"legacy stream", "GET", legacyHead, "", false, false},
		{"modern stream", "POST", listenHead, listenCall, false, false},
		{"legacy call", "POST", legacyHead, legacyCall, true, false},
		{"legacy call without a session", "POST", "", legacyCall, true, false},
		{"legacy batch", "POST", "", "[" + legacyCall + "]", true, false},
		{"notification in a batch", "POST", "", "[" + initialized + "]", false, true},
		{"legacy notification", "POST", legacyHead, initialized, false, true},
		{"legacy answer", "POST", legacyHead, answer, false, true},
		{"legacy session end", "DELETE", legacyHead, "", false, true},
		{"initialize", "POST", "", initialize, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const gone = 100 * time.Second
				done := make(chan struct{})
				p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
					defer close(done)
					if (req.StreamID != "") != tt.outlives {
						t.Errorf("stream id %q", req.StreamID)
					}
					start := time.Now()
					time.Sleep(gone)
					synctest.Wait()
					if err := out.Send(ctx, []byte(note)); err == nil {
						t.Error("Send to a client that is gone succeeds")
					}
					if tt.goesOn {
						time.Sleep(time.Hour)
						return nil, ctx.Err()
					}
					<-ctx.Done()
					if took := time.Since(start) - gone; took != 0 {
						t.Errorf("context ended %v after the client", took)
					}
					return nil, ctx.Err()
				})}))
				c := send(t, p, tt.method, tt.head, tt.body)
				var reader sync.WaitGroup
				reader.Go(func() { _, _ = io.Copy(io.Discard, c.conn) }) // keepalives
				time.Sleep(gone)
				_ = c.conn.Close()
				reader.Wait()
				<-done
				synctest.Wait()
			})
		})
	}
}
