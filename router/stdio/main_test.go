package stdio_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"ripstop/router/stdio"
)

// The test binary plays every part: the tests, the guard, the MCP server that
// misbehaves, the process that server starts, and an agent to be killed.
func TestMain(m *testing.M) {
	stdio.RunGuard()
	switch os.Getenv("STDIO_TEST_ROLE") {
	case "":
		goroutines, files := runtime.NumGoroutine(), openFiles()
		code := m.Run()
		if left := leaks(goroutines, files); left != "" && code == 0 {
			fmt.Fprintln(os.Stderr, left)
			code = 1
		}
		os.Exit(code)
	case "fake":
		runFake()
	case "sdk":
		runSDK()
	case "grandchild":
		runGrandchild()
	case "agent":
		runAgent()
	}
}

// leaks says what the tests left behind, or "".
func leaks(goroutines, files int) string {
	goroutines++ // the one that starts children, which lives as long as the process
	files += 4   // the runtime's poller, and what it keeps to tell whether pidfds work
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if runtime.NumGoroutine() <= goroutines && openFiles() <= files {
			return ""
		}
	}
	buf := make([]byte, 1<<20)
	return fmt.Sprintf("left behind: %d goroutines (%d are right), %d open files (%d are right)\n%s",
		runtime.NumGoroutine(), goroutines, openFiles(), files, buf[:runtime.Stack(buf, true)])
}

func openFiles() int {
	names, _ := filepath.Glob("/dev/fd/*")
	return len(names)
}
