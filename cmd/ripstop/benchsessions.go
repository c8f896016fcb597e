package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// SessionsRow is the result of `bench sessions`, as -o json prints it.
type SessionsRow struct {
	Sessions     int     `json:"sessions"`
	OpenPerSec   float64 `json:"opened_per_second"`
	HeapPerBytes float64 `json:"heap_bytes_per_session"`
	RSSPerBytes  float64 `json:"resident_bytes_per_session"`
}

func newBenchSessionsCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "Measure what an idle session costs a node",
		Long: `Open many legacy sessions through a node with a server that it attaches, leave
them idle, and divide what the node's memory grew by, after garbage collections.
The server runs in another process, so its own memory is not counted.`,
		Example: `  ripstop bench sessions
  ripstop bench sessions --count 50000 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 1000 {
				return usageError(fmt.Errorf("--count %d: fewer than 1000 sessions say nothing", count))
			}
			return runBenchSessions(cmd, count)
		},
	}
	cmd.Flags().IntVar(&count, "count", 20000, "sessions to open")
	return cmd
}

func runBenchSessions(cmd *cobra.Command, count int) error {
	ctx := cmd.Context()
	lab, err := openBenchLab(ctx)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer lab.close()
	url := lab.httpURL + "/mcp/" + benchBareNode
	if err := openSessions(ctx, url, 1000); err != nil { // what is paid once
		return fmt.Errorf("bench: %w", err)
	}
	heap, rss, err := settledMemory(ctx, lab.httpURL)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	begin := time.Now()
	if err := openSessions(ctx, url, count); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	took := time.Since(begin).Seconds()
	heap2, rss2, err := settledMemory(ctx, lab.httpURL)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	n := float64(count)
	row := SessionsRow{Sessions: count, OpenPerSec: n / took, HeapPerBytes: (heap2 - heap) / n, RSSPerBytes: (rss2 - rss) / n}
	return printRows(cmd, []string{"SESSIONS", "OPENED/S", "HEAP B/SESSION", "RESIDENT B/SESSION"},
		[][]string{{fmt.Sprint(count), fmt.Sprintf("%.0f", row.OpenPerSec), fmt.Sprintf("%.0f", row.HeapPerBytes), fmt.Sprintf("%.0f", row.RSSPerBytes)}}, row)
}

// openSessions opens count sessions, from a few clients at once, and leaves
// them open.
func openSessions(ctx context.Context, url string, count int) error {
	const clients = 8
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() {
			share := count / clients
			if i < count%clients {
				share++
			}
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			for range share {
				c := &httpCaller{client: client, url: url}
				for _, body := range []string{benchInit, `{"jsonrpc":"2.0","method":"notifications/initialized"}`} {
					if _, err := c.post(ctx, []byte(body)); err != nil {
						errs[i] = err
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

var memoryMetrics = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^go_memstats_heap_inuse_bytes (\S+)$`),
	regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`),
}

// settledMemory returns the node's heap in use and resident memory, in bytes,
// the least of a few seconds: what a garbage collection leaves. The runtime
// collects at least every two minutes, and more often as we ask for metrics.
func settledMemory(ctx context.Context, node string) (heap, rss float64, err error) {
	for range 30 {
		values, err := readMetrics(ctx, node)
		if err != nil {
			return 0, 0, err
		}
		if heap == 0 || values[0] < heap {
			heap = values[0]
		}
		if rss == 0 || values[1] < rss {
			rss = values[1]
		}
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return heap, rss, nil
}

func readMetrics(ctx context.Context, node string) ([]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, node+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var out []float64
	for _, re := range memoryMetrics {
		m := re.FindSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("the node has no metric like %s", re)
		}
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
