package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/bridge"
)

func TestRetry(t *testing.T) {
	unavailable := router.Errorf(router.ErrUnavailable, "nobody")
	overNATS := router.ErrorReply([]byte("1"), unavailable)
	notFound := router.Errorf(router.ErrServerNotFound, "no such server")
	type answer struct {
		reply *router.Reply
		err   error
	}
	for _, tt := range []struct {
		name    string
		before  []answer // to the request with id 1; then it is answered
		warm    bool     // another request was answered first
		code    int      // 0 = success
		calls   int
		atLeast time.Duration
	}{
		{name: "comes back", before: []answer{{nil, unavailable}, {overNATS, nil}}, calls: 3, atLeast: 50 * time.Millisecond},
		{name: "stays away", before: slices.Repeat([]answer{{nil, unavailable}}, 1000), code: router.CodeUnavailable, atLeast: 9 * time.Second},
		{name: "never was", before: []answer{{nil, notFound}}, code: router.CodeServerNotFound, calls: 1},
		{name: "restarts", before: []answer{{nil, notFound}}, warm: true, calls: 2},
		{name: "may have run", before: []answer{{nil, router.Errorf(router.ErrOutcomeUnknown, "?")}}, code: router.CodeOutcomeUnknown, calls: 1},
		{name: "overloaded", before: []answer{{nil, router.Errorf(router.ErrOverloaded, "full")}}, code: router.CodeOverloaded, calls: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
					if string(req.ID()) != "1" {
						return ok(req, "{}")
					}
					if calls++; calls <= len(tt.before) {
						return tt.before[calls-1].reply, tt.before[calls-1].err
					}
					return ok(req, "{}")
				}), 10*time.Second)
				if tt.warm {
					c.send(modern(5, "x"))
					c.line()
				}
				began := time.Now()
				c.send(modern(1, "tools/list"))
				if tt.code != 0 {
					c.wantError("1", tt.code)
				} else {
					c.want(result(1, "{}"))
				}
				took := time.Since(began)
				if took < tt.atLeast || took > 13*time.Second {
					t.Errorf("took %v", took)
				}
				if tt.calls > 0 && calls != tt.calls {
					t.Errorf("%d calls, want %d", calls, tt.calls)
				}
				c.end()
			})
		})
	}
}

func TestEndOfInput(t *testing.T) {
	for _, tt := range []struct {
		method string
		body   string        // "" = not answered
		after  time.Duration // until Run returns
	}{
		{"quick", result(1, "{}"), 3 * time.Second},
		{"stuck", "", 5 * time.Second},
		{"subscriptions/listen", "", 0},
	} {
		t.Run(tt.method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(t, router.HandlerFunc(func(ctx context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
					if req.Method() == "quick" {
						time.Sleep(3 * time.Second)
						return ok(req, "{}")
					}
					<-ctx.Done()
					return nil, ctx.Err()
				}), 0)
				began := time.Now()
				c.send(modern(1, tt.method))
				_ = c.in.Close()
				if tt.body != "" {
					c.want(tt.body)
				}
				c.end()
				if took := time.Since(began); took != tt.after {
					t.Errorf("took %v, want %v", took, tt.after)
				}
			})
		})
	}
}

func TestContextEnds(t *testing.T) {
	started, cancelled := make(chan struct{}), make(chan struct{})
	c := start(t, router.HandlerFunc(func(ctx context.Context, _ *router.Request, _ router.Stream) (*router.Reply, error) {
		close(started)
		<-ctx.Done()
		close(cancelled)
		return nil, ctx.Err()
	}), 0)
	c.send(request(1, "x"))
	<-started
	c.stop()
	<-cancelled
	if err := <-c.done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want context.Canceled", err)
	}
}

func TestClientGone(t *testing.T) {
	ended := make(chan string, 1)
	c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		if req.Op == router.OpEnd {
			ended <- req.Session
			return &router.Reply{}, nil
		}
		reply, err := ok(req, `{"protocolVersion":"2025-11-25"}`)
		reply.Session = "s1"
		return reply, err
	}), 0)
	_ = c.outEnd.CloseWithError(errors.New("gone"))
	c.send(request(1, "initialize"))
	if err := <-c.done; err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("Run = %v, want the write error", err)
	}
	if got := <-ended; got != "s1" {
		t.Errorf("ended session %q, want s1", got)
	}
}

func TestDeafClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, router.HandlerFunc(func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
			return ok(req, "{}")
		}), 0)
		c.send(request(1, "x")) // nobody reads the answer
		synctest.Wait()
		c.stop()
		if err := <-c.done; err == nil || !strings.Contains(err.Error(), "takes no messages") {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestReadFails(t *testing.T) {
	err := bridge.Run(t.Context(), bridge.Options{
		Handler: router.HandlerFunc(nil), Server: "demo", Out: io.Discard,
		In: io.MultiReader(bytes.NewReader(nil), badReader{}),
	})
	if err == nil || !strings.Contains(err.Error(), "bad disk") {
		t.Errorf("Run = %v", err)
	}
}

type badReader struct{}

func (badReader) Read([]byte) (int, error) { return 0, errors.New("bad disk") }
