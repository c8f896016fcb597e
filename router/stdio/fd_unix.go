//go:build unix

package stdio

import "golang.org/x/sys/unix"

// inheritable reports whether fd is open and would survive an exec.
func inheritable(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}
