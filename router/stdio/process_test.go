package stdio_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ripstop/router"
)

func TestClose(t *testing.T) {
	t.Parallel()
	b, _ := start(t, fakeOptions(quirks{Stay: true}))
	var pids []string
	for range 4 {
		c := mustDial(t, b)
		pids = append(pids, c.mustText("pid", ""), c.mustText("spawn", ""))
	}
	pids = append(pids, onceText(t, b, router.EraBare, toolCall("1", "pid", "{}")))
	c := mustDial(t, b)
	inflight := c.background(t.Context(), toolCall("1", "hang", "{}"), nil)
	c.mustText("echo", "")
	began := time.Now()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("Close took %v", took)
	}
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %s is left", pid)
		}
	}
	_, err := inflight.wait(t)
	wantError(t, err, router.ErrOutcomeUnknown, "shutting down")
	_, err = c.text("echo", "")
	wantError(t, err, router.ErrUnavailable, "shutting down")
	_, err = dial(b)
	wantError(t, err, router.ErrUnavailable, "shutting down")
	if err := b.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// agent is a process that uses the backend and will be killed.
type agent struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startAgent(t *testing.T, leak *os.File) *agent {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STDIO_TEST_ROLE=agent")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if leak != nil {
		cmd.ExtraFiles = []*os.File{leak}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return &agent{cmd, in, bufio.NewScanner(out)}
}

// session opens a session in the agent and returns the pids of its child and
// grandchild.
func (a *agent) session(t *testing.T) []string {
	t.Helper()
	fmt.Fprintln(a.in, "go")
	if !a.out.Scan() {
		t.Fatal("the agent ended")
	}
	pids := strings.Fields(a.out.Text())
	if len(pids) != 2 || gone(pids[0]) || gone(pids[1]) {
		t.Fatalf("agent said %q, want two live processes", a.out.Text())
	}
	return pids
}

func (a *agent) kill(t *testing.T, pids []string) {
	t.Helper()
	a.cmd.Process.Kill()
	a.cmd.Wait()
	for _, pid := range pids {
		eventually(t, 5*time.Second, "process "+pid+" is gone", func() bool { return gone(pid) })
	}
}

// guards returns the guard processes among an agent's children.
func (a *agent) guards(t *testing.T) []string {
	t.Helper()
	var found []string
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", a.cmd.Process.Pid))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for pid := range strings.FieldsSeq(string(b)) {
			if args, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.HasPrefix(string(args), "ripstop-guard") {
				found = append(found, pid)
			}
		}
	}
	return found
}

func TestKill9(t *testing.T) {
	t.Parallel()
	a := startAgent(t, nil)
	a.kill(t, append(a.session(t), a.session(t)...))
}

// The guard outlives what ends the rest of the job, holds nothing of the
// agent's, and is replaced if it is killed itself.
func TestGuard(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc to find the guard")
	}
	t.Parallel()
	leak, err := os.Create(filepath.Join(t.TempDir(), "leak"))
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	a := startAgent(t, leak)
	pids := a.session(t)
	began := time.Now()
	guards := a.guards(t)
	if len(guards) != 1 {
		t.Fatalf("guards %v, want one", guards)
	}
	pids = append(pids, guards[0])
	var guard int
	fmt.Sscan(guards[0], &guard)
	eventually(t, deadline, "the guard has let go of what it inherited", func() bool {
		fds, _ := filepath.Glob("/proc/" + guards[0] + "/fd/*")
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == leak.Name() {
				return false
			}
		}
		return len(fds) > 0
	})
	if pgid, err := syscall.Getpgid(guard); err != nil || pgid != guard {
		t.Errorf("the guard's group is %d, %v; want its own, %d", pgid, err, guard)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := syscall.Kill(guard, sig); err != nil {
			t.Fatalf("signal %v: %v", sig, err)
		}
	}
	pids = append(pids, a.session(t)...)
	if got := a.guards(t); len(got) != 1 || got[0] != guards[0] || gone(guards[0]) {
		t.Errorf("guards %v after signals, want %v", got, guards)
	}
	eventually(t, deadline, "the guard has run for a while", func() bool { return time.Since(began) > 1500*time.Millisecond })
	syscall.Kill(guard, syscall.SIGKILL)
	eventually(t, deadline, "another guard takes over", func() bool {
		now := a.guards(t)
		return len(now) == 1 && now[0] != guards[0]
	})
	pids = append(pids, a.session(t)...)
	pids = append(pids, a.guards(t)...)
	a.kill(t, pids)
}

// The agent's own end, without Close, ends everything too.
func TestAgentExits(t *testing.T) {
	t.Parallel()
	a := startAgent(t, nil)
	pids := append(a.session(t), a.guards(t)...)
	a.in.(io.Closer).Close()
	a.cmd.Wait()
	for _, pid := range pids {
		eventually(t, 5*time.Second, "process "+pid+" is gone", func() bool { return gone(pid) })
	}
}
