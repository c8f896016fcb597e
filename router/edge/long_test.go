package edge_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

// until is a handler whose streams are open until their context ends. It says
// when that is.
func until(opened bool, ended chan<- time.Time) router.HandlerFunc {
	return func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
		if opened {
			if err := out.Send(ctx, nil); err != nil {
				return nil, err
			}
		}
		<-ctx.Done()
		ended <- time.Now()
		return nil, ctx.Err()
	}
}

func TestLongStreamHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := edge.New(edge.Options{Handler: until(true, make(chan time.Time, 1)), AllowedOrigins: []string{"https://app.example.com"}})
		c := send(t, serve(t, e), "GET", legacyHead+"Origin: https://app.example.com\r\n", "")
		resp := c.response(200)
		h := resp.Header
		if h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-cache, no-transform" || h.Get("X-Accel-Buffering") != "no" ||
			h.Get("Access-Control-Allow-Origin") != "https://app.example.com" || h.Get("Date") == "" || !resp.Close {
			t.Errorf("headers %v, close %v", h, resp.Close)
		}
		c.want(": ok", 0)
	})
}

// Messages of any size go through a stream's own connection.
func TestLongStreamMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var msgs []string
		for _, size := range []int{1, 60 << 10, 70 << 10, 600 << 10, 2 << 20, 10} {
			msgs = append(msgs, `{"x":"`+strings.Repeat("x", size)+`"}`)
		}
		e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
			for _, msg := range msgs {
				if err := out.Send(ctx, []byte(msg)); err != nil {
					t.Error(err)
				}
			}
			return &router.Reply{Body: []byte(result)}, nil
		})})
		c := send(t, serve(t, e), "POST", listenHead, listenCall)
		c.response(200)
		for _, msg := range msgs {
			c.wantEvent(msg, 0)
		}
		c.wantEvent(result, 0)
		c.wantEnd()
	})
}

// How a long stream ends when its client does not close it properly.
func TestLongStreamEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opened bool
		client func(*client)
		after  time.Duration
	}{
		{"gone before it was open", false, func(c *client) {
			time.Sleep(10 * time.Millisecond)
			_ = c.conn.Close()
		}, 10 * time.Millisecond},
		{"talks where it should listen", true, func(c *client) {
			c.want(": ok", 0)
			time.Sleep(time.Second)
			c.write("x")
		}, time.Second},
		{"stops reading", true, func(c *client) { c.want(": ok", 0) }, 45 * time.Second}, // the first keepalive, and its deadline
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan time.Time, 1)
				c := send(t, serve(t, edge.New(edge.Options{Handler: until(tt.opened, ended)})), "GET", legacyHead, "")
				if tt.opened {
					c.response(200)
				}
				tt.client(c)
				if took := (<-ended).Sub(c.start); took != tt.after {
					t.Errorf("ended after %v, want %v", took, tt.after)
				}
				if rest, err := io.ReadAll(c.r); tt.opened && (err != nil || len(rest) != 0) {
					t.Errorf("the connection is not closed: %q, %v", rest, err)
				}
			})
		})
	}
}

// A handler that fails before the stream opens still has a status, however it
// is asked.
func TestLongStreamFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := edge.New(edge.Options{Handler: replying(&router.Reply{Body: rpcErr("-32601")}, nil)})
		c := send(t, serve(t, e), "POST", listenHead, listenCall)
		resp := c.response(404)
		if got := readAll(t, resp.Body); got != string(rpcErr("-32601")) || resp.Close {
			t.Errorf("got %s, close %v", got, resp.Close)
		}
	})
}
