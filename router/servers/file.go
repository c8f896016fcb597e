// Package servers attaches the MCP servers listed in a file of the form that
// desktop clients use ("mcpServers"), and follows changes of the file.
package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"ripstop/kv/sessions"
	"ripstop/router"
)

// Spec is one server of the file.
type Spec struct {
	Name    string // a valid server name; see router.CheckServerName
	Key     string // the key in the file
	Command []string
	Env     []string // KEY=value, sorted
	Dir     string
	URL     string
	Headers map[string]string
	Shared  bool   // one child for all sessions
	OnMove  string // what becomes of a session whose process is gone: reinitialize (or "") or end

	MaxSessions int // held at once; 0 = the default of its kind
	MaxCalls    int // in flight at once; 0 = the agent's default
}

// entry is what a file holds under a server's key. Desktop clients add keys of
// their own (icons, approvals), which are passed over.
type entry struct {
	Type     string            `json:"type"`
	Command  string            `json:"command"`
	Args     []string          `json:"args"`
	Env      map[string]string `json:"env"`
	Cwd      string            `json:"cwd"`
	URL      string            `json:"url"`
	Headers  map[string]string `json:"headers"`
	Disabled bool              `json:"disabled"`
	Shared   bool              `json:"shared"`
	OnMove   string            `json:"onMove"`

	MaxSessions int `json:"maxSessions"`
	MaxCalls    int `json:"maxCalls"`
}

// Load reads the file at path. Any entry that says nothing usable fails the
// whole file, with every problem named. Whether a command or an address is there
// is not asked: that is no property of the file.
func Load(path string) ([]Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read servers file: %w", err)
	}
	specs, err := Parse(data, os.LookupEnv)
	if err != nil {
		return nil, fmt.Errorf("servers file %s: %w", path, err)
	}
	return specs, nil
}

// Parse reads the content of a servers file. "${VAR}", "${VAR:-default}" and
// "${env:VAR}" in its strings are replaced from env.
func Parse(data []byte, env func(string) (string, bool)) ([]Spec, error) {
	var file struct {
		MCPServers map[string]json.RawMessage `json:"mcpServers"`
		Servers    map[string]json.RawMessage `json:"servers"` // the other spelling in use
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, syntax(data, err)
	}
	entries := file.MCPServers
	if entries == nil {
		entries = file.Servers
	}
	if entries == nil {
		return nil, errors.New(`no "mcpServers" object; expected {"mcpServers":{"NAME":{"command":"…","args":[…]}}}`)
	}
	var specs []Spec
	var errs []error
	owner := map[string]string{}
	for _, key := range sortedKeys(entries) {
		spec, skip, err := parseEntry(key, entries[key], env)
		if err == nil && !skip && owner[spec.Name] != "" {
			err = fmt.Errorf("both this and %q would be attached as %q; rename one", owner[spec.Name], spec.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("server %q: %w", key, err))
			continue
		}
		if !skip {
			owner[spec.Name] = key
			specs = append(specs, spec)
		}
	}
	return specs, errors.Join(errs...)
}

func parseEntry(key string, raw json.RawMessage, env func(string) (string, bool)) (Spec, bool, error) {
	var e entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return Spec{}, false, err
	}
	if e.Disabled {
		return Spec{}, true, nil
	}
	spec := Spec{Key: key, Name: router.ServerName(key), Shared: e.Shared, OnMove: e.OnMove, MaxSessions: e.MaxSessions, MaxCalls: e.MaxCalls}
	if spec.Name == "" {
		return spec, false, errors.New("no letter or digit in its name")
	}
	if m := spec.OnMove; m != "" && m != sessions.OnMoveReinitialize && m != sessions.OnMoveEnd {
		return spec, false, fmt.Errorf("\"onMove\" is %q, neither %q nor %q", m, sessions.OnMoveReinitialize, sessions.OnMoveEnd)
	}
	if spec.MaxSessions < 0 || spec.MaxCalls < 0 {
		return spec, false, fmt.Errorf("\"maxSessions\" is %d, \"maxCalls\" %d: neither may be negative", spec.MaxSessions, spec.MaxCalls)
	}
	x := expander{env: env}
	switch {
	case e.Command != "" && e.URL != "":
		return spec, false, errors.New(`has both "command" and "url"; keep one`)
	case e.Command != "":
		spec.Command = append([]string{x.expand(e.Command)}, x.expandAll(e.Args)...)
		for _, k := range sortedKeys(e.Env) {
			spec.Env = append(spec.Env, k+"="+x.expand(e.Env[k]))
		}
		spec.Dir = x.expand(e.Cwd)
	case e.URL != "":
		spec.URL = x.expand(e.URL)
		spec.Headers = map[string]string{}
		for k, v := range e.Headers {
			spec.Headers[k] = x.expand(v)
		}
		if err := CheckURL(spec.URL); err != nil {
			return spec, false, err
		}
	default:
		return spec, false, errors.New(`has neither "command" nor "url"`)
	}
	if e.Type == "sse" {
		return spec, false, errors.New(`type "sse" (the transport of 2024-11-05) is not spoken; use the server's Streamable HTTP address`)
	}
	return spec, false, x.err()
}

// CheckURL says what is wrong with the address of a Streamable HTTP server.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return fmt.Errorf("url: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("url %q is not http://HOST/PATH or https://HOST/PATH", text)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// syntax adds the line to a JSON error, and the likely reason.
func syntax(data []byte, err error) error {
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		return err
	}
	line := 1 + bytes.Count(data[:min(int(se.Offset), len(data))], []byte("\n"))
	hint := ""
	if bytes.Contains(data, []byte("//")) || bytes.Contains(data, []byte(",\n}")) {
		hint = " (comments and trailing commas are not JSON)"
	}
	return fmt.Errorf("line %d: %w%s", line, err, hint)
}

var variable = regexp.MustCompile(`\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}`)

// expander replaces variables and remembers those that are not set.
type expander struct {
	env     func(string) (string, bool)
	missing []string
}

func (x *expander) expand(s string) string {
	return variable.ReplaceAllStringFunc(s, func(ref string) string {
		m := variable.FindStringSubmatch(ref)
		if v, ok := x.env(m[1]); ok {
			return v
		}
		if m[2] == "" && !slices.Contains(x.missing, m[1]) {
			x.missing = append(x.missing, m[1])
		}
		return m[3]
	})
}

func (x *expander) expandAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = x.expand(s)
	}
	return out
}

func (x *expander) err() error {
	if len(x.missing) == 0 {
		return nil
	}
	return fmt.Errorf("environment variable %s is not set; set it, or write ${%s:-default}", strings.Join(x.missing, ", "), x.missing[0])
}
