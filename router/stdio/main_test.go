package stdio_test

import (
	"os"
	"testing"

	"ripstop/router/stdio"
)

// The test binary plays every part: the tests, the guard, the MCP server that
// misbehaves, the process that server starts, and an agent to be killed.
func TestMain(m *testing.M) {
	stdio.RunGuard()
	switch os.Getenv("STDIO_TEST_ROLE") {
	case "":
		os.Exit(m.Run())
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
