package main

import "github.com/spf13/cobra"

// The exit codes of every command; `ripstop help exit-codes` prints them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitToolError   = 5
	exitTimeout     = 6
	exitUnknown     = 7
	exitRefused     = 8
	exitUnhealthy   = 9
	exitInterrupted = 130 // 128 + SIGINT, as a shell has it
)

// newExitCodesTopic is a help topic: it has no Run.
func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit code of a command means",
		Long: `Every command of ripstop exits with one of these codes:

    0  it did what was asked
    1  it failed, for a reason that has no code of its own
    2  the command line is wrong: an unknown flag, a missing or wrong argument
    3  the fabric can't be reached, or no instance of the server answers;
       nothing was executed
    4  no such server, tool, session or node; nothing was executed
    5  the tool was executed and reported an error itself
    6  the time given by --timeout ran out; the call was cancelled
    7  the outcome is unknown: the call may or may not have been executed
    8  an operator's command was refused, or not confirmed; nothing was done
    9  the cluster was asked for its status, and is unhealthy
  130  interrupted by Ctrl-C or SIGTERM; the call was cancelled

After 3, 4 and 8 it is safe to try again. After 6, 7 and 130 look first at what the
call would have changed.`,
		Example: `  ripstop call demo echo text=hi || echo "exit code $?"`,
	}
}
