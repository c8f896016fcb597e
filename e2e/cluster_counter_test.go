package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// countEnv, set, makes the test binary an MCP server on stdio that notes the id
// of each call it executes in the file that the variable names.
const countEnv = "RIPSTOP_E2E_COUNT"

// countCalls is that server. One write a call, appended: several of them share a
// file, and what one has noted outlives its kill -9.
func countCalls(path string) int {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var m struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
			Params struct {
				Version   string `json:"protocolVersion"`
				Arguments struct {
					ID string `json:"id"`
				} `json:"arguments"`
			} `json:"params"`
		}
		if json.Unmarshal(in.Bytes(), &m) != nil || m.ID == nil {
			continue
		}
		var out string
		switch m.Method {
		case "initialize":
			out = fmt.Sprintf(`"result":{"protocolVersion":%q,"capabilities":{"tools":{}},"serverInfo":{"name":"count","version":"1"}}`, m.Params.Version)
		case "ping":
			out = `"result":{}`
		case "tools/list":
			out = `"result":{"tools":[{"name":"work","inputSchema":{"type":"object","properties":{"id":{"type":"string"}}}}]}`
		case "tools/call":
			if _, err := f.WriteString(m.Params.Arguments.ID + "\n"); err != nil {
				return 1
			}
			out = fmt.Sprintf(`"result":{"content":[{"type":"text","text":%q}]}`, "did "+m.Params.Arguments.ID)
		default:
			out = fmt.Sprintf(`"error":{"code":-32601,"message":"no method %s"}`, m.Method)
		}
		if _, err := fmt.Printf(`{"jsonrpc":"2.0","id":%s,%s}`+"\n", m.ID, out); err != nil {
			return 1
		}
	}
	return 0
}

// workBody is a call that the counting server notes as id.
func workBody(id string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"work","arguments":{"id":%q}}}`, id)
}

// counter is where the counting servers of a test write.
type counter struct{ file string }

func newCounter(t testing.TB) counter {
	t.Helper()
	return counter{filepath.Join(t.TempDir(), "executed")}
}

// servers writes an mcpServers file with counting servers of these names.
func (c counter) servers(t testing.TB, names ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]any{}
	for _, name := range names {
		entries[name] = map[string]any{"command": self, "env": map[string]string{countEnv: c.file}, "shared": true}
	}
	data, err := json.Marshal(map[string]any{"mcpServers": entries})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mcp.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// command is what follows `ripstop serve NAME` to attach one.
func (c counter) command(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--env", countEnv + "=" + c.file, "--", self}
}

// executed counts how often each call ran.
func (c counter) executed(t testing.TB) map[string]int {
	t.Helper()
	data, err := os.ReadFile(c.file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	ran := map[string]int{}
	for _, id := range strings.Fields(string(data)) {
		ran[id]++
	}
	return ran
}

// TestCountingServer: the count is of what ran, however many servers share it.
func TestCountingServer(t *testing.T) {
	c := newCounter(t)
	n := startNode(t, "--demo=false", "--servers", c.servers(t, "one", "two"))
	for i, server := range []string{"one", "two", "one"} {
		n.cli(t, "call", server, "work", fmt.Sprintf("id=%s-%d", server, i)).ok(t).says(t, "did "+server)
	}
	n.cli(t, "call", "two", "work", "id=two-1").ok(t)
	ran := c.executed(t)
	if len(ran) != 3 || ran["one-0"] != 1 || ran["two-1"] != 2 || ran["one-2"] != 1 {
		t.Errorf("executed %v", ran)
	}
}
