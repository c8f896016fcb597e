package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed is the direction of imports (docs/architecture.md): each top-level
// package and those it may use. Below router, wire is under agent is under what
// cmd composes; the compiler refuses cycles.
var allowed = map[string][]string{
	"cmd":      {"cmd", "router", "failover", "kv", "fabric"},
	"e2e":      {"e2e", "cmd", "router", "failover", "kv", "fabric"},
	"router":   {"router", "kv"},
	"failover": {"failover", "kv", "fabric"},
	"kv":       {"kv", "fabric"},
	"fabric":   {"fabric"},
}

func TestImportsRunOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "ripstop/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 10 {
		t.Fatalf("only %d packages listed", len(lines))
	}
	for _, line := range lines {
		f := strings.Fields(line)
		from := top(f[0])
		for _, imp := range f[1:] {
			if to := top(imp); to != "" && from != "" && !slices.Contains(allowed[from], to) {
				t.Errorf("%s imports %s; %s may use only %v", f[0], imp, from, allowed[from])
			}
		}
	}
}

// top returns the top-level folder of a package of this module, or "".
func top(path string) string {
	rest, ok := strings.CutPrefix(path, "ripstop/")
	if !ok {
		return ""
	}
	dir, _, _ := strings.Cut(rest, "/")
	return dir
}
