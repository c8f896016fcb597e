package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"ripstop/router"
)

// Limits of a user's entry, in bytes.
const (
	MaxName  = 32
	MinToken = 16
)

// Load reads a users file. Every problem is named, and any fails all of it.
func Load(path string) ([]User, error) {
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read users file: %w", err)
	}
	users, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("users file %s: %w", path, err)
	}
	return users, nil
}

// Parse reads a users file, which is YAML, or JSON, with one key: users.
func Parse(data []byte) ([]User, error) {
	var file struct {
		Users []User `yaml:"users"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(file.Users) == 0 {
		return nil, errors.New("it names no user; it should hold `users:` and a list of {name, token, role, tools, servers}")
	}
	var errs []error
	names, tokens := map[string]bool{}, map[string]string{}
	for i := range file.Users {
		u := &file.Users[i]
		if u.Role == "" {
			u.Role = Client
		}
		if err := checkName(u.Name); err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		if names[u.Name] {
			errs = append(errs, fmt.Errorf("user %s is there twice", u.Name))
		}
		if other := tokens[u.Token]; other != "" {
			errs = append(errs, fmt.Errorf("users %s and %s have the same token: over HTTP nothing else tells them apart", other, u.Name))
		}
		names[u.Name], tokens[u.Token] = true, u.Name
		for _, err := range u.check() {
			errs = append(errs, fmt.Errorf("user %s: %w", u.Name, err))
		}
	}
	return file.Users, errors.Join(errs...)
}

// checkName says what is wrong with a user's name, or nil. It stands in NATS
// subjects and in Request.Principal.
func checkName(name string) error {
	if name == router.Anybody {
		return fmt.Errorf("user name %q stands for everybody; choose another", name)
	}
	ok := name != "" && len(name) <= MaxName
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return fmt.Errorf("user name %q: use up to %d letters, digits, '-' and '_'", name, MaxName)
	}
	return nil
}

// check says what is wrong with a user but for its name.
func (u User) check() []error {
	var errs []error
	if err := CheckToken(u.Token); err != nil {
		errs = append(errs, err)
	}
	switch {
	case u.Role != Client && u.Role != Agent:
		errs = append(errs, fmt.Errorf("role %q is not client or agent", u.Role))
	case u.Role == Agent && len(u.Tools) > 0:
		errs = append(errs, errors.New("tools are for clients; say servers to limit an agent"))
	}
	for _, s := range u.Servers {
		if err := router.CheckServerName(s); err != nil && s != "*" {
			errs = append(errs, err)
		}
	}
	for _, t := range u.Tools {
		server, tool, ok := strings.Cut(t, ".")
		switch err := router.CheckServerName(server); {
		case !ok || tool == "":
			errs = append(errs, fmt.Errorf("tool %q is not <server>.<tool>, such as github.search_issues or demo.*", t))
		case err != nil && server != "*":
			errs = append(errs, fmt.Errorf("tool %q: %w", t, err))
		case tool != "*" && strings.Contains(tool, "*"):
			errs = append(errs, fmt.Errorf("tool %q: * stands for any tool, not for a part of a name", t))
		}
	}
	return errs
}

// CheckToken says what is wrong with a token, or nil.
func CheckToken(token string) error {
	if len(token) < MinToken {
		return fmt.Errorf("its token has %d characters; a token has at least %d (`openssl rand -hex 32` makes one)", len(token), MinToken)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("a token is printable ASCII without spaces (`openssl rand -hex 32` makes one)")
	}
	return nil
}
