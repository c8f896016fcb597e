package servers_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ripstop/router/servers"
)

func env(name string) (string, bool) {
	v, ok := map[string]string{"HOME": "/home/u", "KEY": "k1"}[name]
	return v, ok
}

func TestParse(t *testing.T) {
	specs, err := servers.Parse([]byte(`{"mcpServers":{
		"files":{"command":"npx","args":["-y","${HOME}/x","${NONE:-d}"],"env":{"B":"2","A":"${env:KEY}"},"cwd":"/tmp"},
		"My Server.v2":{"type":"http","url":"https://example.com/mcp","headers":{"Authorization":"Bearer ${KEY}"}},
		"off":{"command":"x","disabled":true},
		"one":{"command":"y","shared":true,"maxSessions":3,"maxCalls":4,"alwaysAllow":["a"]}}}`), env)
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != 3 {
		t.Fatalf("got %d servers, want 3: %+v", len(specs), specs)
	}
	byName := map[string]servers.Spec{}
	for _, s := range specs {
		byName[s.Name] = s
	}
	f := byName["files"]
	if !slices.Equal(f.Command, []string{"npx", "-y", "/home/u/x", "d"}) || !slices.Equal(f.Env, []string{"A=k1", "B=2"}) || f.Dir != "/tmp" {
		t.Errorf("files = %+v", f)
	}
	if h := byName["My-Server-v2"]; h.URL != "https://example.com/mcp" || h.Headers["Authorization"] != "Bearer k1" {
		t.Errorf("http = %+v", h)
	}
	if one := byName["one"]; !one.Shared || one.MaxSessions != 3 || one.MaxCalls != 4 {
		t.Errorf("one = %+v", one)
	}
}

func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{`:                       "line 1",
		`{}`:                      "mcpServers",
		"{\n// c\n}":              "comments",
		`{"mcpServers":{"a":{}}}`: "neither",
		`{"mcpServers":{"a":{"command":"x","maxCalls":-1}}}`:           "negative",
		`{"mcpServers":{"a":{"command":"x","url":"http://h"}}}`:        "both",
		`{"mcpServers":{"a":{"url":"ftp://h"}}}`:                       "http://HOST",
		`{"mcpServers":{"a":{"type":"sse","url":"http://h/sse"}}}`:     "sse",
		`{"mcpServers":{"a":{"command":"${NOPE}"}}}`:                   "NOPE",
		`{"mcpServers":{"a b":{"command":"x"},"a.b":{"command":"y"}}}`: "rename one",
		`{"mcpServers":{"  ":{"command":"x"}}}`:                        "no letter",
		`{"mcpServers":{"a":{"command":5}}}`:                           `server "a"`,
	} {
		if _, err := servers.Parse([]byte(in), env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, want it to say %q", in, err, want)
		}
	}
}

type fake struct {
	mu     sync.Mutex
	events []string
	seen   chan string
}

type attached struct {
	f    *fake
	name string
}

func (a attached) Close(context.Context) error { a.f.note("close " + a.name); return nil }

func (f *fake) note(e string) {
	f.mu.Lock()
	f.events = append(f.events, e)
	f.mu.Unlock()
	f.seen <- e
}

func (f *fake) attach(s servers.Spec) (servers.Attached, error) {
	if s.Command[1] == "bad" {
		return nil, errors.New("no such command")
	}
	name := s.Name + "=" + s.Command[1]
	f.note("open " + name)
	return attached{f, name}, nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func (f *fake) want(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		select {
		case got := <-f.seen:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no %q within 5 s", want)
		}
	}
}

func TestSetFollowsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.json")
	write(t, path, `{"mcpServers":{"a":{"command":"sh","args":["1"]},"b":{"command":"sh","args":["1"]}}}`)
	f := &fake{seen: make(chan string, 100)}
	s, err := servers.Open(servers.Options{Path: path, Attach: f.attach, Drain: time.Second, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f.want(t, "open a=1", "open b=1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	// Run may not watch yet; the last content wins whenever it starts to.
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for range 50 {
			write(t, path, `{"mcpServers":{"a":{"command":"sh","args":["2"]},"c":{"command":"sh","args":["1"]}}}`)
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			f.mu.Lock()
			n := len(f.events)
			f.mu.Unlock()
			if n > 2 {
				return
			}
		}
	}()
	f.want(t, "open a=2", "close a=1", "open c=1", "close b=1")
	<-changed
	write(t, path, `{"mcpServers":`)                                                                       // not taken
	write(t, path, `{"mcpServers":{"a":{"command":"sh","args":["2"]},"c":{"command":"sh","args":["3"]}}}`) // only c changed
	f.want(t, "open c=3", "close c=1")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// One server that can't be attached must not take the others with it, neither at
// the start nor later; and it is tried again when the file is written again.
func TestServerThatCannotBeAttached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.json")
	write(t, path, `{"mcpServers":{"a":{"command":"sh","args":["bad"]},"b":{"command":"sh","args":["1"]}}}`)
	f := &fake{seen: make(chan string, 100)}
	s, err := servers.Open(servers.Options{Path: path, Attach: f.attach, Drain: time.Second, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f.want(t, "open b=1")
	// Written before Run watches: it reads the file once more.
	write(t, path, `{"mcpServers":{"a":{"command":"sh","args":["2"]},"b":{"command":"sh","args":["bad"]}}}`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	f.want(t, "open a=2")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if rest := f.events[2:]; len(rest) != 2 || !slices.Contains(rest, "close a=2") || !slices.Contains(rest, "close b=1") {
		t.Errorf("at the end: %q, want a=2 and the b=1 that was kept closed", rest)
	}
}

// What a command is called is checked where its PATH is known, at the start.
func TestLoadLeavesCommandsToTheirStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.json")
	write(t, path, `{"mcpServers":{"x":{"command":"no-such-command-here","env":{"PATH":"/opt/x/bin"}}}}`)
	if specs, err := servers.Load(path); err != nil || len(specs) != 1 {
		t.Errorf("Load = %v, %v", specs, err)
	}
}
