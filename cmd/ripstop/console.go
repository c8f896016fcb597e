package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// console is what a person sees besides a command's result: progress, log
// messages and questions, on standard error.
type console struct {
	w     io.Writer
	tty   bool // w is a terminal: progress is one line that changes
	quiet bool // no progress and no log

	mu     sync.Mutex
	length int // of the progress line that stands, in columns
}

func newConsole(w io.Writer, quiet bool) *console {
	return &console{w: w, tty: isTerminal(w), quiet: quiet}
}

// progress shows how far a call is (MCP "Progress").
func (c *console) progress(params []byte) {
	var p struct {
		Progress float64  `json:"progress"`
		Total    *float64 `json:"total"`
		Message  string   `json:"message"`
	}
	if c.quiet || json.Unmarshal(params, &p) != nil {
		return
	}
	text := number(p.Progress)
	if p.Total != nil && *p.Total > 0 {
		text = fmt.Sprintf("%s/%s %3.0f%%", text, number(*p.Total), 100*min(p.Progress / *p.Total, 1))
	}
	text = strings.TrimSpace(text + " " + printable(oneLine(p.Message)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tty {
		fmt.Fprintln(c.w, "progress: "+text)
		return
	}
	if limit := width(c.w); limit > 1 && utf8.RuneCountInString(text) >= limit {
		text = string([]rune(text)[:limit-1])
	}
	n := utf8.RuneCountInString(text)
	fmt.Fprint(c.w, "\r"+text+strings.Repeat(" ", max(c.length-n, 0)))
	c.length = n
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// log shows a log message of the server (MCP "Logging").
func (c *console) log(params []byte) {
	var p struct {
		Level  string          `json:"level"`
		Logger string          `json:"logger"`
		Data   json.RawMessage `json:"data"`
	}
	if c.quiet || json.Unmarshal(params, &p) != nil {
		return
	}
	from := p.Level
	if p.Logger != "" {
		from += " " + p.Logger
	}
	c.say(paint(c.w, dim, printable(oneLine(from+": "+textOf(p.Data)))))
}

// say prints a line, in place of a progress line.
func (c *console) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	fmt.Fprintln(c.w, line)
}

// prompt prints a question and leaves the cursor behind it.
func (c *console) prompt(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	fmt.Fprint(c.w, text)
}

// done takes the progress line away.
func (c *console) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
}

// clear is called with mu held.
func (c *console) clear() {
	if c.length > 0 {
		fmt.Fprint(c.w, "\r"+strings.Repeat(" ", c.length)+"\r")
		c.length = 0
	}
}

// lineReader reads what a person types.
type lineReader struct {
	r *bufio.Reader
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{bufio.NewReader(r)} }

// read returns the next line, without its end. A terminal's Read can't be
// interrupted: when ctx ends first, one goroutine waits for a line until the
// process exits.
func (l *lineReader) read(ctx context.Context) (string, error) {
	type typed struct {
		line string
		err  error
	}
	got := make(chan typed, 1)
	go func() {
		line, err := l.r.ReadString('\n')
		got <- typed{strings.TrimRight(line, "\r\n"), err}
	}()
	select {
	case t := <-got:
		if t.err == io.EOF && t.line != "" {
			t.err = nil
		}
		return t.line, t.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
