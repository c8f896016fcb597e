//go:build !unix

package upstream

import (
	"errors"
	"syscall"
)

// Looking at a socket without taking from it is not portable; net/http's
// transport serves here.
const plainSupported = false

type peeker struct{}

func (p *peeker) init(syscall.Conn) error { return errors.ErrUnsupported }

func (p *peeker) peek() ([]byte, bool) { return nil, false }
