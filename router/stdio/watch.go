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
	live   *guardProcess // nil while no guard runs
}

type guardProcess struct {
	pipe    *os.File
	proc    *os.Process
	started time.Time
	dead    chan struct{}
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
	if w.live != nil && w.live.tell('+', pgid) == nil {
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
	if w.live != nil {
		_ = w.live.tell('-', pgid) // a guard that died is replaced, and told what is left then
	}
	if w.users == 0 && len(w.groups) == 0 {
		w.end()
	}
}

func (g *guardProcess) tell(op byte, pgid int) error {
	_ = g.pipe.SetWriteDeadline(time.Now().Add(time.Second)) // a guard stopped by hand must not stop us
	_, err := g.pipe.Write(append(strconv.AppendInt([]byte{op}, int64(pgid), 10), '\n'))
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
	g := &guardProcess{pipe: pipe, proc: cmd.Process, started: time.Now(), dead: make(chan struct{})}
	w.live = g
	go w.mind(g)
	for pgid := range w.groups {
		if err := g.tell('+', pgid); err != nil {
			return fmt.Errorf("tell guard: %w", err)
		}
	}
	return nil
}

// mind replaces a guard that dies while it is needed. One that dies as soon as
// it is started is left to the next watch.
func (w *watcher) mind(g *guardProcess) {
	_, _ = g.proc.Wait()
	close(g.dead)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live == g && len(w.groups) > 0 && time.Since(g.started) > time.Second {
		_ = w.start() // the next watch tries again, and logs
	}
}

// end closes the pipe and waits for the guard. It has nothing to end then,
// unless it is being replaced; then it must not end the groups that live on.
func (w *watcher) end() {
	g := w.live
	if g == nil {
		return
	}
	w.live = nil
	if len(w.groups) > 0 {
		_ = g.proc.Kill()
	}
	g.pipe.Close()
	if !within(g.dead, guardGrace) {
		_ = g.proc.Kill()
		<-g.dead
	}
}
