package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/spf13/cobra"

	"ripstop/router"
)

// failure is an error as a person should see it.
type failure struct {
	code int    // exit code
	what string // the thing it is about; "" = why says it
	why  string
	try  string // the next command; "" = none known
}

func (f *failure) Error() string {
	if f.what == "" {
		return f.why
	}
	return f.what + ": " + f.why
}

// usageError marks err as a mistake in the command line: exit code 2, and a
// pointer to the command's help.
func usageError(err error) error {
	if err == nil {
		return nil
	}
	return &failure{code: exitUsage, why: err.Error()}
}

func usagef(format string, args ...any) error { return usageError(fmt.Errorf(format, args...)) }

// explain turns what the fabric, or a server, answered about what into a
// failure. A failure stays as it is.
func explain(what string, err error) error {
	var f *failure
	var rpc *jsonrpc.Error
	var fab *router.Error
	switch {
	case err == nil || errors.As(err, &f):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{code: exitTimeout, what: what, why: "the time given by --timeout ran out, and the request was cancelled"}
	case errors.Is(err, context.Canceled):
		return &failure{code: exitInterrupted, what: what, why: "interrupted, and the request was cancelled"}
	case errors.As(err, &rpc):
		return answered(what, int(rpc.Code), rpc.Message)
	case errors.As(err, &fab):
		return answered(what, fab.Code, fab.Text)
	}
	return &failure{code: exitFailure, what: what, why: err.Error()}
}

// answered is explain for a JSON-RPC error.
func answered(what string, code int, text string) error {
	f := &failure{code: exitFailure, what: what, why: text}
	switch code {
	case router.CodeServerNotFound:
		f.code, f.try = exitNotFound, "ripstop ls"
	case router.CodeSessionNotFound:
		f.code = exitNotFound
	case router.CodeUnavailable:
		f.code, f.try = exitUnreachable, "ripstop ls instances"
	case router.CodeOutcomeUnknown:
		f.code = exitUnknown
	case jsonrpc.CodeMethodNotFound:
		f.why = "the server does not offer this: " + text
	}
	return f
}

// report writes err as one line, and the next command as another, and returns
// the exit code.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	f := &failure{code: exitFailure, why: err.Error()}
	if !errors.As(err, &f) && errors.Is(err, context.Canceled) {
		f.code = exitInterrupted
	}
	if f.code == exitUsage && f.try == "" && cmd != nil {
		f.try = cmd.CommandPath() + " --help"
	}
	fmt.Fprintf(w, "%s %s\n", paint(w, red, "ripstop:"), printable(oneLine(f.Error())))
	if f.try != "" {
		fmt.Fprintf(w, "try: %s\n", f.try)
	}
	return f.code
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
