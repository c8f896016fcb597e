package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go"
)

// loadResult is one measurement.
type loadResult struct {
	rate     float64 // calls a second
	p50, p99 float64 // milliseconds
	errors   int64
}

// runLoad opens clients callers and lets each call as fast as it can for d.
func runLoad(ctx context.Context, k benchKind, clients int, d time.Duration) (loadResult, error) {
	callers := make([]caller, 0, clients)
	defer func() {
		for _, c := range callers {
			c.close()
		}
	}()
	for range clients {
		c, err := k.open(ctx)
		if err != nil {
			return loadResult{}, err
		}
		callers = append(callers, c)
		if err := c.call(ctx); err != nil { // warm, and a call that can't work is said at once
			return loadResult{}, err
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := newHistogram()
	var failed int64
	begin := time.Now()
	for _, c := range callers {
		wg.Go(func() {
			h, bad := loop(ctx, c, begin.Add(d))
			mu.Lock()
			defer mu.Unlock()
			total.Merge(h)
			failed += bad
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	if total.TotalCount() == 0 {
		return loadResult{}, errors.New("no call succeeded")
	}
	return loadResult{
		rate: float64(total.TotalCount()) / took, errors: failed,
		p50: float64(total.ValueAtQuantile(50)) / 1000, p99: float64(total.ValueAtQuantile(99)) / 1000,
	}, ctx.Err()
}

// newHistogram counts microseconds, up to a minute.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }

func loop(ctx context.Context, c caller, until time.Time) (*hdrhistogram.Histogram, int64) {
	h := newHistogram()
	var failed int64
	for {
		start := time.Now()
		if start.After(until) || ctx.Err() != nil {
			return h, failed
		}
		if err := c.call(ctx); err != nil {
			failed++
			continue
		}
		_ = h.RecordValue(max(1, time.Since(start).Microseconds())) // a call over a minute counts in the rate alone
	}
}

// httpCaller is a minimal MCP client of the legacy era: one session, one call
// after the other. The SDK's own client would be most of what is measured.
type httpCaller struct {
	client  *http.Client
	url     string
	session string
	next    int
}

const benchInit = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`

func openHTTP(ctx context.Context, url string) (caller, error) {
	c := &httpCaller{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}}, url: url}
	return c, c.open(ctx)
}

func (c *httpCaller) open(ctx context.Context) error {
	for _, body := range []string{benchInit, `{"jsonrpc":"2.0","method":"notifications/initialized"}`} {
		if _, err := c.post(ctx, []byte(body)); err != nil {
			return err
		}
	}
	return nil
}

// listen opens the session's GET stream, which ends with ctx.
func (c *httpCaller) listen(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Mcp-Session-Id", c.session)
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return fmt.Errorf("GET %s: %s", c.url, resp.Status)
	}
	return nil // left open: ctx closes it
}

func (c *httpCaller) post(ctx context.Context, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	if c.session != "" {
		req.Header.Set("Mcp-Session-Id", c.session)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("POST %s: %s: %.200s", c.url, resp.Status, data)
	}
	if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
		c.session = s
	}
	return data, nil
}

func (c *httpCaller) call(ctx context.Context) error {
	c.next++
	data, err := c.post(ctx, echoCall(strconv.Itoa(c.next)))
	if err == nil && !bytes.Contains(data, []byte("cdef")) {
		err = fmt.Errorf("echo did not come back: %.200s", data)
	}
	return err
}

func (c *httpCaller) close() {
	req, err := http.NewRequest(http.MethodDelete, c.url, nil)
	if err == nil {
		req.Header.Set("Mcp-Session-Id", c.session)
		if resp, err := c.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}
	c.client.CloseIdleConnections()
}

// natsCaller makes plain NATS requests.
type natsCaller struct {
	nc      *nats.Conn
	subject string
	body    []byte
}

func (c *natsCaller) call(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	msg, err := c.nc.RequestWithContext(ctx, c.subject, c.body)
	if err == nil && !bytes.Contains(msg.Data, []byte("cdef")) {
		err = fmt.Errorf("echo did not come back: %.200s", msg.Data)
	}
	return err
}

func (c *natsCaller) close() {}
