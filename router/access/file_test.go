package access_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"ripstop/router/access"
)

const token = "0123456789abcdef"

func TestParse(t *testing.T) {
	want := []access.User{
		{Name: "ci", Token: token, Role: access.Client, Tools: []string{"github.search_issues", "demo.*"}},
		{Name: "gh-agent", Token: token + "2", Role: access.Agent, Servers: []string{"github"}},
	}
	yaml := `
users:
  - name: ci
    token: ` + token + `
    tools: [github.search_issues, "demo.*"]
  - {name: gh-agent, token: ` + token + `2, role: agent, servers: [github]}
`
	json := `{"users": [
		{"name": "ci", "token": "` + token + `", "role": "client", "tools": ["github.search_issues", "demo.*"]},
		{"name": "gh-agent", "token": "` + token + `2", "role": "agent", "servers": ["github"]}
	]}`
	for name, text := range map[string]string{"YAML": yaml, "JSON": json} {
		path := filepath.Join(t.TempDir(), "users")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := access.Load(path)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	if _, err := access.Load(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "read users file") {
		t.Errorf("no file: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	user := func(rest string) string { return "users: [{name: a, token: " + token + rest + "}]" }
	for text, want := range map[string]string{
		"":           "names no user",
		"users: []":  "names no user",
		"people: []": "field people not found",
		"users: [{name: a, token: " + token + ", tool: [x.y]}]":                      "field tool not found",
		"users: [{name: a.b, token: " + token + "}]":                                 "use up to 32",
		"users: [{name: bearer, token: " + token + "}]":                              "stands for everybody",
		"users: [{name: " + strings.Repeat("a", 33) + ", token: " + token + "}]":     "use up to 32",
		"users: [{token: " + token + "}]":                                            "entry 1",
		"users: [{name: a, token: short}]":                                           "5 characters",
		"users: [{name: a}]":                                                         "0 characters",
		"users: [{name: a, token: 'a token with spaces'}]":                           "without spaces",
		"users: [{name: a, token: " + token + "}, {name: a, token: " + token + "2}]": "twice",
		"users: [{name: a, token: " + token + "}, {name: b, token: " + token + "}]":  "the same token",
		user(", role: admin"):                                                        "not client or agent",
		user(", role: agent, tools: [demo.echo]"):                                    "tools are for clients",
		user(", tools: [demo]"):                                                      "is not <server>.<tool>",
		user(", tools: [demo.]"):                                                     "is not <server>.<tool>",
		user(`, tools: ["demo.ec*"]`):                                                "stands for any tool",
		user(", tools: [a__b.c]"):                                                    `contains "__"`,
		user(`, servers: ["de>"]`):                                                   "server name",
		user(", role: agent, servers: [mcp.v1]"):                                     "server name",
	} {
		if _, err := access.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not say %q", text, err, want)
		}
	}
}
