package stdio

import (
	"bufio"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// guardEnv marks a process as the guard.
const guardEnv = "RIPSTOP_GUARD"

// guardGrace is how long the guard lets a group end after SIGTERM before it
// kills it; together with the kill it stays well below the 5 s in which no
// child of a killed agent may be left.
const guardGrace = 1500 * time.Millisecond

// guardArmed is set once main has called RunGuard. Without that call a copy of
// this program would not become a guard but run the program again.
var guardArmed atomic.Bool

// RunGuard makes this process the guard if it was started as one, and does not
// return then. In every other process it returns at once. Call it first thing
// in main, and in TestMain of tests that use this package.
//
// The guard is a copy of this program that outlives it by a moment: it holds
// one end of a pipe, is told over it which process groups to watch, and ends
// them when the pipe closes, however this program ended. PR_SET_PDEATHSIG
// alone does not do: it reaches children, not the processes they started (npx
// starts node).
func RunGuard() {
	if os.Getenv(guardEnv) == "" {
		guardArmed.Store(true)
		return
	}
	// A terminal's Ctrl-C or a service manager's SIGTERM reaches the whole job;
	// the guard must stay until the agent is gone.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	closeInherited()
	_ = os.Chdir("/") // so that no mount stays busy because of the guard
	endGroups(watchGroups(os.Stdin))
	os.Exit(0)
}

// closeInherited closes what leaked in from the agent's own parent: a listener
// or lock held here would outlive the agent. What the runtime opened itself is
// marked close-on-exec, what came through exec is not.
func closeInherited() {
	names, _ := filepath.Glob("/dev/fd/*")
	for _, name := range names {
		fd, err := strconv.Atoi(filepath.Base(name))
		if err != nil || fd < 3 {
			continue
		}
		if inheritable(fd) {
			_ = syscall.Close(fd)
		}
	}
}

// watchGroups reads lines "+pgid" and "-pgid" until r ends, and returns the
// groups that are left.
func watchGroups(r io.Reader) map[int]bool {
	groups := map[int]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if len(line) < 2 {
			continue
		}
		pgid, err := strconv.Atoi(line[1:])
		if err != nil || pgid <= 1 { // kill(-1) would reach every process there is
			continue
		}
		if line[0] == '+' {
			groups[pgid] = true
		} else {
			delete(groups, pgid)
		}
	}
	return groups
}

func endGroups(groups map[int]bool) {
	signalAll := func(sig syscall.Signal) {
		for pgid := range groups {
			if syscall.Kill(-pgid, sig) == syscall.ESRCH {
				delete(groups, pgid)
			}
		}
	}
	signalAll(syscall.SIGTERM)
	for end := time.Now().Add(guardGrace); len(groups) > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		signalAll(0)
	}
	signalAll(syscall.SIGKILL)
}
