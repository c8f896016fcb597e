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
	Streams      bool    `json:"streams"` // each holds its GET stream open
	OpenPerSec   float64 `json:"opened_per_second"`
	LivePerBytes float64 `json:"live_bytes_per_session"` // heap and stacks in use
	RSSPerBytes  float64 `json:"resident_bytes_per_session"`
}

func newBenchSessionsCommand() *cobra.Command {
	var count, streams int
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "Measure what an idle session costs a node",
		Long: `Open many legacy sessions through a node with a server that it attaches, leave
them idle, and divide what the node's memory grew by, after garbage collections:
once without a connection, once with each client holding its GET stream open, as
most clients do. The node then holds two connections a session, the client's and
its own to the server. The server runs in another process, so its own memory is
not counted.`,
		Example: `  ripstop bench sessions
  ripstop bench sessions --count 50000 --streams 0 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 1000 || streams != 0 && streams < 1000 {
				return usageError(fmt.Errorf("--count %d --streams %d: fewer than 1000 sessions say nothing", count, streams))
			}
			return runBenchSessions(cmd, count, streams)
		},
	}
	cmd.Flags().IntVar(&count, "count", 20000, "sessions to open without a stream")
	cmd.Flags().IntVar(&streams, "streams", 4000, "sessions to open with a stream, which needs as many file descriptors thrice; 0 for none")
	return cmd
}

func runBenchSessions(cmd *cobra.Command, count, streams int) error {
	ctx := cmd.Context()
	lab, err := openBenchLab(ctx)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer lab.close()
	if err := openSessions(ctx, lab.httpURL+"/mcp/"+benchBareNode, 1000, false); err != nil { // what is paid once
		return fmt.Errorf("bench: %w", err)
	}
	var rows []SessionsRow
	var table [][]string
	for _, n := range []int{count, streams} {
		if n == 0 {
			continue
		}
		row, err := lab.measureSessions(ctx, n, len(rows) > 0)
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		rows = append(rows, row)
		table = append(table, []string{fmt.Sprint(n), fmt.Sprint(row.Streams), fmt.Sprintf("%.0f", row.OpenPerSec),
			fmt.Sprintf("%.0f", row.LivePerBytes), fmt.Sprintf("%.0f", row.RSSPerBytes)})
	}
	return printRows(cmd, []string{"SESSIONS", "STREAMS", "OPENED/S", "LIVE B/SESSION", "RESIDENT B/SESSION"}, table, rows)
}

// measureSessions opens n sessions and says what they cost the node.
func (l *benchLab) measureSessions(ctx context.Context, n int, streams bool) (SessionsRow, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the streams
	live, rss, err := settledMemory(ctx, l.httpURL)
	if err != nil {
		return SessionsRow{}, err
	}
	begin := time.Now()
	if err := openSessions(ctx, l.httpURL+"/mcp/"+benchBareNode, n, streams); err != nil {
		return SessionsRow{}, err
	}
	took := time.Since(begin).Seconds()
	live2, rss2, err := settledMemory(ctx, l.httpURL)
	if err != nil {
		return SessionsRow{}, err
	}
	each := func(grown float64) float64 { return grown / float64(n) }
	return SessionsRow{Sessions: n, Streams: streams, OpenPerSec: float64(n) / took, LivePerBytes: each(live2 - live), RSSPerBytes: each(rss2 - rss)}, nil
}

// openSessions opens count sessions, from a few clients at once, and leaves
// them open. Their streams, if they have any, end with ctx.
func openSessions(ctx context.Context, url string, count int, streams bool) error {
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
				if errs[i] = c.open(ctx); errs[i] == nil && streams {
					errs[i] = c.listen(ctx)
				}
				if errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// memoryMetrics are what the node says of itself: garbage collections, heap and
// stacks in use, resident memory.
var memoryMetrics = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^go_gc_duration_seconds_count (\S+)$`),
	regexp.MustCompile(`(?m)^go_memstats_heap_inuse_bytes (\S+)$`),
	regexp.MustCompile(`(?m)^go_memstats_stack_inuse_bytes (\S+)$`),
	regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`),
}

// settledMemory returns the node's live and resident memory, in bytes, just
// after garbage collections, which calls on one session bring about.
func settledMemory(ctx context.Context, node string) (live, rss float64, err error) {
	c, err := openHTTP(ctx, node+"/mcp/"+benchBareNode)
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	first := -1.0
	for range 10_000 {
		for range 100 {
			if err := c.call(ctx); err != nil {
				return 0, 0, err
			}
		}
		v, err := readMetrics(ctx, node)
		if err != nil {
			return 0, 0, err
		}
		if first < 0 {
			first = v[0]
		}
		if sum := v[1] + v[2]; live == 0 || sum < live {
			live, rss = sum, v[3]
		}
		if v[0] >= first+3 {
			return live, rss, nil
		}
	}
	return 0, 0, errors.New("the node did not collect garbage in a million calls")
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
