package stdio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
)

const readChunk = 64 << 10

var chunks = sync.Pool{New: func() any { return new([readChunk]byte) }}

var errLineTooLong = errors.New("line too long")

// lineReader reads lines from a pipe. It borrows its buffer only while there is
// something to read, so that an idle child costs none.
type lineReader struct {
	raw   syscall.RawConn
	fill  func(fd uintptr) bool
	limit int

	chunk *[readChunk]byte // nil while idle
	r, w  int              // what of chunk is unread
	long  []byte           // the start of a line that one chunk did not hold
	n     int              // outcome of the last fill
	err   error
}

func newLineReader(f *os.File, limit int) (*lineReader, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &lineReader{raw: raw, limit: limit}
	l.fill = l.tryFill // bound once: a closure for each read would be an allocation for each read
	return l, nil
}

// next returns the next line without its newline; the bytes are valid until
// the call after. At the end of the stream it returns what stands after the
// last newline, and then io.EOF. A line over the limit is errLineTooLong, with
// the start of it.
func (l *lineReader) next() ([]byte, error) {
	l.long = nil
	for {
		if l.r < l.w {
			rest := l.chunk[l.r:l.w]
			i := bytes.IndexByte(rest, '\n')
			if n := len(l.long) + max(i, 0); i >= 0 && n <= l.limit {
				l.r += i + 1
				if l.long == nil {
					return rest[:i], nil
				}
				l.long = append(l.long, rest[:i]...)
				return l.long, nil
			}
			l.long = append(l.long, rest...)
			l.r, l.w = 0, 0
			if len(l.long) > l.limit {
				return l.long[:l.limit], errLineTooLong
			}
		}
		if err := l.read(); err != nil {
			l.release()
			if err == io.EOF && len(l.long) > 0 {
				return l.long, nil
			}
			return nil, err
		}
	}
}

// skipLine drops input up to and with the next newline, after errLineTooLong.
func (l *lineReader) skipLine() error {
	if i := bytes.IndexByte(l.long[l.limit:], '\n'); i >= 0 {
		l.unread(l.long[l.limit+i+1:])
		return nil
	}
	for {
		if err := l.read(); err != nil {
			l.release()
			return err
		}
		if i := bytes.IndexByte(l.chunk[:l.w], '\n'); i >= 0 {
			l.r = i + 1
			return nil
		}
		l.r, l.w = 0, 0
	}
}

// unread puts back what came after an overlong line; it is less than a chunk,
// since it came with one.
func (l *lineReader) unread(rest []byte) {
	l.r, l.w = 0, copy(l.chunk[:], rest)
}

func (l *lineReader) read() error {
	if err := l.raw.Read(l.fill); err != nil {
		return err
	}
	if l.err != nil {
		return l.err
	}
	if l.n == 0 {
		return io.EOF
	}
	l.r, l.w = 0, l.n
	return nil
}

func (l *lineReader) tryFill(fd uintptr) bool {
	if l.chunk == nil {
		l.chunk = chunks.Get().(*[readChunk]byte)
	}
	for {
		l.n, l.err = syscall.Read(int(fd), l.chunk[:])
		switch l.err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			l.release()
			return false
		}
		return true
	}
}

func (l *lineReader) release() {
	if l.chunk != nil {
		chunks.Put(l.chunk)
		l.chunk = nil
	}
}
