package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/kv"
	"ripstop/kv/sessions"
	"ripstop/router"
	"ripstop/router/agent"
	"ripstop/router/servers"
	"ripstop/router/stdio"
	"ripstop/router/upstream"
)

// serveFlags are the flags of `ripstop serve`.
type serveFlags struct {
	url      string
	headers  []string
	dir      string
	env      []string
	shared   bool
	onMove   string
	idle     time.Duration
	drain    time.Duration
	sessions int
	calls    int
	scope    string
	only     bool
	standby  bool
	debug    bool
}

func newServeCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve NAME [--url URL | -- COMMAND [ARG …]]",
		Short: "Attach an MCP server to the fabric",
		Long: `Attach an MCP server to the fabric under NAME, from this process: a command that
speaks MCP on its standard input and output, or a Streamable HTTP address.

A command is started once for each session, so that clients never share its
state, and ended with the session; --shared runs a single one for all. What it
writes to standard error goes to the log. Its processes end with this one, even
when this one is killed.

Several instances may answer for one NAME, here or on other nodes. --exclusive
refuses that: one instance in the whole cluster has the name, and a second one
fails with "already registered". With --standby it waits instead, and takes over
when the holder goes. --scope local keeps the server to the node it is attached
to: other nodes do not know it.

The fabric need not be up yet: it is waited for, and reconnected to, for ever.
Ctrl-C detaches the server, lets calls in flight finish, and exits 0.`,
		Example: `  ripstop serve everything -- npx -y @modelcontextprotocol/server-everything stdio
  ripstop serve files --shared -- npx -y @modelcontextprotocol/server-filesystem .
  ripstop serve github --url https://example.com/mcp --header "Authorization: Bearer $TOKEN"
  ripstop serve ledger --exclusive --standby -- ./ledger-server
  ripstop serve everything --nats nats://10.0.0.5:4222,nats://10.0.0.6:4222 --token-file token -- ./server`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runServe(cmd, args, f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.url, "url", "", "address of a Streamable HTTP server")
	fs.StringArrayVar(&f.headers, "header", nil, `header to send to --url, "Name: value"; repeatable`)
	fs.StringVar(&f.dir, "dir", "", "working directory of the command")
	fs.StringArrayVar(&f.env, "env", nil, "KEY=value to add to the command's environment; repeatable")
	fs.StringVar(&f.onMove, "on-move", sessions.OnMoveReinitialize, "what becomes of a session whose process is gone: reinitialize (another takes it over), or end (its state was in the process)")
	fs.BoolVar(&f.shared, "shared", false, "one process for all sessions, instead of one each")
	fs.DurationVar(&f.idle, "session-idle-timeout", 30*time.Minute, "end a session that was not used for this long")
	fs.DurationVar(&f.drain, "drain-timeout", 30*time.Second, "how long calls in flight may take to finish at the end")
	fs.IntVar(&f.sessions, "max-sessions", 0, "sessions at once; 0 is 256 for commands and 100000 for addresses")
	fs.IntVar(&f.calls, "max-calls", 0, "calls in flight at once; 0 is 4096")
	fs.StringVar(&f.scope, "scope", kv.ScopeGlobal, "who knows the server: global, the whole cluster; or local, the node it is attached to")
	fs.BoolVar(&f.only, "exclusive", false, "refuse to share NAME: one instance in the whole cluster")
	fs.BoolVar(&f.standby, "standby", false, "with --exclusive: wait while another has NAME, and take over when it goes")
	fs.BoolVar(&f.debug, "debug", false, "log more")
	_ = cmd.RegisterFlagCompletionFunc("scope", cobra.FixedCompletions([]cobra.Completion{kv.ScopeGlobal, kv.ScopeLocal}, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	addClientFlags(cmd)
	return cmd
}

func runServe(cmd *cobra.Command, args []string, f serveFlags) error {
	name, command, err := f.target(cmd, args)
	if err != nil {
		return usageError(err)
	}
	settings, err := clientSettingsOf(cmd)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if f.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	id := router.NewInstanceID()
	backend, transport, err := f.backend(id, command, log.With("server", name))
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "Attaching %s to %s …\n", name, settings.URLs)
	err = agent.Run(cmd.Context(), agent.RunOptions{
		Connection: settings.connection("serve/"+name, log),
		Server:     name, Instance: id, Transport: transport, Backend: backend, Software: buildVersion(), Drain: f.drain,
		Scope: f.scope, Exclusive: f.only, Standby: f.standby, Fallback: f.url == "" && !f.shared, // a process of its own is what each client is promised
		OnMove: f.onMove, Idle: f.idle, MaxSessions: f.sessions, MaxInFlight: f.calls,
		Attached: func(id string) {
			fmt.Fprintf(out, "Attached as instance %s. Try: ripstop tools %s\n", id, name)
		},
	})
	if errors.Is(err, kv.ErrAlreadyRegistered) {
		return &failure{code: exitFailure, why: err.Error(), try: "ripstop ls instances"}
	}
	return err
}

