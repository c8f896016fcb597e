package stdio

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// watcher is this process's side of the guard: one guard for all backends,
// running while there is one that uses it.
type watcher struct {
	mu     sync.Mutex
	users  int
	warned bool
	groups map[int]bool
	pipe   *os.File // nil while no guard runs
	proc   *os.Process
}

// guard is package-wide because it guards the process, not a backend.
var guard = watcher{groups: map[int]bool{}}

// join counts a backend that may start children.
func (w *watcher) join() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.users++
}

// leave ends the guard with the last backend.
func (w *watcher) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users--; w.users == 0 && len(w.groups) == 0 {
		w.end()
	}
}

// watch puts a process group under guard. A guard that can't be had is logged
// and not an error: the children run as well without one.
func (w *watcher) watch(pgid int, log *slog.Logger) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groups[pgid] = true
	if w.pipe != nil && w.tell('+', pgid) == nil {
		return
	}
	if err := w.start(); err != nil && !w.warned {
		w.warned = true
		log.Warn("no guard for child processes: they may outlive this process if it is killed", "err", err)
	}
}

// unwatch takes a group off. It must be called while the group's id can't have
// been given to anyone else.
func (w *watcher) unwatch(pgid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.groups, pgid)
	if w.pipe != nil {
		_ = w.tell('-', pgid) // a guard that died is replaced with the next watch
	}
	if w.users == 0 && len(w.groups) == 0 {
		w.end()
	}
}

func (w *watcher) tell(op byte, pgid int) error {
	_ = w.pipe.SetWriteDeadline(time.Now().Add(time.Second)) // a guard stopped by hand must not stop us
	_, err := w.pipe.Write(append(strconv.AppendInt([]byte{op}, int64(pgid), 10), '\n'))
	return err
}

// start runs a new guard and tells it every group.
func (w *watcher) start() error {
	w.end()
	if !guardArmed.Load() {
		return fmt.Errorf("stdio.RunGuard was not called first thing in main")
	}
	exe, err := ownExecutable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	r, pipe, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("open guard pipe: %w", err)
	}
	defer r.Close()
	cmd := exec.Cmd{
		Path: exe, Args: []string{"ripstop-guard"}, Env: []string{guardEnv + "=1"}, Stdin: r,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		pipe.Close()
		return fmt.Errorf("start guard: %w", err)
	}
	w.pipe, w.proc = pipe, cmd.Process
	for pgid := range w.groups {
		if err := w.tell('+', pgid); err != nil {
			return fmt.Errorf("tell guard: %w", err)
		}
	}
	return nil
}

// end closes the pipe and reaps the guard, which has nothing to end unless it
// is being replaced; then it must not end the groups that live on.
func (w *watcher) end() {
	if w.pipe == nil {
		return
	}
	if len(w.groups) > 0 {
		_ = w.proc.Kill()
	}
	w.pipe.Close()
	timer := time.AfterFunc(guardGrace, func() { _ = w.proc.Kill() })
	_, _ = w.proc.Wait()
	timer.Stop()
	w.pipe, w.proc = nil, nil
}
