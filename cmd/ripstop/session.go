package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/fabric/admin"
)

func newSessionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "Show, move or end a session",
		Long: `Show, move or end a session that a client has opened with initialize. A session
outlives the server instance that has it: when that is gone, its next request
finds it at another one. Sessions are the operator's to see; who knows the id of
one can use it. "ripstop ls sessions" lists them.`,
		Example: `  ripstop session show xkzp2ma4qy-AUR3CFREB3L2EPBGYJD7V6ALKA
  ripstop session move xkzp2ma4qy-AUR3CFREB3L2EPBGYJD7V6ALKA --to hg5tq3mzd2
  ripstop session end xkzp2ma4qy-AUR3CFREB3L2EPBGYJD7V6ALKA`,
	}
	cmd.AddCommand(newSessionShow(), newSessionMove(), newSessionEnd())
	return cmd
}

// sessionCommand makes a command about one session.
func sessionCommand(use, short, long, example string, f func(ctx context.Context, cmd *cobra.Command, c *operator, id string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " ID", Short: short, Long: long, Example: example,
		Args: wantArgs("ID"), ValidArgsFunction: completeSession,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return asOperator(cmd, func(ctx context.Context, c *operator) error { return f(ctx, cmd, c, args[0]) })
	}
	return cmd
}

func newSessionShow() *cobra.Command {
	cmd := sessionCommand("show", "Show all about a session", `Show who has a session, since when, under which epoch (how often it has moved, and
one), what its client has set, what its server keeps with it, and when it was last
used, if the instance that has it says so. Values of data are not shown.`,
		`  ripstop session show ID
  ripstop session show ID -o json`,
		func(ctx context.Context, cmd *cobra.Command, c *operator, id string) error {
			d, err := c.Session(ctx, id)
			if err != nil {
				return err
			}
			if wantsJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), d)
			}
			return printTable(cmd.OutOrStdout(), []string{"SESSION", d.ID}, sessionDetail(d, time.Now()))
		})
	addAdminFlags(cmd, adminTimeout)
	return cmd
}

func sessionDetail(d admin.SessionDetail, now time.Time) [][]string {
	moved := strconv.FormatUint(d.Epoch, 10)
	if d.Cause != "" {
		moved += " (last moved: " + d.Cause + ")"
	}
	rows := [][]string{
		{"server", d.Server}, {"instance", d.Instance}, {"node", dash(d.Node)}, {"state", d.State}, {"replication", d.Replication},
		{"epoch", moved}, {"principal", dash(d.Principal)}, {"client", dash(d.Client)}, {"protocol", dash(d.Version)}, {"on-move", d.OnMove},
		{"opened", ago(now, d.Created)}, {"record written", ago(now, d.Updated)}, {"initialized", strconv.FormatBool(d.Initialized)},
		{"log level", dash(string(d.LogLevel))}, {"subscriptions", listed(d.Subscriptions)},
	}
	if u := d.Use; u != nil {
		rows = append(rows, []string{"last used", ago(now, u.LastUsed)}, []string{"calls in flight", strconv.Itoa(u.InFlight)}, []string{"client listens", strconv.FormatBool(u.Listening)})
	} else {
		rows = append(rows, []string{"last used", "not known: its instance has made no session of its server for it yet, or does not answer"})
	}
	size := 0
	var keys []string
	for _, k := range d.Data {
		size += k.Size
		keys = append(keys, k.Key)
	}
	data := "-"
	if len(keys) > 0 {
		data = fmt.Sprintf("%d keys, %d bytes: %s", len(keys), size, strings.Join(keys, ", "))
	}
	return append(rows, []string{"data", data})
}

func ago(now, at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Local().Format(time.DateTime) + ", " + age(now.Sub(at)) + " ago"
}

func newSessionMove() *cobra.Command {
	var to string
	var wait time.Duration
	cmd := sessionCommand("move", "Give a session to another instance", `Give a session to another instance of its server: the one that --to names, or
whichever has least to do. The calls in flight in it finish first, for as long as
--wait; if they take longer, it stays where it is. Its client keeps its id, and is
told that the server's own state of the session was made anew.`,
		`  ripstop session move ID
  ripstop session move ID --to hg5tq3mzd2 --wait 1m`,
		func(ctx context.Context, cmd *cobra.Command, c *operator, id string) error {
			if wait <= 0 || wait > maxSessionWait {
				return usagef("--wait %s is not between 0 and %s", wait, maxSessionWait)
			}
			s, err := c.MoveSession(ctx, id, to, wait)
			if err != nil {
				return err
			}
			return printSession(cmd, s, fmt.Sprintf("session %s is at instance %s, node %s, under epoch %d", s.ID, s.Instance, dash(s.Node), s.Epoch))
		})
	cmd.Flags().StringVar(&to, "to", "", "instance that gets it; default: any other")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long calls in flight in it may take")
	_ = cmd.RegisterFlagCompletionFunc("to", completeInstanceOf) // fails only for an unknown flag
	mustBeTyped(cmd)
	addAdminFlags(cmd, maxSessionWait+adminTimeout)
	return cmd
}

// maxSessionWait bounds --wait of a move, so that its answer comes.
const maxSessionWait = 4 * time.Minute

func newSessionEnd() *cobra.Command {
	cmd := sessionCommand("end", "End a session", `End a session, as its client would by DELETE: its server's session ends, calls in
flight in it are cut off, and what the server has kept with it is removed. The
client gets 404, and opens another.`,
		`  ripstop session end ID`,
		func(ctx context.Context, cmd *cobra.Command, c *operator, id string) error {
			s, err := c.EndSession(ctx, id)
			if err != nil {
				return err
			}
			return printSession(cmd, s, fmt.Sprintf("session %s of server %s has ended", s.ID, s.Server))
		})
	addAdminFlags(cmd, adminTimeout)
	return cmd
}

func printSession(cmd *cobra.Command, s admin.Session, said string) error {
	if wantsJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), s)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(said))
	return err
}

// maxCompletions bounds the ids that a shell is offered.
const maxCompletions = 200

// completeSession completes the id of a session.
func completeSession(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	completingSessions(cmd, func(s admin.Session) error {
		if strings.HasPrefix(s.ID, word) {
			ids = append(ids, cobra.CompletionWithDesc(s.ID, printable(s.Server+" "+s.State+" "+s.Principal+" "+s.Client)))
		}
		if len(ids) == maxCompletions {
			return errEnough
		}
		return nil
	})
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// completeInstanceOf completes an instance of the server of the session that was
// typed, of which none is known if none has a session.
func completeInstanceOf(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	server, has := "", ""
	completingSessions(cmd, func(s admin.Session) error {
		if s.ID == args[0] {
			server, has = s.Server, s.Instance
			return errEnough
		}
		return nil
	})
	var ids []cobra.Completion
	if server == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	completing(cmd, dialFabric, func(ctx context.Context, c fabricClient) {
		list, err := c.Instances(ctx)
		if err != nil {
			return
		}
		for _, i := range list {
			if i.Server == server && i.Instance != has {
				ids = append(ids, cobra.CompletionWithDesc(i.Instance, i.Node))
			}
		}
	})
	return ids, cobra.ShellCompDirectiveNoFileComp
}

var errEnough = errors.New("enough")

// completingSessions gives f the sessions; it fails in silence, as completions
// do.
func completingSessions(cmd *cobra.Command, f func(admin.Session) error) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeFor)
	defer cancel()
	c, err := dialOperator(ctx, cmd)
	if err != nil {
		return
	}
	defer c.Conn.Close()
	_ = c.Sessions(ctx, admin.SessionRequest{}, f) // what came is offered
}
