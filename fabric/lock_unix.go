//go:build unix

package fabric

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockExclusive takes the lock without waiting. It is the kernel's to release
// when the process ends, however it ends.
func lockExclusive(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
