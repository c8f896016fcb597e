package upstream_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router/upstream"
)

// do sends a request to h in process. Every test runs in a bubble of synctest,
// which fails if a goroutine is left behind.
func do(t *testing.T, ctx context.Context, h http.HandlerFunc, body string) (*http.Response, error) {
	t.Helper()
	rt := upstream.InProcess(h)
	t.Cleanup(func() {
		if err := rt.(io.Closer).Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x/a?b=c", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return rt.RoundTrip(r)
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	resp.Body.Close()
	return string(body)
}

func TestInProcess(t *testing.T) {
	type key struct{}
	for _, tt := range []struct {
		name   string
		h      http.HandlerFunc
		status int
		length int64
		body   string
	}{
		{"nothing", func(http.ResponseWriter, *http.Request) {}, 200, 0, ""},
		{"status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204); w.WriteHeader(500) }, 204, 0, ""},
		{"interim", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(201) }, 201, 0, ""},
		{"body", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }, 200, 5, "hello"},
		{"echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }, 200, 4, "sent"},
		{"flushed", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			time.Sleep(time.Second)
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
			time.Sleep(time.Second)
			io.WriteString(w, "y")
		}, 200, -1, "xy"},
		{"large", func(w http.ResponseWriter, r *http.Request) {
			for range 1000 {
				if _, err := io.WriteString(w, strings.Repeat("x", 1000)); err != nil {
					t.Error(err)
				}
			}
		}, 200, -1, strings.Repeat("x", 1000_000)},
		{"request", func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Value(key{}) != nil || r.Context().Value(http.LocalAddrContextKey) != nil {
				io.WriteString(w, "the caller's values ")
			}
			io.WriteString(w, r.Method+" "+r.Host+" "+r.RequestURI+" "+r.RemoteAddr)
		}, 200, 30, "POST x /a?b=c in-process"},
		{"controller", func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{}), rc.EnableFullDuplex()); err != nil {
				t.Error(err)
			}
			if err := rc.SetWriteDeadline(time.Now()); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("deadline: %v", err)
			}
		}, 200, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				resp, err := do(t, context.WithValue(t.Context(), key{}, 1), tt.h, "sent")
				if err != nil {
					t.Fatal(err)
				}
				if tt.name == "request" {
					tt.length = int64(len(tt.body))
				}
				if got := readAll(t, resp); got != tt.body || resp.StatusCode != tt.status || resp.ContentLength != tt.length {
					t.Errorf("got %d, length %d, %.80q; want %d, %d, %.80q", resp.StatusCode, resp.ContentLength, got, tt.status, tt.length, tt.body)
				}
			})
		})
	}
}

// TestInProcessStreams reads what is flushed while the handler goes on.
func TestInProcessStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := make(chan string)
		resp, err := do(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", "1")
			w.(http.Flusher).Flush()
			w.Header().Set("X", "too late")
			for s := range next {
				io.WriteString(w, s)
				w.(http.Flusher).Flush()
			}
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("X"); got != "1" {
			t.Errorf("header %q", got)
		}
		buf := make([]byte, 10)
		for _, want := range []string{"a", "bb", "ccc"} {
			next <- want
			if n, err := resp.Body.Read(buf); err != nil || string(buf[:n]) != want {
				t.Errorf("read %q, %v, want %q", buf[:n], err, want)
			}
		}
		close(next)
		if n, err := resp.Body.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
		resp.Body.Close()
		if _, err := resp.Body.Read(buf); err == nil {
			t.Error("read after close")
		}
	})
}

func TestInProcessPanics(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"before": func(w http.ResponseWriter, r *http.Request) { panic("oops") },
		"unseen": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x"); panic("oops") },
		"within": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic("oops")
		},
		"abort": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				resp, err := do(t, t.Context(), h, "")
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if want := map[bool]string{true: "aborted", false: "oops"}[name == "abort"]; err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// TestInProcessEnds ends a request in every way while its handler waits, or
// writes to a reader that does not read.
func TestInProcessEnds(t *testing.T) {
	for _, end := range []string{"context", "body", "transport"} {
		for _, doing := range []string{"waits", "writes", "not begun"} {
			t.Run(end+"/"+doing, func(t *testing.T) {
				if end == "body" && doing == "not begun" {
					t.Skip("there is no body yet")
				}
				synctest.Test(t, func(t *testing.T) {
					var wrote int
					ended := make(chan struct{})
					rt := upstream.InProcess(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						defer close(ended)
						if doing == "not begun" {
							<-r.Context().Done()
							return
						}
						w.(http.Flusher).Flush()
						for doing == "writes" {
							n, err := io.WriteString(w, strings.Repeat("x", 1000))
							if wrote += n; err != nil {
								return
							}
						}
						<-r.Context().Done()
						if _, err := w.Write([]byte("x")); err == nil {
							t.Error("wrote to nobody")
						}
					}))
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
					time.AfterFunc(time.Second, func() {
						switch end {
						case "context":
							cancel()
						case "transport":
							rt.(io.Closer).Close()
						}
					})
					resp, err := rt.RoundTrip(r)
					if doing == "not begun" {
						if err == nil {
							t.Error("got a response")
						}
					} else if err != nil {
						t.Fatal(err)
					} else {
						if end == "body" {
							resp.Body.Close()
						}
						time.Sleep(2 * time.Second)
						resp.Body.Close()
					}
					<-ended
					if wrote > 300<<10 {
						t.Errorf("%d bytes wait for a reader", wrote)
					}
					if err := rt.(io.Closer).Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestInProcessAfterClose(t *testing.T) {
	rt := upstream.InProcess(http.NotFoundHandler())
	if err := rt.(io.Closer).Close(); err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
	if _, err := rt.RoundTrip(r); err == nil {
		t.Error("a closed transport answered")
	}
}

// TestInProcessStubborn closes while a handler ignores its context.
func TestInProcessStubborn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := upstream.InProcess(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
		if _, err := rt.RoundTrip(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		start := time.Now()
		if err := rt.(io.Closer).Close(); err == nil || time.Since(start) > 5*time.Second {
			t.Errorf("close: %v after %v", err, time.Since(start))
		}
		time.Sleep(time.Hour)
	})
}
