package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxLine is the longest message of a child, in bytes; the same limit as
	// go-sdk's stdio transport.
	maxLine = 16 << 20

	// stopGrace is how long a child has to end after its stdin closed, and
	// again after SIGTERM (MCP, lifecycle, "Shutdown").
	stopGrace = 2 * time.Second

	// flushGrace is how long the output of a child that exited may take to end.
	// It takes longer only if another process holds the pipe.
	flushGrace = 200 * time.Millisecond

	// maxLogLine bounds what is logged of one line of a child, in bytes.
	maxLogLine = 4 << 10
)

// exit says how a child ended.
type exit struct {
	status string // "exit status 1", "signal: killed"
	stderr string // its last line on stderr
	why    string // why this side ended it; "" = it ended by itself
}

func (e *exit) String() string {
	s := "exited (" + e.status
	if e.why != "" {
		s = "was ended (" + e.why
	}
	if e.stderr != "" {
		s += fmt.Sprintf("; last stderr line: %q", e.stderr)
	}
	return s + ")"
}

// process is one child.
type process struct {
	pid    int // and the id of its process group
	handle *os.Process
	stdin  *writer
	stdout *os.File
	stderr *os.File
	log    *slog.Logger

	exited  chan struct{}  // closed when the child itself has exited
	outputs chan struct{}  // closed when its stdout and stderr are read to the end
	open    atomic.Int32   // how many of the two are not
	readers sync.WaitGroup // their goroutines
	done    chan struct{}  // closed when all of it is gone: group, goroutines, files

	mu       sync.Mutex
	why      string
	lastLine string
	termed   bool // SIGTERM was sent
	reaped   bool // the group id may be someone else's now
}

// startProcess starts a child. Nothing is read from it before run.
func startProcess(c command, log *slog.Logger) (*process, error) {
	var files [6]*os.File
	for i := 0; i < len(files); i += 2 {
		var err error
		if files[i], files[i+1], err = os.Pipe(); err != nil {
			closeAll(files[:])
			return nil, fmt.Errorf("open pipe: %w", err)
		}
	}
	childIn, stdin, stdout, childOut, stderr, childErr := files[0], files[1], files[2], files[3], files[4], files[5]
	w, err := newWriter(stdin)
	if err != nil {
		closeAll(files[:])
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	cmd := exec.Cmd{
		Path: c.path, Args: c.args, Env: c.env, Dir: c.dir,
		Stdin: childIn, Stdout: childOut, Stderr: childErr, SysProcAttr: childAttr(),
	}
	onForkThread(func() { err = cmd.Start() })
	if err != nil {
		closeAll(files[:])
		return nil, fmt.Errorf("start %s: %w", c.path, err)
	}
	closeAll([]*os.File{childIn, childOut, childErr})
	p := &process{
		pid: cmd.Process.Pid, handle: cmd.Process, stdin: w, stdout: stdout, stderr: stderr,
		log:    log.With("pid", cmd.Process.Pid),
		exited: make(chan struct{}), outputs: make(chan struct{}), done: make(chan struct{}),
	}
	guard.watch(p.pid, log)
	return p, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// run reads the child until it is gone. line gets each line of its stdout; gone
// how it ended, once, as soon as that is known; done is called when nothing of
// it is left.
func (p *process) run(line func([]byte), gone func(*exit), done func()) {
	p.open.Store(2)
	p.readers.Go(func() { p.readStdout(line) })
	p.readers.Go(p.readStderr)
	go func() { // whoever waits for done waits for it
		p.reap(gone)
		close(p.done)
		done()
	}()
}

func (p *process) ended() {
	if p.open.Add(-1) == 0 {
		close(p.outputs)
	}
}

func (p *process) readStdout(line func([]byte)) {
	err := p.eachLine(line)
	p.ended()
	switch {
	case errors.Is(err, errLineTooLong):
		p.kill(fmt.Sprintf("it wrote a line of more than %d MiB", maxLine>>20))
	case !within(p.exited, stopGrace):
		p.kill("it closed its standard output")
	}
}

func (p *process) eachLine(line func([]byte)) error {
	lines, err := newLineReader(p.stdout, maxLine)
	if err != nil {
		return err
	}
	defer lines.release()
	for {
		b, err := lines.next()
		if err != nil {
			return err
		}
		line(b)
	}
}

func (p *process) readStderr() {
	defer p.ended()
	lines, err := newLineReader(p.stderr, maxLogLine)
	if err != nil {
		return
	}
	defer lines.release()
	for {
		b, err := lines.next()
		if err != nil && !errors.Is(err, errLineTooLong) {
			return
		}
		if text := string(trim(b)); text != "" {
			p.log.Info("server stderr", "line", text)
			p.mu.Lock()
			p.lastLine = text[:min(len(text), 512)]
			p.mu.Unlock()
		}
		if err != nil && lines.skipLine() != nil {
			return
		}
	}
}

// reap waits for the child's end and clears up after it.
func (p *process) reap(gone func(*exit)) {
	awaitExit(p.pid)
	close(p.exited)
	if within(p.outputs, flushGrace) {
		// While the child is not reaped, no one else can have its group id.
		p.signal(syscall.SIGKILL)
		guard.unwatch(p.pid)
		gone(p.wait())
	} else {
		// Processes that it started hold its output open: its group lives.
		p.signal(syscall.SIGTERM)
		gone(p.wait())
		grace := stopGrace
		if p.hadTerm() {
			grace = stopGrace / 4
		}
		within(p.outputs, grace)
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		guard.unwatch(p.pid)
	}
	p.stdin.close()
	p.stdout.Close()
	p.stderr.Close()
	p.readers.Wait()
	p.stdin.wait()
}

func (p *process) wait() *exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	e := &exit{status: "unknown status", why: p.why, stderr: p.lastLine}
	if state, err := p.handle.Wait(); err == nil {
		e.status = state.String()
	}
	return e
}

// stop ends the child: closes its stdin, then SIGTERM, then SIGKILL to its
// group. It returns when nothing of it is left, in 5 s at most.
func (p *process) stop(why string) {
	p.blame(why)
	p.stdin.close()
	if !within(p.exited, stopGrace) {
		p.signal(syscall.SIGTERM)
		p.mu.Lock()
		p.termed = true
		p.mu.Unlock()
		if !within(p.exited, stopGrace) {
			p.signal(syscall.SIGKILL)
		}
	}
	<-p.done
}

func (p *process) kill(why string) {
	p.blame(why)
	p.signal(syscall.SIGKILL)
}

func (p *process) blame(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why == "" {
		p.why = why
	}
}

func (p *process) hadTerm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.termed
}

func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(-p.pid, sig) // it fails only if nobody is left
	}
}

// within reports whether done closes in d.
func within(done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\r' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	return b
}
