// Package bridge is the stdio edge: it lets a client that talks JSON-RPC over
// one duplex channel (a pair of pipes, or memory) use a server of the fabric.
//
// [Run] is that channel as lines on a reader and a writer, which is what
// `ripstop connect` gives a desktop client. [Conn] is the part without the
// lines; router/sdkclient builds on it.
//
// A stdio client knows one server process that lives as long as the pipes do,
// and most never initialize twice. So whatever the fabric can heal is healed
// here, out of its sight: a session that was lost is opened again from the
// client's own initialize, and a request that found nobody is sent again, both
// only where the fabric says that nothing was executed.
package bridge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"ripstop/router"
)

// MaxLine is the longest message a client may send, in bytes, as in go-sdk.
const MaxLine = 16 << 20

// DefaultRetryFor is how long a request waits for a fabric that can't be
// reached: a node restarts in seconds, and clients give up after a minute.
const DefaultRetryFor = 30 * time.Second

// drainFor is how long requests in flight may go on after the client closed
// its end.
const drainFor = 5 * time.Second

// Options say who talks to whom.
type Options struct {
	Handler router.Handler // takes the requests
	Server  string         // the server they are for

	In  io.Reader // Run only: one JSON-RPC message a line
	Out io.Writer // Run only: likewise

	Logger *slog.Logger // nil = no log

	// RetryFor is how long a request is tried again while no instance can be
	// reached and nothing was executed. 0 = DefaultRetryFor, negative = not at
	// all.
	RetryFor time.Duration
}

// Run serves one client until In ends, Out fails or ctx is done, and ends the
// client's session. After the end of In, requests in flight have 5 s to finish
// and Run returns nil; on ctx they are cancelled and Run returns its error.
//
// A Read that blocks can't be interrupted from here: when Run returns because
// of ctx or Out, one goroutine may still wait in In.Read, and ends with it. The
// same holds for a Write to a client that does not read.
func Run(ctx context.Context, o Options) error {
	w := &lineWriter{w: o.Out}
	c := NewConn(ctx, o, w.send)
	read := make(chan error, 1)
	go func() { read <- readLines(o.In, c) }()

	var err error
	select {
	case err = <-read:
		if err == nil {
			c.Drain(drainFor)
		}
	case <-c.ctx.Done():
	}
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(drainFor):
		return errors.New("end the connection: the client takes no messages")
	}
	if sendErr := c.Err(); sendErr != nil {
		return sendErr
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// readLines passes every line to c until the end of in, which is no error.
func readLines(in io.Reader, c *Conn) error {
	r := bufio.NewReaderSize(in, 64<<10)
	for {
		line, tooLong, err := readLine(r)
		switch {
		case tooLong:
			c.refuse(nil, router.Errorf(router.ErrTooLarge, "a line is longer than %d MiB, the most this edge takes", MaxLine>>20))
		case len(bytes.TrimSpace(line)) > 0:
			c.Receive(line)
		}
		switch {
		case err == io.EOF || c.ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read from the client: %w", err)
		}
	}
}

// readLine returns the next line in a buffer of its own. A line past MaxLine is
// read to its end and dropped, so that the next one is found.
func readLine(r *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		var part []byte
		part, err = r.ReadSlice('\n')
		if tooLong = tooLong || len(line)+len(part) > MaxLine+1; tooLong {
			line = nil
		} else {
			line = append(line, part...)
		}
		if err != bufio.ErrBufferFull {
			return line, tooLong, err
		}
	}
}

// lineWriter writes whole lines, one at a time.
type lineWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// keepBuffer is the largest buffer kept between lines.
const keepBuffer = 1 << 20

func (l *lineWriter) send(_ context.Context, msg []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf[:0], msg...)
	// Between tokens JSON may have line ends, inside strings it may not: a
	// backend that indents its messages is put on one line without parsing.
	for i, b := range l.buf {
		if b == '\n' || b == '\r' {
			l.buf[i] = ' '
		}
	}
	l.buf = append(l.buf, '\n')
	_, err := l.w.Write(l.buf)
	if cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	if err != nil {
		return fmt.Errorf("write to the client: %w", err)
	}
	return nil
}
