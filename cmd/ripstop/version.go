package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"ripstop/router"
	"ripstop/router/wire"
)

// version is set by the linker for a release (-X main.version=v1.2.3).
var version string

// buildVersion returns what this binary is, for people and the registry.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

// buildCommit returns the commit this binary was built from, "" if unknown.
func buildCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + dirty
}

// versionInfo is what `ripstop version -o json` prints.
type versionInfo struct {
	Version string   `json:"version"`
	Commit  string   `json:"commit,omitempty"`
	Go      string   `json:"go"`
	OS      string   `json:"os"`
	Wire    int      `json:"wire"`
	MCP     []string `json:"mcp"`
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the protocols it speaks",
		Long: `Print the version of this binary, the commit it was built from, the version of
its wire protocol (docs/wire.md) and the MCP versions it speaks. Nodes and agents
work together when they have a wire version in common.`,
		Example: `  ripstop version
  ripstop version -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionInfo{
				Version: buildVersion(), Commit: buildCommit(),
				Go: runtime.Version(), OS: runtime.GOOS + "/" + runtime.GOARCH,
				Wire: wire.Version, MCP: append([]string{router.Version20260728}, router.LegacyVersions...),
			}
			if wantsJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), v)
			}
			commit := v.Commit
			if commit == "" {
				commit = "unknown"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "version  %s\ncommit   %s\ngo       %s %s\nwire     %d\nmcp      %s\n",
				v.Version, commit, v.Go, v.OS, v.Wire, strings.Join(v.MCP, ", "))
			return err
		},
	}
}
