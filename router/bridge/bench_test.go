package bridge_test

import (
	"bytes"
	"context"
	"testing"

	"ripstop/router"
	"ripstop/router/bridge"
)

// BenchmarkConn is what the edge adds to one request after another, without
// pipes.
func BenchmarkConn(b *testing.B) {
	answer := []byte(result(1, `{"content":[{"type":"text","text":"hi"}]}`))
	h := router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
		return &router.Reply{Body: answer}, nil
	})
	answered := make(chan struct{})
	c := bridge.NewConn(b.Context(), bridge.Options{Handler: h, Server: "demo"}, func(context.Context, []byte) error {
		answered <- struct{}{}
		return nil
	})
	defer c.Close()
	line := []byte(callEcho(1))
	b.ReportAllocs()
	for b.Loop() {
		c.Receive(bytes.Clone(line)) // Receive keeps it
		<-answered
	}
}
