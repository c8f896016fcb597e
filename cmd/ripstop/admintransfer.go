package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func newExportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write what lasts in the buckets to a file",
		Long: `Write what lasts in the buckets to a file, as lines of JSON that end with a
checksum: a backup, or the way of a node on its own into a cluster. FILE appears
when it is complete; "-" is the standard output. What the registry holds is not
exported, since it fills by itself.`,
		Example: `  ripstop admin export backup.jsonl
  ripstop admin export - | gzip > backup.jsonl.gz`,
		Args: wantArgs("FILE"),
	}
	addAdminFlags(cmd, transferTimeout)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			if args[0] == "-" {
				_, err := c.Export(ctx, cmd.OutOrStdout())
				return err
			}
			n, err := exportTo(ctx, c, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes\n", printable(args[0]), n)
			return err
		})
	}
	return cmd
}

// exportTo writes the file under another name first: half an export must not be
// taken for one.
func exportTo(ctx context.Context, c *operator, path string) (int64, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.partial")
	if err != nil {
		return 0, fmt.Errorf("create export: %w", err)
	}
	n, err := c.Export(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return n, nil
}

func newImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Add what an export holds to the buckets",
		Long: `Add what a file of "ripstop admin export" holds to the buckets. The file is
checked as a whole first. What is there already is never overwritten: it is listed
if it differs. It may be repeated. "-" is the standard input.`,
		Example: `  ripstop admin import backup.jsonl
  gunzip < backup.jsonl.gz | ripstop admin import -`,
		Args: wantArgs("FILE"),
	}
	addAdminFlags(cmd, transferTimeout)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in := cmd.InOrStdin()
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return usagef("import: %w", err)
			}
			defer f.Close()
			in = f
		}
		return asOperator(cmd, func(ctx context.Context, c *operator) error {
			r, err := c.Import(ctx, io.Reader(in))
			if err != nil {
				return err
			}
			return printDone(cmd, r)
		})
	}
	return cmd
}
