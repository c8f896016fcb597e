package stdio

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
)

// errNotSent says that no byte of a message reached the child.
var errNotSent = errors.New("message not sent")

// maxBacklog bounds the messages nobody waits for (cancellations) that a child
// has not read, in bytes.
const maxBacklog = 1 << 20

// writer writes lines to a child's stdin. A line that the pipe takes at once,
// as nearly all do, is written by its sender; what a busy child does not take
// yet is left to a goroutine, so that the sender can give up without tearing a
// line in two.
type writer struct {
	file *os.File
	raw  syscall.RawConn
	try  func(fd uintptr) bool
	turn chan struct{} // holds a token while a line is being written
	dead chan struct{} // closed by close

	// Outcome of the last try; owned by whoever holds turn.
	line []byte
	n    int
	err  error

	mu      sync.Mutex
	closed  bool
	backlog [][]byte
	size    int // bytes in backlog
	helpers sync.WaitGroup
}

func newWriter(f *os.File) (*writer, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &writer{file: f, raw: raw, turn: make(chan struct{}, 1), dead: make(chan struct{})}
	w.try = w.tryWrite
	return w, nil
}

// encode makes raw one line. It takes over raw if that is fresh, and copies it
// otherwise. White space between tokens may be a line break, which would end
// the line early; inside a JSON string none can stand.
func encode(raw []byte, fresh bool) []byte {
	if !fresh {
		raw = append(make([]byte, 0, len(raw)+1), raw...)
	}
	for _, c := range []byte{'\n', '\r'} {
		for at := bytes.IndexByte(raw, c); at >= 0; at = bytes.IndexByte(raw, c) {
			raw[at] = ' '
		}
	}
	return append(raw, '\n')
}

// send writes one line. The error is errNotSent if the child has seen nothing
// of it; with any other error, ctx's included, it has or will.
func (w *writer) send(ctx context.Context, line []byte) error {
	select {
	case w.turn <- struct{}{}:
	default:
		select {
		case w.turn <- struct{}{}:
		case <-ctx.Done():
			return errNotSent
		case <-w.dead:
			return errNotSent
		}
	}
	n, err := w.attempt(line)
	if n == len(line) {
		w.yield()
		return nil
	}
	if err != nil {
		w.yield()
		if n == 0 {
			return errNotSent
		}
		return err
	}
	finished := make(chan error, 1)
	if !w.help(func() { finished <- w.finish(line[n:]) }) {
		if n == 0 {
			return errNotSent
		}
		return os.ErrClosed
	}
	select {
	case err := <-finished:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt writes what the pipe takes without waiting.
func (w *writer) attempt(line []byte) (int, error) {
	w.line, w.n, w.err = line, 0, nil
	err := w.raw.Write(w.try)
	w.line = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

func (w *writer) tryWrite(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), w.line)
		switch err {
		case syscall.EINTR:
			continue
		case nil:
			w.n = n
		case syscall.EAGAIN:
		default:
			w.err = err
		}
		return true
	}
}

func (w *writer) finish(rest []byte) error {
	_, err := w.file.Write(rest)
	return err
}

// help runs f, and after it the backlog, with the turn its caller holds. It
// reports whether it could: after close there is nobody to wait for helpers.
func (w *writer) help(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.helpLocked(f)
}

func (w *writer) helpLocked(f func()) bool {
	if w.closed {
		<-w.turn
		return false
	}
	w.helpers.Go(func() {
		f()
		w.drain()
	})
	return true
}

// drain writes the backlog and gives up the turn.
func (w *writer) drain() {
	for {
		w.mu.Lock()
		if w.closed || len(w.backlog) == 0 {
			<-w.turn
			w.mu.Unlock()
			return
		}
		lines := bytes.Join(w.backlog, nil)
		w.backlog, w.size = nil, 0
		w.mu.Unlock()
		_ = w.finish(lines) // it fails only when the child is gone, which its reader notices
	}
}

// yield gives up the turn, or leaves it to a helper if a backlog has come up.
func (w *writer) yield() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.backlog) == 0 {
		<-w.turn
		return
	}
	w.helpLocked(func() {})
}

// post writes one line when the child takes it, and does not wait. It reports
// whether there was room.
func (w *writer) post(line []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.size+len(line) > maxBacklog {
		return false
	}
	w.backlog = append(w.backlog, line)
	w.size += len(line)
	select {
	case w.turn <- struct{}{}:
		w.helpLocked(func() {})
	default: // whoever has the turn will find the backlog
	}
	return true
}

// close closes the child's stdin.
func (w *writer) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	close(w.dead)
	_ = w.file.Close()
}

// wait returns when no helper is left. It follows close.
func (w *writer) wait() { w.helpers.Wait() }
