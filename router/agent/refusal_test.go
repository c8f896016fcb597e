package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// limited attaches an instance that takes so many calls at once.
func (l *lab) limited(t testing.TB, server string, most int, h router.HandlerFunc) *agent.Agent {
	t.Helper()
	a, err := agent.Attach(agent.Options{Server: server, Conn: l.dial(t), MaxInFlight: most, Logger: quiet(), Backend: agent.Func(router.Info{}, h)})
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

// TestFullInstancesAreTriedElsewhere: what an instance over NATS did not take is
// executed by another, once.
func TestFullInstancesAreTriedElsewhere(t *testing.T) {
	l := newLab(t)
	busy, release := make(chan string, 2), make(chan struct{})
	var ids [2]string
	for i := range ids {
		ids[i] = l.limited(t, "demo", 1, func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
			busy <- ids[i]
			<-release
			return echo(ctx, req, out)
		}).Instance()
	}
	r := router.NewRouter(l.reg, l.client(t), router.RouterOptions{Node: l.node.Name()})
	call := func(end chan<- error) {
		_, err := r.Serve(t.Context(), &router.Request{Server: "demo", Era: router.EraBare, Message: message(t, callEcho)}, router.Discard)
		end <- err
	}
	end := make(chan error, 2)
	for range ids {
		go call(end)
	}
	if a, b := <-busy, <-busy; a == b {
		t.Errorf("both calls went to %s, which takes one", a)
	}
	third := make(chan error, 1)
	call(third)
	if err := <-third; !errors.Is(err, router.ErrOverloaded) || !strings.Contains(err.Error(), "2 instances") {
		t.Errorf("when all are full: %v", err)
	}
	close(release)
	for range ids {
		if err := <-end; err != nil {
			t.Error(err)
		}
	}
}

// TestRefusalAfterMessages: an instance that has said something did begin, so
// its "unavailable" is for the client, and for no other instance.
func TestRefusalAfterMessages(t *testing.T) {
	l := newLab(t)
	var calls int
	l.attach(t, "demo", func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		calls++
		if req.Message.Name == "begin" {
			if err := out.Send(ctx, []byte(`{"jsonrpc":"2.0","method":"n"}`)); err != nil {
				return nil, err
			}
		}
		return nil, router.Errorf(router.ErrUnavailable, "the database is down")
	})
	c := l.client(t)
	_, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, callEcho)}, router.Discard)
	if !errors.Is(err, router.ErrUnavailable) || err.Error() != "the database is down" {
		t.Errorf("nothing said: %v, want the instance's error", err)
	}
	reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Message: message(t, strings.Replace(callEcho, "echo", "begin", 1))}, router.Discard)
	if err != nil || reply.Status != 503 || !strings.Contains(string(reply.Body), "-32012") {
		t.Errorf("something said: %+v, %v, want a reply", reply, err)
	}
	if calls != 2 {
		t.Errorf("%d calls, want 2", calls)
	}
}

// TestDetachWithoutServer: an agent whose server is gone does not wait for it.
func TestDetachWithoutServer(t *testing.T) {
	l := newLab(t)
	nc, err := agent.Connection{URLs: l.node.ClientURL(), Logger: quiet()}.Dial(false)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	relay, err := wire.NewClient(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	a, err := agent.Attach(agent.Options{Server: "demo", Conn: nc, Relay: relay, Logger: quiet(), Backend: agent.Func(router.Info{}, func(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
		return &router.Reply{Body: jsonrpc.NewResult(req.ID(), []byte(`{}`))}, nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	<-a.Registered()
	lost := nc.StatusChanged(nats.RECONNECTING)
	l.node.Server().Shutdown()
	<-lost
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
}
