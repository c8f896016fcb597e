//go:build unix

package upstream

import "syscall"

const plainSupported = true

// peeker looks at what a connection has received, without taking it or waiting.
type peeker struct {
	raw syscall.RawConn
	fn  func(fd uintptr) bool // made once: a closure a call would be an allocation
	buf [64]byte
	n   int
	err error
}

func (p *peeker) init(c syscall.Conn) (err error) {
	p.raw, err = c.SyscallConn()
	p.fn = func(fd uintptr) bool {
		p.n, _, p.err = syscall.Recvfrom(int(fd), p.buf[:], syscall.MSG_PEEK)
		return true
	}
	return err
}

// peek returns the bytes received, none if there are none yet. It is false if
// the connection is over.
func (p *peeker) peek() ([]byte, bool) {
	if p.raw.Read(p.fn) != nil {
		return nil, false
	}
	if p.err == syscall.EAGAIN || p.err == syscall.EINTR {
		return nil, true
	}
	return p.buf[:max(p.n, 0)], p.err == nil && p.n > 0
}
