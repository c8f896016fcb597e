package stdio

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ripstop/router"
)

// Defaults of Options.
const (
	DefaultIdleTimeout  = 30 * time.Minute
	DefaultMaxSessions  = 256
	DefaultStartTimeout = 30 * time.Second // npx may have to download the server first
)

// Options says what to run and how.
type Options struct {
	Instance string   // instance id, the prefix of session ids; "" = a new one
	Command  []string // the program and its arguments
	Env      []string // "KEY=value", added to this process's own environment
	Dir      string   // working directory; "" = this process's own

	// Shared multiplexes one child over all sessions. If false, every legacy
	// session has a child, and so a state, of its own.
	Shared bool

	// EndWithProcess ends a session when its process ends, for whoever holds
	// sessions over this backend and makes them anew. If false, the backend
	// starts another process and tells it what the session's client had told
	// the first, as it always does for a shared one.
	EndWithProcess bool

	// IdleTimeout ends a legacy session that had neither a request nor a stream
	// for so long, and the kept child that nothing used. 0 = DefaultIdleTimeout.
	IdleTimeout time.Duration

	// MaxSessions bounds the legacy sessions held at once. 0 = DefaultMaxSessions.
	MaxSessions int

	// StartTimeout bounds the time from starting a child to the end of its
	// handshake. 0 = DefaultStartTimeout.
	StartTimeout time.Duration

	Logger *slog.Logger // nil = no log
}

func (o Options) withDefaults() Options {
	if o.Instance == "" {
		o.Instance = router.NewInstanceID()
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = DefaultStartTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	switch {
	case len(o.Command) == 0 || o.Command[0] == "":
		return fmt.Errorf("no command given: name the program that runs the MCP server")
	case o.IdleTimeout < 0 || o.StartTimeout < 0 || o.MaxSessions < 0:
		return fmt.Errorf("idle timeout %v, start timeout %v, max sessions %d: none may be negative", o.IdleTimeout, o.StartTimeout, o.MaxSessions)
	}
	for _, e := range o.Env {
		if i := strings.IndexByte(e, '='); i < 1 {
			return fmt.Errorf("environment entry %q is not KEY=value", e)
		}
	}
	if o.Dir == "" {
		return nil
	}
	if st, err := os.Stat(o.Dir); err != nil {
		return fmt.Errorf("working directory of %s: %w", o.Command[0], err)
	} else if !st.IsDir() {
		return fmt.Errorf("working directory of %s: %s is not a directory", o.Command[0], o.Dir)
	}
	return nil
}

// command is a program ready to be started, any number of times.
type command struct {
	path string // absolute, or relative to this process's working directory
	args []string
	env  []string
	dir  string
}

func (o Options) resolve() (command, error) {
	c := command{args: o.Command, env: append(os.Environ(), o.Env...), dir: o.Dir}
	var err error
	c.path, err = lookPath(o.Command[0], o.Dir, c.env)
	return c, err
}

// lookPath finds the program as the child's own shell would: relative to the
// child's directory, and in the PATH the child gets. exec.LookPath knows only
// this process's.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		path := name
		if !filepath.IsAbs(path) && dir != "" {
			path = filepath.Join(dir, path)
		}
		path, err := filepath.Abs(path) // the child changes directory before it executes
		if err != nil {
			return "", fmt.Errorf("command %q: %w", name, err)
		}
		if err := executable(path); err != nil {
			return "", fmt.Errorf("command %q: %w", name, err)
		}
		return path, nil
	}
	list := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	for _, d := range filepath.SplitList(list) {
		if path := filepath.Join(d, name); filepath.IsAbs(path) && executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("command %q is not in PATH (%s): install it, or give its full path", name, list)
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", path)
	}
	return nil
}
