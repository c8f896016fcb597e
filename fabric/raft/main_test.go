package raft_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"ripstop/fabric/raft"
)

// childEnv makes this binary a nats-server instead of a test: something to kill.
const childEnv = "RIPSTOP_RAFT_TEST_SERVER"

// timing is the lan preset, slowed for the race detector, and more on machines
// where RIPSTOP_TEST_SCALE says so.
var timing = raft.LAN().Scale(scale())

// slack is how much later than the arithmetic says a test lets things happen.
const slack = 3

func scale() float64 {
	f, err := strconv.ParseFloat(os.Getenv("RIPSTOP_TEST_SCALE"), 64)
	if err != nil {
		f = 1
	}
	return f * slowdown
}

func scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * scale()) }

func TestMain(m *testing.M) {
	if err := timing.Apply(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if conf := os.Getenv(childEnv); conf != "" {
		os.Exit(runChild(conf))
	}
	os.Exit(m.Run())
}

// runChild serves until stdin ends, which it does when the parent dies.
func runChild(conf string) int {
	var c serverConf
	err := json.Unmarshal([]byte(conf), &c)
	if err == nil {
		srv, startErr := c.start()
		if err = startErr; err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
			srv.Shutdown()
			srv.WaitForShutdown()
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
