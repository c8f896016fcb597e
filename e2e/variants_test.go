package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// clockEnv, set for the binary of [wrongClockBinary], is how many seconds its
// wall clock is off.
const clockEnv = "RIPSTOP_E2E_CLOCK"

// wrongClockBinary is ripstop with a wall clock that can be set wrong, for
// everything in it: the standard library's time.Now adds clockEnv's seconds. The
// monotonic clock, which timers and deadlines go by, is left alone, as where a
// machine's clock is wrong.
func wrongClockBinary(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	const reads = "\tsec, nsec, mono := runtimeNow()\n"
	return variant(t, "ripstop-clock", map[string]string{
		filepath.Join(dir, "time.go"): changed(t, filepath.Join(dir, "time.go"), reads, reads+"\tsec += wrongBy\n"),
		filepath.Join(dir, "wrongby.go"): fmt.Sprintf(`package time

import "syscall"

// wrongBy is how many seconds the wall clock is off.
var wrongBy = func() int64 {
	text, _ := syscall.Getenv(%q)
	n, err := atoi(text)
	if text != "" && err != nil {
		panic(%q)
	}
	return int64(n)
}()
`, clockEnv, clockEnv+" is no number of seconds"),
	})
}

// versionBinary is ripstop as if it were a release that speaks these wire
// versions.
func versionBinary(t testing.TB, release string, oldest, newest int) string {
	t.Helper()
	path, err := filepath.Abs("../router/wire/version.go")
	if err != nil {
		t.Fatal(err)
	}
	text := changed(t, path, "\tMinVersion = 1\n\tVersion    = 1\n", fmt.Sprintf("\tMinVersion = %d\n\tVersion    = %d\n", oldest, newest))
	return variant(t, "ripstop-"+release, map[string]string{path: text}, "-ldflags=-X main.version="+release)
}

// changed returns the file's text with one thing replaced, which must be there
// exactly once.
func changed(t testing.TB, path, from, to string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), from); n != 1 {
		t.Fatalf("%s has %q %d times, want once: it has changed since this test was written", path, from, n)
	}
	return strings.Replace(string(data), from, to, 1)
}

// variant builds ripstop with the text of some files replaced, or added.
func variant(t testing.TB, name string, files map[string]string, flags ...string) string {
	t.Helper()
	builds.Lock()
	done := builds.done[name]
	builds.Unlock()
	if done != "" {
		return done
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for i, path := range slices.Sorted(maps.Keys(files)) {
		replace[path] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(replace[path], []byte(files[path]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	path := build(t, "ripstop/cmd/ripstop", name, append(flags, "-overlay", overlay)...)
	t.Logf("%s built in %s", name, time.Since(begin).Round(time.Second))
	return path
}

// TestVariants: the variants are what the tests that use them take them for.
func TestVariants(t *testing.T) {
	if !all() {
		t.Skip("builds the standard library anew; run it with RIPSTOP_E2E=all go test -run TestVariants ./e2e")
	}
	for release, wire := range map[string][2]int{"v0.1.0": {1, 1}, "v0.2.0": {1, 2}, "v0.9.0": {3, 3}} {
		v := decode[struct {
			Version string
			Wire    int
		}](t, run(t, 10*time.Second, "", versionBinary(t, release, wire[0], wire[1]), "version", "-o", "json").ok(t).out)
		if v.Version != release || v.Wire != wire[1] {
			t.Errorf("%s says that it is %+v", release, v)
		}
	}
	for _, off := range []int{300, -300} {
		t.Setenv(clockEnv, fmt.Sprint(off))
		n := startNodeOf(t, wrongClockBinary(t))
		out := n.cli(t, "call", "demo", "now", "-o", "json").ok(t).out
		said := decode[struct{ StructuredContent struct{ Unix int64 } }](t, out)
		if d := said.StructuredContent.Unix - time.Now().Unix() - int64(off); max(d, -d) > 5 {
			t.Errorf("with the clock off by %d s, it is %d s from what it should be: %s", off, d, out)
		}
	}
}
