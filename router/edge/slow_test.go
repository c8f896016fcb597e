package edge_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

// A client that sends its body one byte at a time, or not at all.
func TestSlowLoris(t *testing.T) {
	for _, tt := range []struct {
		name, head, body string
		every            time.Duration // between bytes; 0 = nothing more comes
		status, code     int
		after            time.Duration
	}{
		{"no body", legacyHead + "Content-Length: 100\r\n", "", 0, 408, router.CodeRefused, 30 * time.Second},
		{"half a body", legacyHead + "Content-Length: 100\r\n", legacyCall[:50], 0, 408, router.CodeRefused, 30 * time.Second},
		{"drop by drop", legacyHead + "Content-Length: 100\r\n", "", time.Second, 408, router.CodeRefused, 30 * time.Second},
		{"chunked", legacyHead + "Transfer-Encoding: chunked\r\nX-Content-Length: 1\r\n", "5\r\n{\"jso", 0, 408, router.CodeRefused, 30 * time.Second},
		{"refused anyway", "Mcp-Session-Id: s\r\nAccept: text/html\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n", "", 0, 415, router.CodeRefused, 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &recording{}
				p := serve(t, edge.New(edge.Options{Handler: h}))
				c := send(t, p, "POST", tt.head, tt.body)
				var drops sync.WaitGroup
				defer drops.Wait()
				defer c.conn.Close()
				if tt.every > 0 {
					drops.Go(func() {
						for {
							time.Sleep(tt.every)
							if _, err := io.WriteString(c.conn, " "); err != nil {
								return
							}
						}
					})
				}
				resp := c.response(tt.status)
				wantErrorBody(t, []byte(readAll(t, resp.Body)), tt.code, "null")
				if took := time.Since(c.start); took != tt.after {
					t.Errorf("answered after %v, want %v", took, tt.after)
				}
				if !resp.Close {
					t.Error("the connection is kept")
				}
				if h.count() != 0 {
					t.Error("it reached the handler")
				}
			})
		})
	}
}

// Slow, but it comes: 80 KiB every 25 s.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &recording{}
		p := serve(t, edge.New(edge.Options{Handler: h}))
		body := legacyCall[:len(legacyCall)-1] + strings.Repeat(" ", 300<<10) + "}"
		c := send(t, p, "POST", legacyHead+"Transfer-Encoding: chunked\r\nX-Content-Length: 1\r\n", "")
		for len(body) > 0 {
			part := body[:min(len(body), 80<<10)]
			body = body[len(part):]
			c.write(hex(len(part)) + "\r\n" + part + "\r\n")
			time.Sleep(25 * time.Second)
		}
		c.write("0\r\n\r\n")
		c.response(200)
		if got := len(h.last(t).Message.Raw); got < 300<<10 {
			t.Errorf("%d bytes came", got)
		}
	})
}

func hex(n int) string {
	const digits = "0123456789abcdef"
	s := ""
	for ; n > 0; n /= 16 {
		s = digits[n%16:n%16+1] + s
	}
	return s
}

// A client that never finishes its headers is cut off by the server.
func TestSlowHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := serve(t, edge.New(edge.Options{Handler: &recording{}}))
		near, far := net.Pipe()
		defer near.Close()
		p.conns <- far
		start := time.Now()
		if _, err := io.WriteString(near, "POST /mcp/demo HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(near)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("cut off after %v, want 10 s", took)
		}
	})
}

// A client that stops reading loses its connection after 30 s and then counts
// as gone; it does not block the handler for longer.
func TestStuckClient(t *testing.T) {
	for _, modern := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			head, body := legacyHead, legacyCall
			if modern {
				head, body = modernHead, modernCall
			}
			done := make(chan struct{})
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
				defer close(done)
				if err := out.Send(ctx, []byte(note)); err != nil {
					t.Errorf("first Send: %v", err)
				}
				start := time.Now()
				err := out.Send(ctx, []byte(note))
				if took := time.Since(start); took != 30*time.Second {
					t.Errorf("Send blocked for %v, want 30 s", took)
				}
				if err == nil || ctx.Err() == nil {
					t.Errorf("modern %v: Send: %v, context: %v", modern, err, ctx.Err())
				}
				if err := out.Send(ctx, []byte(note)); err == nil {
					t.Errorf("modern %v: Send after: %v", modern, err)
				}
				return &router.Reply{Body: []byte(result)}, nil
			})}))
			c := send(t, p, "POST", head, body)
			c.response(200)
			c.wantFirst(note, modern, 0)
			<-done
			if _, err := io.ReadAll(c.r); err != nil {
				t.Errorf("the connection is not closed: %v", err)
			}
		})
	}
}

// A client that is only slow gets everything: the deadline is for each 256 KiB.
func TestSlowReader(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			big := `{"jsonrpc":"2.0","id":7,"result":{"x":"` + strings.Repeat("x", 2<<20) + `"}}`
			p := serve(t, edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
				if streaming {
					if err := out.Send(ctx, []byte(note)); err != nil {
						t.Error(err)
					}
				}
				return &router.Reply{Body: []byte(big)}, nil
			})}))
			c := send(t, p, "POST", legacyHead, legacyCall)
			resp := c.response(200)
			var got strings.Builder
			for {
				_, err := io.CopyN(&got, resp.Body, 128<<10)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("after %d bytes and %v: %v", got.Len(), time.Since(c.start), err)
				}
				time.Sleep(8 * time.Second)
			}
			if !strings.Contains(got.String(), big) {
				t.Errorf("%d bytes came, want %d", got.Len(), len(big))
			}
		})
	}
}
