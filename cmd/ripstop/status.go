package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/fabric/admin"
)

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster: its nodes, leaders, and what is wrong",
		Long: `Show the cluster on one screen: nodes, roles, leaders, versions, latency, lag and
health; then what is wrong, and what to do about it. The node that is connected to
answers, as it sees the others.

  healthy    nothing is wrong
  degraded   everything is served; something should be looked at
  unhealthy  something is not served

LATENCY is the mean time of a check, there and back. LAG counts the operations
that a node's replicas are behind. In the list of groups, a replica that is not
current is marked with its lag, or "?" if that is not known; one that is offline
with "!".

With --watch, it is drawn again every --interval; where the output is no terminal,
a line is written whenever something has changed. The exit code is 9 when the
cluster is unhealthy.`,
		Example: `  ripstop status
  ripstop status --watch
  ripstop status --server nats://n2.example.com:4222 --operator-token-file op.token
  ripstop status -o json | jq -r '.problems[].what'`,
		Args: cobra.NoArgs,
	}
	addStatus(cmd)
	return cmd
}

// addStatus makes cmd print the status.
func addStatus(cmd *cobra.Command) {
	addAdminFlags(cmd, adminTimeout)
	watch := cmd.Flags().BoolP("watch", "w", false, "go on until interrupted ("+envName("watch")+")")
	interval := cmd.Flags().Duration("interval", 2*time.Second, "with --watch, how often ("+envName("interval")+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *interval < 100*time.Millisecond {
			return usagef("--interval %s is shorter than 100ms", *interval)
		}
		if *watch {
			return watchStatus(cmd, *interval)
		}
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return printStatus(cmd, s)
		})
	}
}

func printStatus(cmd *cobra.Command, s admin.Status) error {
	out := cmd.OutOrStdout()
	err := error(nil)
	if wantsJSON(cmd) {
		err = printJSON(out, s)
	} else {
		err = drawStatus(out, s)
	}
	if err == nil && s.Health == admin.Unhealthy {
		return &failure{code: exitUnhealthy, what: "region " + s.Region, why: "unhealthy: " + s.Problems[0].What}
	}
	return err
}

// drawStatus writes a status for people.
func drawStatus(w io.Writer, s admin.Status) error {
	fmt.Fprintf(w, "%s\n\n", headline(w, s))
	if err := printTable(w, nodeHeader, nodeRows(s, time.Now())); err != nil {
		return err
	}
	if len(s.Groups) > 0 && s.Mode == "clustered" {
		fmt.Fprintln(w)
		if err := printTable(w, []string{"GROUP", "LEADER", "REPLICAS"}, groupRows(s)); err != nil {
			return err
		}
	}
	if len(s.Problems) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", paint(w, bold, "PROBLEMS"))
	for _, p := range s.Problems {
		style := ""
		if p.Severity == admin.Unhealthy {
			style = red
		}
		fmt.Fprintf(w, "%s\n", paint(w, style, printable(oneLine(p.About+" ("+p.Severity+"): "+p.What))))
		if p.Do != "" {
			fmt.Fprintf(w, "  do: %s\n", printable(oneLine(p.Do)))
		}
	}
	return nil
}

func headline(w io.Writer, s admin.Status) string {
	health := s.Health
	if health == admin.Unhealthy {
		health = paint(w, red, health)
	}
	parts := []string{"region " + s.Region + ": " + health}
	if s.Mode == "clustered" {
		leader := "no leader"
		if s.MetaLeader != "" {
			leader = s.MetaLeader + " leads"
		}
		parts = append(parts, fmt.Sprintf("%d of %d voters up", s.VotersUp, s.Voters), leader)
	} else {
		parts = append(parts, s.Mode)
	}
	if s.Sessions > 0 || s.Pending > 0 {
		text := fmt.Sprintf("%d sessions", s.Sessions)
		if s.Pending > 0 {
			text += fmt.Sprintf(" (%d not stored yet)", s.Pending)
		}
		parts = append(parts, text)
	}
	return printable(strings.Join(append(parts, "as "+s.Answered+" sees it"), ", "))
}

var nodeHeader = []string{"NODE", "ROLE", "STATE", "HEALTH", "LEADS", "VERSION", "UP", "LATENCY", "LAG", "CLIENTS", "INSTANCES"}

