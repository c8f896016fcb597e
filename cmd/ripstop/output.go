package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// outputFormat is the value of -o.
type outputFormat string

const (
	formatTable outputFormat = "table"
	formatJSON  outputFormat = "json"
)

func (f *outputFormat) String() string { return string(*f) }
func (*outputFormat) Type() string     { return "table|json" }

func (f *outputFormat) Set(s string) error {
	if s != string(formatTable) && s != string(formatJSON) {
		return fmt.Errorf("%q is not table or json", s)
	}
	*f = outputFormat(s)
	return nil
}

// wantsJSON reports whether cmd was given -o json.
func wantsJSON(cmd *cobra.Command) bool {
	f := cmd.Flag("output")
	return f != nil && f.Value.String() == string(formatJSON)
}

// printRows prints data as JSON, or rows as a table, as -o says.
func printRows(cmd *cobra.Command, header []string, rows [][]string, data any) error {
	if wantsJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), data)
	}
	return printTable(cmd.OutOrStdout(), header, rows)
}

func printJSON(w io.Writer, data any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(data)
}

// printTable aligns columns by spaces. On a terminal the last column is cut at
// its width, so that a row stays a line.
func printTable(w io.Writer, header []string, rows [][]string) error {
	widths := make([]int, len(header))
	all := append([][]string{header}, rows...)
	for i, row := range all {
		clean := make([]string, len(row))
		for j, cell := range row {
			clean[j] = printable(oneLine(cell))
			widths[j] = max(widths[j], utf8.RuneCountInString(clean[j]))
		}
		all[i] = clean
	}
	limit := width(w)
	var b strings.Builder
	for i, row := range all {
		line := tableLine(row, widths, limit)
		if i == 0 {
			line = paint(w, bold, line)
		}
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func tableLine(row []string, widths []int, limit int) string {
	var b strings.Builder
	used := 0
	for j, cell := range row {
		n := utf8.RuneCountInString(cell)
		switch {
		case j < len(row)-1:
			cell += strings.Repeat(" ", widths[j]-n+2)
			used += widths[j] + 2
		case limit > 0 && used+n > limit && limit-used > 10:
			cell = string([]rune(cell)[:limit-used-1]) + "…"
		}
		b.WriteString(cell)
	}
	return strings.TrimRight(b.String(), " ")
}

// printable replaces what would steer a terminal: names, descriptions and
// messages come from servers that need not be trusted.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsSpace(r) && r != ' ' && r != '\n' {
			return ' '
		}
		if unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// isTerminal reports whether v, a reader or a writer, is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// width returns the columns of a terminal; 0 = unlimited.
func width(w io.Writer) int {
	if !isTerminal(w) {
		return 0
	}
	n, _, err := term.GetSize(int(w.(*os.File).Fd()))
	if err != nil {
		return 0
	}
	return n
}

// ANSI styles.
const (
	bold = "1"
	red  = "31"
	dim  = "2"
)

// paint styles s on a terminal, unless NO_COLOR is set (no-color.org).
func paint(w io.Writer, style, s string) string {
	if !isTerminal(w) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}
