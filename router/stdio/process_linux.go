package stdio

import (
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttr puts a child into a process group of its own and has the kernel
// kill it when the thread that started it ends.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// ownExecutable is this program even after its file was replaced by an upgrade.
func ownExecutable() (string, error) { return "/proc/self/exe", nil }

var forks = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// onForkThread runs f on the one thread that starts children. PR_SET_PDEATHSIG
// fires when the forking thread ends, not the process, and Go ends threads as
// it likes; so that thread is locked to a goroutine that lives as long as the
// process.
func onForkThread(f func()) {
	done := make(chan struct{})
	forks() <- func() {
		defer close(done)
		f()
	}
	<-done
}

// awaitExit returns when the child has exited, and leaves it unreaped: until
// then nobody else can be given its process group id.
//
// It waits in the poller, through a pidfd. A blocking wait would cost each idle
// session a thread.
func awaitExit(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == nil {
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		var raw syscall.RawConn
		if raw, err = f.SyscallConn(); err == nil {
			err = raw.Read(func(fd uintptr) bool { return exitedNow(unix.P_PIDFD, int(fd), unix.WNOHANG) })
		}
	}
	if err != nil { // before Linux 5.10
		exitedNow(unix.P_PID, pid, 0)
	}
}

func exitedNow(kind, id, flags int) bool {
	for {
		var info unix.Siginfo
		err := unix.Waitid(kind, id, &info, unix.WEXITED|unix.WNOWAIT|flags, nil)
		if err != unix.EINTR {
			return err != nil || info.Signo != 0
		}
	}
}
