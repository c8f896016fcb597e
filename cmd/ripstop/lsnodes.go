package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// runLsNodes lists the nodes. Unlike the registry they are the operator's to see.
func runLsNodes(cmd *cobra.Command) error {
	return asOperator(cmd, func(ctx context.Context, c *operator) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		return printRows(cmd, nodeHeader, nodeRows(s, time.Now()), s.Nodes)
	})
}
