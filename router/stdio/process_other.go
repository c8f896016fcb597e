//go:build unix && !linux

package stdio

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childAttr puts a child into a process group of its own. Only Linux can also
// have the kernel kill it with its parent; here the guard does that alone.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func ownExecutable() (string, error) { return os.Executable() }

func onForkThread(f func()) { f() }

// awaitExit returns when the child has exited, and leaves it unreaped: until
// then nobody else can be given its process group id.
func awaitExit(pid int) {
	kq, err := unix.Kqueue()
	for ; err != nil; kq, err = unix.Kqueue() { // out of files, for now
		time.Sleep(100 * time.Millisecond)
	}
	defer unix.Close(kq)
	var change unix.Kevent_t
	unix.SetKevent(&change, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	change.Fflags = unix.NOTE_EXIT
	events := make([]unix.Kevent_t, 1)
	changes := []unix.Kevent_t{change}
	for {
		if _, err = unix.Kevent(kq, changes, events, nil); err != unix.EINTR {
			return
		}
		changes = nil
	}
}
