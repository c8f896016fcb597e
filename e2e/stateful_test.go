package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// stateEnv, set, makes the test binary an MCP server on stdio whose state is in
// its memory: how many calls it has executed. It notes each in the file that the
// variable names, before it answers, and says in each answer which process it is.
const stateEnv = "RIPSTOP_E2E_STATE"

// keepState is that server.
func keepState(path string) int {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	process := fmt.Sprintf("%d.%d", os.Getpid(), time.Now().UnixNano()) // ids of processes are used again
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for n := 0; in.Scan(); {
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
			out = fmt.Sprintf(`"result":{"protocolVersion":%q,"capabilities":{"tools":{},"logging":{}},"serverInfo":{"name":"state","version":"1"}}`, m.Params.Version)
		case "ping", "logging/setLevel":
			out = `"result":{}`
		case "tools/list":
			out = `"result":{"tools":[{"name":"work","inputSchema":{"type":"object","properties":{"id":{"type":"string"}}}},{"name":"again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}]}`
		case "tools/call":
			n++
			if _, err := fmt.Fprintf(f, "%s %s %d\n", m.Params.Arguments.ID, process, n); err != nil {
				return 1
			}
			out = fmt.Sprintf(`"result":{"content":[{"type":"text","text":%q}],"structuredContent":{"process":%q,"n":%d}}`, "did "+m.Params.Arguments.ID, process, n)
		default:
			out = fmt.Sprintf(`"error":{"code":-32601,"message":"no method %s"}`, m.Method)
		}
		if _, err := fmt.Printf(`{"jsonrpc":"2.0","id":%s,%s}`+"\n", m.ID, out); err != nil {
			return 1
		}
	}
	return 0
}

// stateful is where the servers with state of a test write.
type stateful struct{ file string }

func newStateful(t testing.TB) stateful {
	t.Helper()
	return stateful{filepath.Join(t.TempDir(), "executed")}
}

// command is what follows `ripstop serve NAME` to attach one.
func (s stateful) command(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--env", stateEnv + "=" + s.file, "--", self}
}

// servers writes an mcpServers file with one of this name.
func (s stateful) servers(t testing.TB, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{"mcpServers": map[string]any{
		name: map[string]any{"command": self, "env": map[string]string{stateEnv: s.file}}}})
	if err != nil {
		t.Fatal(err)
	}
	return serversFile(t, string(data))
}

// executed returns what ran, in order.
func (s stateful) executed(t testing.TB) []lab.Execution {
	t.Helper()
	data, err := os.ReadFile(s.file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []lab.Execution
	for line := range strings.Lines(string(data)) {
		var e lab.Execution
		if _, err := fmt.Sscan(line, &e.ID, &e.Process, &e.N); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, e)
	}
	return out
}
