package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show and check a node's configuration",
		Long: `Show and check what "ripstop start" would run with: flags, RIPSTOP_* in the
environment, ripstop.yaml and defaults, in this order.`,
		Example: "  ripstop config show\n  ripstop config reference",
	}
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the effective configuration and where each value came from",
		Long: `Print every setting of "ripstop start", its effective value and its origin.

A flag counts more than the environment (RIPSTOP_<KEY>), that more than the file
(ripstop.yaml, or --config), that more than the default. Takes the flags of
"ripstop start", so that a command line can be checked before it is used.`,
		Example: `  ripstop config show
  RIPSTOP_HTTP_ADDR=127.0.0.1:9000 ripstop config show
  ripstop config show --config prod.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return showConfig(cmd) },
	}
	addSettings(show)
	cmd.AddCommand(show, newReferenceCommand())
	return cmd
}

// configRow is one setting, as `config show -o json` prints it.
type configRow struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

func showConfig(cmd *cobra.Command) error {
	l, err := load(cmd)
	if err != nil {
		return usageError(err)
	}
	var rows []configRow
	for _, s := range nodeSettingsList {
		row := configRow{Key: s.key, Origin: l.origin(s.key)}
		switch s.value.(type) {
		case bool:
			row.Value = l.boolean(s.key, func(string, string, ...any) {})
		case []string:
			row.Value = l.v.GetStringSlice(s.key)
		default:
			row.Value = l.v.GetString(s.key)
		}
		rows = append(rows, row)
	}
	table := [][]string{}
	for _, r := range rows {
		table = append(table, []string{r.Key, configText(r.Value), r.Origin})
	}
	if err := printRows(cmd, []string{"KEY", "VALUE", "FROM"}, table, rows); err != nil {
		return err
	}
	if _, err := l.settings(); err != nil {
		return usageError(err)
	}
	return nil
}

func configText(v any) string {
	if list, ok := v.([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v)
}
