package edge_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ripstop/router"
	"ripstop/router/edge"
	"ripstop/router/jsonrpc"
)

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	var gauges string
	e := edge.New(edge.Options{Metrics: reg, Token: func() string { return "x" }, Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		switch {
		case req.Server != "demo":
			return nil, router.Errorf(router.ErrServerNotFound, "no %s", req.Server)
		case req.Op == router.OpListen:
			return nil, out.Send(ctx, nil)
		case req.Method() == "ping":
			return &router.Reply{Body: rpcErr("-32603")}, nil
		case req.Method() == "tools/list":
			return nil, router.Errorf(router.ErrOverloaded, "full")
		case req.Message == nil || req.Message.Kind != jsonrpc.Request:
			return nil, nil
		}
		if err := out.Send(ctx, []byte(note)); err != nil {
			return nil, err
		}
		gauges = fmt.Sprint(gauge(t, reg, "ripstop_http_requests_in_flight"), gauge(t, reg, "ripstop_http_streams_open"))
		return &router.Reply{Body: []byte(result)}, nil
	})})
	auth := []string{"Authorization", "Bearer x"}
	post := func(path, body string) { do(t, e, "POST", path, body, header(auth...)) }
	post("/mcp/demo", legacyCall)
	post("/mcp/demo", legacyCall)
	do(t, e, "POST", "/mcp/demo", modernCall, modernHeader(auth...))
	post("/mcp/demo", message("ping", ""))
	post("/mcp/demo", message("tools/list", ""))
	post("/mcp/demo", message("made/up", ""))
	post("/mcp/demo", message("made/up2", ""))
	post("/mcp/demo", initialized)
	post("/mcp/demo", answer)
	post("/mcp/nosuch", legacyCall)
	post("/mcp/nosuch2", legacyCall)
	post("/mcp/demo", "{")
	do(t, e, "POST", "/mcp/demo", legacyCall, header())
	do(t, e, "GET", "/mcp/demo", "", header(append(auth, "Mcp-Session-Id", "s")...))
	do(t, e, "DELETE", "/mcp/demo", "", header(append(auth, "Mcp-Session-Id", "s")...))

	if gauges != "1 1" || gauge(t, reg, "ripstop_http_requests_in_flight") != 0 || gauge(t, reg, "ripstop_http_streams_open") != 0 {
		t.Errorf("gauges %q during a streaming call, then not 0", gauges)
	}
	want := `
# HELP ripstop_http_requests_total MCP requests over HTTP, by server, JSON-RPC method, protocol era and outcome.
# TYPE ripstop_http_requests_total counter
ripstop_http_requests_total{era="legacy",method="end",outcome="ok",server="demo"} 1
ripstop_http_requests_total{era="legacy",method="listen",outcome="ok",server="demo"} 1
ripstop_http_requests_total{era="legacy",method="notifications/initialized",outcome="ok",server="demo"} 1
ripstop_http_requests_total{era="legacy",method="other",outcome="ok",server="demo"} 2
ripstop_http_requests_total{era="legacy",method="ping",outcome="rpc_error",server="demo"} 1
ripstop_http_requests_total{era="legacy",method="response",outcome="ok",server="demo"} 1
ripstop_http_requests_total{era="legacy",method="tools/call",outcome="ok",server="demo"} 2
ripstop_http_requests_total{era="legacy",method="tools/call",outcome="server_not_found",server="unknown"} 2
ripstop_http_requests_total{era="legacy",method="tools/list",outcome="overloaded",server="demo"} 1
ripstop_http_requests_total{era="modern",method="tools/call",outcome="ok",server="demo"} 1
ripstop_http_requests_total{era="none",method="none",outcome="refused",server="unknown"} 1
ripstop_http_requests_total{era="none",method="none",outcome="unauthorized",server="unknown"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ripstop_http_requests_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "ripstop_http_request_duration_seconds"); err != nil || n != 8 {
		t.Errorf("%d duration series, %v, want 8: no stream, nothing refused", n, err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) != 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// A handler that answers for any name must not be able to fill the memory.
func TestMetricsBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	e := edge.New(edge.Options{Metrics: reg, Handler: &recording{}})
	for i := range 5000 {
		do(t, e, "POST", fmt.Sprintf("/mcp/s%d", i), legacyCall, header())
	}
	if n, err := testutil.GatherAndCount(reg, "ripstop_http_requests_total"); err != nil || n > 4100 {
		t.Errorf("%d series, %v", n, err)
	}
	if w := do(t, e, "POST", "/mcp/s1", legacyCall, header()); w.Code != 200 {
		t.Errorf("status %d", w.Code)
	}
}

func TestTwoEdgesShareMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		do(t, edge.New(edge.Options{Metrics: reg, Handler: &recording{}}), "POST", "/mcp/demo", legacyCall, header())
	}
	want := `
# HELP ripstop_http_requests_total MCP requests over HTTP, by server, JSON-RPC method, protocol era and outcome.
# TYPE ripstop_http_requests_total counter
ripstop_http_requests_total{era="legacy",method="tools/call",outcome="ok",server="demo"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ripstop_http_requests_total"); err != nil {
		t.Error(err)
	}
}

func gauge(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