func nodeRows(s admin.Status, now time.Time) [][]string {
	leads := map[string][]string{}
	for _, g := range s.Groups {
		leads[g.Leader] = append(leads[g.Leader], g.Name)
	}
	rows := make([][]string, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		row := []string{n.Name, dash(n.Role), n.State, n.Health}
		if n.Draining {
			row[2] = "draining"
		}
		if n.State != "up" {
			seen := "never seen"
			if !n.LastSeen.IsZero() {
				seen = "seen " + age(now.Sub(n.LastSeen)) + " ago"
			}
			rows = append(rows, append(row, "-", dash(n.Software), seen, "-", "-", "-", "-"))
			continue
		}
		lead := "-"
		if list := leads[n.Name]; len(list) > 0 {
			streams := len(list)
			if list[0] == admin.MetaGroup {
				streams--
				lead = admin.MetaGroup
				if streams > 0 {
					lead += "+" + strconv.Itoa(streams)
				}
			} else {
				lead = strconv.Itoa(streams)
			}
		}
		latency := "-"
		if n.Latency > 0 {
			latency = time.Duration(n.Latency * float64(time.Second)).Round(10 * time.Microsecond).String()
		}
		up := "-"
		if !n.Started.IsZero() {
			up = age(now.Sub(n.Started))
		}
		rows = append(rows, append(row, lead, dash(n.Software), up, latency, strconv.FormatUint(n.Lag, 10), strconv.Itoa(n.Clients), strconv.Itoa(n.Instances)))
	}
	return rows
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func groupRows(s admin.Status) [][]string {
	var rows [][]string
	for _, g := range s.Groups {
		var replicas []string
		for _, r := range g.Replicas {
			text := dash(r.Node)
			switch {
			case r.Offline:
				text += "!"
			case !r.Current && r.Lag == 0:
				text += "?"
			case !r.Current:
				text += fmt.Sprintf("(-%d)", r.Lag)
			}
			replicas = append(replicas, text)
		}
		rows = append(rows, []string{g.Name, dash(g.Leader), strings.Join(replicas, " ")})
	}
	return rows
}

// watchStatus prints the status again and again until cmd's context ends.
func watchStatus(cmd *cobra.Command, every time.Duration) error {
	ctx := cmd.Context()
	d, err := cmd.Flags().GetDuration("timeout")
	if err != nil || d < 0 {
		return errors.Join(usagef("--timeout %s is negative", d), err)
	}
	dialCtx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	c, err := dialOperator(dialCtx, cmd)
	if err != nil {
		return err
	}
	defer c.Conn.Close()
	w := &watch{out: cmd.OutOrStdout(), json: wantsJSON(cmd)}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var s admin.Status
		err := c.run(ctx, "status", func(ctx context.Context, c *operator) (err error) {
			if d > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d)
				defer cancel()
			}
			s, err = c.Status(ctx)
			return err
		})
		switch {
		case ctx.Err() != nil: // the way to end it
			return nil
		case c.refused.Err() != nil:
			return err
		}
		if err := w.show(s, err, time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watch shows one status after another.
type watch struct {
	out  io.Writer
	json bool
	last string // what was said last, where it is not drawn
}

func (w *watch) show(s admin.Status, err error, at time.Time) error {
	switch {
	case w.json && err == nil:
		return json.NewEncoder(w.out).Encode(s)
	case w.json:
		return json.NewEncoder(w.out).Encode(map[string]any{"at": at.UTC(), "error": err.Error()})
	case isTerminal(w.out):
		return w.draw(s, err, at)
	}
	line := summary(s)
	if err != nil {
		line = "no answer: " + oneLine(err.Error())
	}
	if line == w.last {
		return nil
	}
	w.last = line
	_, err = fmt.Fprintln(w.out, at.Format(time.RFC3339), printable(line))
	return err
}

// draw replaces the screen at once, so that it does not flicker.
func (w *watch) draw(s admin.Status, failed error, at time.Time) error {
	var text strings.Builder
	fmt.Fprintf(w.out, "\x1b[H\x1b[2J%s\n", paint(w.out, dim, at.Format(time.TimeOnly)+"  Ctrl-C ends"))
	if failed != nil {
		fmt.Fprintf(&text, "no answer: %s\n", printable(oneLine(failed.Error())))
		_, err := io.WriteString(w.out, text.String())
		return err
	}
	return drawStatus(w.out, s)
}

// summary is a status in one line, without what changes all the time.
func summary(s admin.Status) string {
	parts := []string{s.Health, fmt.Sprintf("%d of %d voters up", s.VotersUp, s.Voters), "leader " + dash(s.MetaLeader)}
	var states []string
	for _, n := range s.Nodes {
		state := n.State
		if n.State == "up" && n.Health != admin.Healthy {
			state = n.Health
		}
		states = append(states, n.Name+"="+state)
	}
	slices.Sort(states)
	parts = append(parts, strings.Join(states, " "))
	for _, p := range s.Problems {
		parts = append(parts, p.About+": "+p.What)
	}
	return strings.Join(parts, ", ")
}
