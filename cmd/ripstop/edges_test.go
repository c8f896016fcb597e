package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestEnvironment(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RIPSTOP_NATS", "nats://a:1,nats://b:2")
	t.Setenv("RIPSTOP_TOKEN_FILE", token)
	t.Setenv("RIPSTOP_OUTPUT", "json")
	f, _ := newFakeFabric(t, false)
	f.instances = nil
	var got clientSettings
	dial := func(_ context.Context, s clientSettings) (fabricClient, error) {
		got = s
		return f, nil
	}
	cliContext(t.Context(), dial, nil, "ls").want(t, "[]\n")
	if want := (clientSettings{URLs: "nats://a:1,nats://b:2", Token: "0123456789abcdef", credentials: credentials{TokenFile: token}}); got != want {
		t.Errorf("settings %+v, want %+v", got, want)
	}
	cliContext(t.Context(), dial, nil, "ls", "--nats", "nats://c:3").want(t, "[]\n")
	if got.URLs != "nats://c:3" {
		t.Errorf("a flag does not count more than the environment: %+v", got)
	}
	t.Setenv("RIPSTOP_TIMEOUT", "soon")
	cliContext(t.Context(), dial, nil, "ls").wantErr(t, exitUsage, "RIPSTOP_TIMEOUT in the environment", "soon")
	t.Setenv("RIPSTOP_TIMEOUT", "1s")
	t.Setenv("RIPSTOP_TOKEN_FILE", token+"x")
	cliContext(t.Context(), dial, nil, "ls").wantErr(t, exitUsage, "--token-file", "token")
}

func TestCompletion(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	for args, want := range map[string][]string{
		"call ":                 {"demo", "files"},
		"connect ":              {"demo", "files"},
		"tools demo ":           {"add\tAdd two numbers", "ask", "block", "count", "echo\tSay it back.", "fail", "log"},
		"call demo add ":        {"a=\tinteger", "b=\tnumber"},
		"call demo add a=1 ":    {"b=\tnumber"},
		"call nix ":             nil,
		"call demo nix ":        nil,
		"ls --kind ":            {"tools", "resources", "prompts"},
		"ls ":                   {"servers", "instances", "nodes", "sessions"},
		"ls -o ":                {"table", "json"},
		"call demo echo x --to": {"--token-file\tfile with the token of the fabric (RIPSTOP_TOKEN_FILE)"},
	} {
		o := cli(t, f, "", append([]string{"__complete"}, strings.Split(args, " ")...)...)
		lines := strings.Split(strings.TrimSpace(o.out), "\n")
		got := lines[:len(lines)-1] // the last is the directive
		if !slices.Equal(got, want) {
			t.Errorf("%q completes to %q, want %q", args, got, want)
		}
	}
}

func TestCompletionIsSilentWithoutFabric(t *testing.T) {
	o := cliContext(t.Context(), func(ctx context.Context, _ clientSettings) (fabricClient, error) {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > completeFor {
			t.Error("completion asks without a bound")
		}
		return nil, errors.New("refused")
	}, nil, "__complete", "call", "")
	if o.code != 0 || strings.Contains(o.err, "refused") || !strings.HasPrefix(o.out, ":") {
		t.Errorf("got %+v", o)
	}
}

func TestConnect(t *testing.T) {
	f, _ := newFakeFabric(t, false)
	initialize := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
	o := cli(t, f, initialize+"\n", "connect", "demo")
	if o.code != 0 || !strings.Contains(o.out, `"serverInfo"`) || strings.Count(o.out, "\n") != 1 {
		t.Errorf("got %+v", o)
	}
	o = cli(t, f, initialize+"\n", "connect") // all servers as one, which this fabric lacks
	if o.code != 0 || !strings.Contains(o.out, "-32010") {
		t.Errorf("got %+v", o)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	r, w := io.Pipe()
	defer w.Close()
	if o := cliContext(ctx, func(context.Context, clientSettings) (fabricClient, error) { return f, nil }, r, "connect", "demo"); o.code != 0 {
		t.Errorf("told to end: %+v", o)
	}
}

func TestVersion(t *testing.T) {
	var v versionInfo
	o := cli(t, nil, "", "version", "-o", "json")
	if err := json.Unmarshal([]byte(o.out), &v); err != nil || v.Version == "" || v.Wire != 1 || !slices.Contains(v.MCP, "2026-07-28") {
		t.Errorf("got %s (%v)", o.out, err)
	}
	if o := cli(t, nil, "", "version"); o.code != 0 || !strings.Contains(o.out, "wire     1\n") {
		t.Errorf("got %+v", o)
	}
	if o := cli(t, nil, "", "--version"); o.code != 0 || !strings.HasPrefix(o.out, "ripstop ") {
		t.Errorf("got %+v", o)
	}
}

// TestEveryCommandIsExplained wants long help and examples, and no help that
// needs a fabric.
func TestEveryCommandIsExplained(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" || c.Hidden {
			return // cobra's own
		}
		if c.HasSubCommands() {
			for _, sub := range c.Commands() {
				walk(sub)
			}
			return
		}
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks help: short %q, long %q, example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
	}
	walk(newRoot(nil, nil))
	for _, args := range []string{"help exit-codes", "call --help", "", "config", "completion bash", "connect --help"} {
		if o := cli(t, nil, "", strings.Fields(args)...); o.code != 0 || o.out == "" {
			t.Errorf("ripstop %s: %+v", args, o)
		}
	}
}
