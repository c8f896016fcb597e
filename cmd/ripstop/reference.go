package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ripstop/fabric/raft"
)

func newReferenceCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reference",
		Short: "Print every setting of a node, as docs/configuration.md",
		Long: `Print every setting of "ripstop start" as a Markdown page: its flag, environment
variable, key in the file, default, and what it is for. docs/configuration.md is
this command's output.`,
		Example: "  ripstop config reference > docs/configuration.md",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeReference(cmd.OutOrStdout())
		},
	}
}

// counterparts are the keys by which guides to high availability know what has
// another name, or a formula, here.
var counterparts = [][3]string{
	{"cluster nodes", "`peers`, `voters`", "the nodes; the votes are 3 or 5"},
	{"node check interval (5000 ms)", "`node-check-interval`", "5 s; routes that end are seen by events, at once"},
	{"health check timeout (2000 ms)", "`health-check-timeout`", "2 s"},
	{"failover threshold (3)", "`failover-threshold`", "3; a silent node is down after threshold x interval + timeout at the latest, one whose route is lost after `stability-window`, one whose process is dead at once"},
	{"split-brain check interval", "`timing`", "not polled: a leader that has lost its quorum steps down after LostQuorum + its check, see below"},
	{"split-brain strategy", "(fixed)", "the side with the majority of the votes goes on"},
	{"master node", "(none yet)", ""},
	{"replication factor", "number of votes", "every bucket has a replica on every voter"},
	{"replication timeout (5000 ms)", "5 s", "how long a write waits for its quorum before its outcome is unknown"},
	{"session cleanup interval (300 s)", "`session-cleanup-interval`", "5 min; besides, an instance ends its own sessions after `session-idle-timeout`"},
	{"port range", "`nats-addr`, `http-addr`, `cluster-addr`", "three ports, each of its own"},
	{"tick time", "`timing`", "Raft's heartbeat"},
}

func writeReference(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Configuration

Written by ` + "`ripstop config reference`" + `; a test keeps it so. Flags count more than the environment, that more
than the file (` + "`ripstop.yaml`, or `--config FILE`" + `), that more than the default; ` + "`ripstop config show`" + ` prints what
counts and where it came from. The file's keys are the flags' names.

| flag and key | environment | default | |
|---|---|---|---|
`)
	for _, s := range nodeSettingsList {
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s; such as `%s` |\n", s.key, envName(s.key), defaultText(s.value), cell(s.help), cell(s.example))
	}
	b.WriteString(`
## Timing

What ` + "`timing`" + ` sets, on every node the same. All follows from three base values: Raft's heartbeat H, the
pause before a campaign C, the clients' ping P.

| | formula | lan | wan | stock |
|---|---|---|---|---|
`)
	presets := []raft.Timing{raft.LAN(), raft.WAN(), raft.Stock()}
	row := func(what, formula string, f func(raft.Timing) time.Duration) {
		fmt.Fprintf(&b, "| %s | %s |", what, formula)
		for _, t := range presets {
			fmt.Fprintf(&b, " %s |", f(t))
		}
		b.WriteByte('\n')
	}
	row("Raft heartbeat", "H", func(t raft.Timing) time.Duration { return t.Heartbeat })
	row("election timeout, least", "4 H", func(t raft.Timing) time.Duration { return t.ElectionMin })
	row("election timeout, most", "10 H", func(t raft.Timing) time.Duration { return t.ElectionMax })
	row("campaign, least", "C", func(t raft.Timing) time.Duration { return t.CampaignMin })
	row("campaign, most", "4 C", func(t raft.Timing) time.Duration { return t.CampaignMax })
	row("a leader without a quorum steps down after", "7.5 H", func(t raft.Timing) time.Duration { return t.LostQuorum })
	row("and looks every", "2.5 H", func(t raft.Timing) time.Duration { return t.LostQuorumCheck })
	row("a removed peer that is heard is taken back after", "fixed", func(t raft.Timing) time.Duration { return t.PeerRemove })
	row("route ping", "2.5 H", func(t raft.Timing) time.Duration { return t.RoutePing })
	row("a silent route is closed after", "3 route pings", raft.Timing.RouteSilence)
	row("client ping", "P; a client that hangs is dropped after 3", func(t raft.Timing) time.Duration { return t.ClientPing })
	b.WriteString(`
## Names elsewhere

| guides call it | here | |
|---|---|---|
`)
	for _, c := range counterparts {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c[0], c[1], c[2])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func defaultText(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return ""
		}
		return "`" + v + "`"
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprintf("`%v`", v)
	}
}

// cell keeps a text inside its cell of a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
