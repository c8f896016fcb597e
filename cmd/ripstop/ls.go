package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/kv"
)

// listTimeout bounds commands that only ask what there is.
const listTimeout = 10 * time.Second

var kinds = []string{"tools", "resources", "prompts"}

func newLsCommand(dial dialFunc) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls [servers|instances|nodes|sessions]",
		Short: "List the attached MCP servers, their instances, the nodes, or the sessions",
		Long: `List the MCP servers that are attached to the fabric, every instance of them, the
nodes of the cluster, or the sessions that clients have opened.

A server is a name; each of its instances is a backend that answers for it. With
--kind, only those are listed that offer tools, resources or prompts. Nodes and
sessions are shown to the operator's user only.

A session is active, or waiting: its instance is gone, and its next request moves
it. REPLICATION is synced, or pending as long as only the node that answers has its
record, or unknown when that can't reach the others.`,
		Example: `  ripstop ls
  ripstop ls instances
  ripstop ls --kind tools -o json
  ripstop ls nodes
  ripstop ls sessions --server everything --node n1`,
		Args:      wantArgs("[servers|instances|nodes|sessions]"),
		ValidArgs: []cobra.Completion{"servers", "instances", "nodes", "sessions"},
	}
	kind := cmd.Flags().String("kind", "", "only what offers "+strings.Join(kinds, ", ")+" ("+envName("kind")+")")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	addClientFlags(cmd)
	addOperatorFlags(cmd)
	cmd.Flags().SetNormalizeFunc(nil) // --server is both here
	var filter sessionFilter
	filter.add(cmd)
	addTimeout(cmd, listTimeout)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		what := "servers"
		if len(args) > 0 {
			what = args[0]
		}
		if list := []string{"servers", "instances", "nodes", "sessions"}; !slices.Contains(list, what) {
			return usagef("%q can't be listed; say servers, instances, nodes or sessions%s", what, didYouMean(what, list))
		}
		if *kind != "" && !slices.Contains(kinds, *kind) {
			return usagef("--kind %q is none of %s%s", *kind, strings.Join(kinds, ", "), didYouMean(*kind, kinds))
		}
		if !filter.empty() && what != "sessions" {
			return usagef("--server NAME, --node and --principal tell sessions apart, not %s", what)
		}
		if *kind != "" && (what == "nodes" || what == "sessions") {
			return usagef("--kind tells servers apart, not %s", what)
		}
		if what == "sessions" {
			return runLsSessions(cmd, filter)
		}
		if what == "nodes" {
			return runLsNodes(cmd)
		}
		return runLs(cmd, dial, what, *kind)
	}
	return cmd
}

func runLs(cmd *cobra.Command, dial dialFunc, what, kind string) error {
	ctx, cancel, err := withTimeout(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	list, err := instancesOf(ctx, cmd, dial)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(i kv.Instance) bool { return !i.Has(kind) })
	slices.SortFunc(list, func(a, b kv.Instance) int {
		return cmp.Or(cmp.Compare(a.Server, b.Server), cmp.Compare(a.Instance, b.Instance))
	})
	if len(list) == 0 && !wantsJSON(cmd) {
		sought := "no server is attached"
		if kind != "" {
			sought = "no server offers " + kind
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s\ntry: ripstop serve NAME -- COMMAND\n", sought)
		return nil
	}
	if what == "instances" {
		return printInstances(cmd, list, time.Now())
	}
	return printServers(cmd, list)
}

// instancesOf asks the fabric for its registry.
func instancesOf(ctx context.Context, cmd *cobra.Command, dial dialFunc) ([]kv.Instance, error) {
	c, err := connect(ctx, cmd, dial)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := c.Instances(ctx)
	if err != nil {
		err = explain("the registry", err)
		if f, ok := err.(*failure); ok && f.code == exitUnreachable {
			f.try = "ripstop start"
		}
		return nil, err
	}
	return append([]kv.Instance{}, list...), nil // never null in JSON
}

// serverRow is a server, as `ls -o json` prints it: its instances in one.
type serverRow struct {
	Server     string   `json:"server"`
	Instances  int      `json:"instances"`
	Kinds      []string `json:"kinds"`
	Eras       []string `json:"eras"`
	Transports []string `json:"transports"`
	Name       string   `json:"name,omitempty"`    // what the server calls itself
	Version    string   `json:"version,omitempty"` // its own version
	Problem    string   `json:"problem,omitempty"`
}

// serversOf groups instances, which are sorted by server.
func serversOf(list []kv.Instance) []serverRow {
	rows := []serverRow{}
	for _, i := range list {
		if len(rows) == 0 || rows[len(rows)-1].Server != i.Server {
			rows = append(rows, serverRow{Server: i.Server, Kinds: []string{}, Eras: []string{}})
		}
		r := &rows[len(rows)-1]
		r.Instances++
		r.Kinds, r.Eras = union(r.Kinds, i.Kinds...), union(r.Eras, i.Eras...)
		r.Transports = union(r.Transports, i.Transport)
		r.Name, r.Version = cmp.Or(r.Name, i.Info.Name), cmp.Or(r.Version, i.Info.Version)
		r.Problem = cmp.Or(r.Problem, i.Problem)
	}
	return rows
}

func union(set []string, add ...string) []string {
	for _, s := range add {
		if !slices.Contains(set, s) {
			set = append(set, s)
		}
	}
	return set
}

func printServers(cmd *cobra.Command, list []kv.Instance) error {
	rows := serversOf(list)
	header := []string{"SERVER", "INSTANCES", "OFFERS", "ERAS", "TRANSPORT", "SOFTWARE"}
	table := make([][]string, 0, len(rows))
	problems := false
	for _, r := range rows {
		table = append(table, []string{r.Server, strconv.Itoa(r.Instances), listed(r.Kinds), listed(r.Eras), listed(r.Transports), strings.TrimSpace(r.Name + " " + r.Version)})
		problems = problems || r.Problem != ""
	}
	if problems {
		header = append(header, "PROBLEM")
		for i, r := range rows {
			table[i] = append(table[i], r.Problem)
		}
	}
	return printRows(cmd, header, table, rows)
}

func printInstances(cmd *cobra.Command, list []kv.Instance, now time.Time) error {
	header := []string{"SERVER", "INSTANCE", "NODE", "AGENT", "TRANSPORT", "OFFERS", "ERAS", "UP", "PROBLEM"}
	problems := slices.ContainsFunc(list, func(i kv.Instance) bool { return i.Problem != "" })
	table := make([][]string, 0, len(list))
	for _, i := range list {
		row := []string{i.Server, i.Instance, i.Node, i.Agent, i.Transport, listed(i.Kinds), listed(i.Eras), age(now.Sub(i.Started)), i.Problem}
		if !problems {
			row = row[:len(row)-1]
		}
		table = append(table, row)
	}
	if !problems {
		header = header[:len(header)-1]
	}
	return printRows(cmd, header, table, list)
}

// listed joins a list for a table cell.
func listed(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}

// age is a duration in its two largest units.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
