package edge_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

const (
	listenCall = `{"jsonrpc":"2.0","id":7,"method":"subscriptions/listen","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`
	listenHead = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n"
	answer     = `{"jsonrpc":"2.0","id":1,"result":{"action":"accept"}}`
)

func shutdown(e *edge.Edge, within time.Duration) chan error {
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	go func() {
		defer cancel()
		done <- e.Shutdown(ctx)
	}()
	return done
}

// A call that waits for its client must be able to end while the node drains:
// what it waits for is let in, new work is not.
func TestShutdownWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answered := make(chan struct{})
		e := edge.New(edge.Options{Handler: router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			if req.ID() == nil || req.Method() == "" {
				close(answered)
				return nil, nil
			}
			<-answered
			return &router.Reply{Body: []byte(result)}, nil
		})})
		p := serve(t, e)
		call := send(t, p, "POST", legacyHead, legacyCall)
		synctest.Wait()
		done := shutdown(e, time.Hour)
		synctest.Wait()

		for _, tt := range []struct{ method, head, body, id string }{
			{"POST", legacyHead, legacyCall, "7"},
			{"POST", modernHead, modernCall, "7"},
			{"POST", "", "[" + legacyCall + "]", "null"},
			{"GET", legacyHead, "", "null"},
		} {
			c := send(t, p, tt.method, tt.head, tt.body)
			resp := c.response(503)
			wantErrorBody(t, []byte(readAll(t, resp.Body)), router.CodeUnavailable, tt.id)
			if resp.Header.Get("Retry-After") != "1" || !resp.Close {
				t.Errorf("%s %s: headers %v", tt.method, tt.body, resp.Header)
			}
		}
		select {
		case err := <-done:
			t.Fatalf("Shutdown returned with a call in flight: %v", err)
		default:
		}
		send(t, p, "POST", legacyHead, answer).response(202)
		call.response(200)
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		send(t, p, "POST", legacyHead, answer).response(503)
		if err := e.Shutdown(t.Context()); err != nil {
			t.Errorf("second Shutdown: %v", err)
		}
	})
}

func TestShutdownEndsStreams(t *testing.T) {
	for _, tt := range []struct{ name, method, head, body, last string }{
		{"legacy", "GET", legacyHead, "", ""},
		{"modern", "POST", listenHead, listenCall, "-32012"},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, out router.Stream) (*router.Reply, error) {
				if err := out.Send(ctx, []byte(note)); err != nil {
					return nil, err
				}
				<-ctx.Done()
				return nil, ctx.Err()
			})})
			c := send(t, serve(t, e), tt.method, tt.head, tt.body)
			c.response(200)
			c.wantFirst(note, tt.name == "modern", 0)
			synctest.Wait()
			done := shutdown(e, time.Hour)
			rest := readAll(t, c.body)
			if tt.last == "" && rest != "" || !strings.Contains(rest, tt.last) {
				t.Errorf("%s: the stream ended with %q", tt.name, rest)
			}
			if err := <-done; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if time.Since(c.start) != 0 {
				t.Errorf("Shutdown took %v", time.Since(c.start))
			}
		})
	}
}

func TestShutdownCancels(t *testing.T) {
	for _, connected := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, _ *router.Request, _ router.Stream) (*router.Reply, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})})
			p := serve(t, e)
			body := legacyCall
			if !connected {
				body = initialized
			}
			c := send(t, p, "POST", legacyHead, body)
			synctest.Wait()
			if !connected { // it goes on, and only Shutdown knows of it
				_ = c.conn.Close()
				synctest.Wait()
			}
			done := shutdown(e, 2*time.Second)
			if connected {
				resp := c.response(200)
				wantErrorBody(t, []byte(readAll(t, resp.Body)), router.CodeOutcomeUnknown, "7")
			}
			if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v, want the deadline", err)
			}
			if took := time.Since(c.start); took != 2*time.Second {
				t.Errorf("Shutdown took %v, want 2 s", took)
			}
		})
	}
}

// A handler that ignores its context can't hold the node up for ever.
func TestShutdownGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := edge.New(edge.Options{Handler: router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
			time.Sleep(time.Hour)
			return nil, nil
		})})
		c := send(t, serve(t, e), "POST", modernHead, modernCall)
		synctest.Wait()
		if err := <-shutdown(e, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(c.start); took != 3*time.Second {
			t.Errorf("Shutdown took %v, want 3 s", took)
		}
		_ = c.conn.Close()
		time.Sleep(time.Hour)
	})
}

func TestShutdownIdle(t *testing.T) {
	e := edge.New(edge.Options{Handler: &recording{}})
	if err := e.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	w := do(t, e, "DELETE", "/mcp/demo", "", header("Mcp-Session-Id", "s"))
	wantError(t, w, 503, router.CodeUnavailable, "null")
}
