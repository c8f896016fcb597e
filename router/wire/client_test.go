package wire_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// What nats.go says of a connection that was never made ("headers not supported
// by this server") explains nothing to whoever waits for the answer.
func TestNotConnected(t *testing.T) {
	nc, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1))
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
	_, err = c.Serve(t.Context(), &router.Request{Server: "demo", Era: router.EraBare, Message: m}, router.Discard)
	if err == nil || !strings.Contains(err.Error(), "not connected to NATS; nothing was executed") {
		t.Errorf("got %v", err)
	}
}
