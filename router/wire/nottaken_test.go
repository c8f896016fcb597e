package wire_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// What an instance did not take, or perhaps did not finish, is an error to whoever
// sent it there, for it may go elsewhere; all else is the client's answer.
func TestNotTaken(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(5 * time.Second) {
		t.Fatal("no server")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c, err := wire.NewClient(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		said  *router.Error
		taken bool
	}{
		{router.Moved("s", "abcdefghij", 7), false},
		{router.Errorf(router.ErrUnavailable, "drains"), false},
		{router.Errorf(router.ErrOverloaded, "full"), false},
		{router.Errorf(router.ErrOutcomeUnknown, "died"), false}, // who sends it again is for the sender to say
		{router.Errorf(router.ErrSessionNotFound, "ended"), true},
	} {
		sub, err := nc.Subscribe(wire.InstanceSubject("demo", "aaaaaaaaaa"), func(msg *nats.Msg) {
			if err := nc.PublishMsg(wire.ReplyMsg(msg.Reply, "aaaaaaaaaa", router.ErrorReply([]byte("1"), tt.said), true)); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		reply, err := c.Serve(t.Context(), &router.Request{Server: "demo", Instance: "aaaaaaaaaa", Session: "aaaaaaaaaa-x", Message: m}, router.Discard)
		if tt.taken != (err == nil && reply != nil) || !tt.taken && !errors.Is(err, tt.said) {
			t.Errorf("%q: reply %v, error %v", tt.said.Text, reply, err)
		}
		if instance, epoch, ok := router.MovedTo(err); ok != (tt.said.Code == router.CodeMoved) || ok && (instance != "abcdefghij" || epoch != 7) {
			t.Errorf("%q: moved to %q, %d, %v", tt.said.Text, instance, epoch, ok)
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}
