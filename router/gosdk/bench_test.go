package gosdk_test

import (
	"testing"

	"ripstop/router"
	"ripstop/router/gosdk"
	"ripstop/router/jsonrpc"
)

// BenchmarkCall is a bare tools/call of a Go SDK server in process. Nearly all
// of it is the SDK's own work.
func BenchmarkCall(b *testing.B) {
	back, err := gosdk.New(router.NewInstanceID(), lengthServer(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer back.Close()
	m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"length","arguments":{"text":"abc"}}}`))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := back.Serve(b.Context(), &router.Request{Era: router.EraBare, Message: m}, router.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