// target reads the name and the command, and checks them against the flags.
func (f serveFlags) target(cmd *cobra.Command, args []string) (name string, command []string, err error) {
	dash := cmd.ArgsLenAtDash()
	if dash == 0 {
		return "", nil, errors.New("NAME is missing before --")
	}
	name, command = args[0], args[1:]
	if err := router.CheckServerName(name); err != nil {
		return "", nil, err
	}
	switch {
	case name == allServers:
		return "", nil, fmt.Errorf("the name %q stands for all servers as one; choose another", allServers)
	case f.scope != kv.ScopeGlobal && f.scope != kv.ScopeLocal:
		return "", nil, fmt.Errorf("--scope %q is neither %s nor %s", f.scope, kv.ScopeGlobal, kv.ScopeLocal)
	case f.only && f.scope == kv.ScopeLocal:
		return "", nil, errors.New("--exclusive concerns the whole cluster; leave --scope local out")
	case f.onMove != sessions.OnMoveReinitialize && f.onMove != sessions.OnMoveEnd:
		return "", nil, fmt.Errorf("--on-move %q is neither %s nor %s", f.onMove, sessions.OnMoveReinitialize, sessions.OnMoveEnd)
	case f.sessions < 0 || f.calls < 0:
		return "", nil, fmt.Errorf("--max-sessions %d, --max-calls %d: neither may be negative", f.sessions, f.calls)
	case f.standby && !f.only:
		return "", nil, errors.New("--standby goes with --exclusive")
	case len(command) > 0 && dash != 1:
		return "", nil, fmt.Errorf("put -- before the command: ripstop serve %s -- %s", name, strings.Join(command, " "))
	case f.url == "" && len(command) == 0:
		return "", nil, fmt.Errorf("nothing to attach: give --url URL, or a command after --")
	case f.url != "" && len(command) > 0:
		return "", nil, errors.New("give --url or a command, not both")
	case f.url != "":
		return name, nil, servers.CheckURL(f.url)
	case len(f.headers) > 0:
		return "", nil, errors.New("--header goes with --url")
	}
	return name, command, nil
}

func (f serveFlags) backend(id string, command []string, log *slog.Logger) (router.Backend, string, error) {
	if f.url != "" {
		h := http.Header{}
		for _, line := range f.headers {
			k, v, ok := strings.Cut(line, ":")
			if !ok {
				return nil, "", fmt.Errorf(`header %q is not "Name: value"`, line)
			}
			h.Add(strings.TrimSpace(k), strings.TrimSpace(v))
		}
		b, err := upstream.New(upstream.Options{Instance: id, URL: f.url, Header: h, IdleTimeout: 2 * f.idle, MaxSessions: f.sessions, Logger: log})
		return b, "http", err
	}
	b, err := stdio.New(stdio.Options{
		Instance: id, Command: command, Env: f.env, Dir: f.dir, Shared: f.shared,
		IdleTimeout: 2 * f.idle, EndWithProcess: true, MaxSessions: f.sessions, Logger: log,
	})
	return b, "stdio", err
}
