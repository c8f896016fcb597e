package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// benchFlags are the flags of `ripstop bench call`.
type benchFlags struct {
	duration time.Duration
	rounds   int
	http     []int
	nats     []int
	only     string
}

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure a fabric against floors taken in the same run",
		Long: `Measure what a fabric costs, in processes of its own on loopback, against the same
work without one in the same run. Nothing of yours is touched.`,
		Example: "  ripstop bench call\n  ripstop bench sessions",
	}
	var f benchFlags
	call := &cobra.Command{
		Use:   "call",
		Short: "Measure tools/call: direct against through the fabric",
		Long: `Measure an echo tools/call through a fabric, and what the same machine does
without one, in turns, and print the ratios. Everything runs on loopback, in
processes of their own, as it would for real: this one makes the load; a node; an
MCP server; an agent. All of them end with this command.

Over HTTP, "direct" is the MCP server called without the fabric, once made with
the official Go SDK and once as a bare handler that does no more than it must;
"node" is the same server attached by the node (start --servers), "serve" by an
agent of its own (serve --url). Each client has one session throughout, and so
has the server behind it. Over NATS, "raw" is request/reply on the same NATS
server, and "fabric" a Go server in process, called on its subject.

Ratios compare neighbours in time, round by round; the median is printed.
Absolute figures say little on a shared machine.`,
		Example: `  ripstop bench call
  ripstop bench call --duration 5s --rounds 5
  ripstop bench call --only nats --nats-clients 1,64 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBench(cmd, f) },
	}
	fs := call.Flags()
	fs.DurationVar(&f.duration, "duration", 2*time.Second, "length of one measurement")
	fs.IntVar(&f.rounds, "rounds", 3, "measurements of each kind, in turns")
	fs.IntSliceVar(&f.http, "http-clients", []int{1, 32}, "clients at once, over HTTP")
	fs.IntSliceVar(&f.nats, "nats-clients", []int{1, 64}, "clients at once, over NATS")
	fs.StringVar(&f.only, "only", "", "http or nats")
	cmd.AddCommand(call, newBenchSessionsCommand(), newBenchServerCommand())
	return cmd
}

// benchCase is a group of measurements that are compared: the first is the
// floor.
type benchCase struct {
	name    string
	clients []int
	kinds   []benchKind
}

// benchKind is one way to make a call.
type benchKind struct {
	name string
	open func(ctx context.Context) (caller, error) // one client
}

// caller makes calls, one at a time.
type caller interface {
	call(ctx context.Context) error
	close()
}

// BenchRow is a line of the result, as -o json prints it.
type BenchRow struct {
	Case    string  `json:"case"`
	Kind    string  `json:"kind"`
	Clients int     `json:"clients"`
	Rate    float64 `json:"calls_per_second"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Errors  int64   `json:"errors"`
	Ratio   float64 `json:"floor_over_this"` // throughput of the floor divided by this; 1 is the floor itself
}

func runBench(cmd *cobra.Command, f benchFlags) error {
	if f.only != "" && f.only != "http" && f.only != "nats" {
		return usageError(fmt.Errorf("--only %q is not http or nats", f.only))
	}
	if f.rounds < 1 || f.duration < 100*time.Millisecond {
		return usageError(fmt.Errorf("--rounds must be at least 1 and --duration at least 100ms"))
	}
	progress := cmd.ErrOrStderr()
	fmt.Fprintln(progress, "starting a node, a server and an agent …")
	lab, err := openBenchLab(cmd.Context())
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer lab.close()
	var rows []BenchRow
	for _, c := range lab.cases(f) {
		for _, clients := range c.clients {
			got, err := runCase(cmd.Context(), c, clients, f, progress)
			if err != nil {
				return fmt.Errorf("bench %s: %w", c.name, err)
			}
			rows = append(rows, got...)
		}
	}
	var table [][]string
	for _, r := range rows {
		table = append(table, []string{r.Case, r.Kind, fmt.Sprint(r.Clients), fmt.Sprintf("%.0f", r.Rate),
			fmt.Sprintf("%.3f", r.P50), fmt.Sprintf("%.3f", r.P99), fmt.Sprint(r.Errors), fmt.Sprintf("%.2fx", r.Ratio)})
	}
	return printRows(cmd, []string{"CASE", "KIND", "CLIENTS", "CALLS/S", "P50 MS", "P99 MS", "ERRORS", "FLOOR/THIS"}, table, rows)
}

// runCase measures every kind in turns, so that a machine that slows down slows
// them all.
func runCase(ctx context.Context, c benchCase, clients int, f benchFlags, progress io.Writer) ([]BenchRow, error) {
	results := make([][]loadResult, len(c.kinds))
	for round := range f.rounds {
		for i, k := range c.kinds {
			fmt.Fprintf(progress, "%s, %d clients, round %d of %d: %s\n", c.name, clients, round+1, f.rounds, k.name)
			r, err := runLoad(ctx, k, clients, f.duration)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	var rows []BenchRow
	for i, k := range c.kinds {
		row := BenchRow{Case: c.name, Kind: k.name, Clients: clients}
		var ratios []float64
		for round, r := range results[i] {
			ratios = append(ratios, results[0][round].rate/r.rate)
			row.Errors += r.errors
		}
		row.Ratio = median(ratios)
		row.Rate = median(pick(results[i], func(r loadResult) float64 { return r.rate }))
		row.P50 = median(pick(results[i], func(r loadResult) float64 { return r.p50 }))
		row.P99 = median(pick(results[i], func(r loadResult) float64 { return r.p99 }))
		rows = append(rows, row)
	}
	return rows, nil
}

func pick(rs []loadResult, f func(loadResult) float64) []float64 {
	out := make([]float64, len(rs))
	for i, r := range rs {
		out[i] = f(r)
	}
	return out
}

func median(xs []float64) float64 {
	xs = slices.Clone(xs)
	slices.Sort(xs)
	return xs[len(xs)/2]
}

// echoCall is the call every measurement makes; the text has 64 bytes.
var echoCall = func(id string) []byte {
	args, _ := json.Marshal(map[string]string{"text": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}) // strings encode
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"echo","arguments":%s}}`, id, args)
}
