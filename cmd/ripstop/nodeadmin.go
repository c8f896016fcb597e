package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"ripstop/fabric/admin"
	"ripstop/kv"
)

// serveAdmin answers the operator's commands.
func (n *node) serveAdmin(r admin.Roster) error {
	js, err := jetstream.New(n.fabric.Fabric())
	if err != nil {
		return fmt.Errorf("start admin service: %w", err)
	}
	n.admin, err = admin.Open(admin.Options{
		Conn: n.fabric.Fabric(), System: n.fabric.System(),
		Node: n.fabric.Name(), Region: n.fabric.Region(), Clustered: n.fabric.Clustered(), Version: buildVersion(),
		Nodes: n.nodes.Load(), Roster: r, Drain: n.drain, SpoolDir: n.settings.DataDir, Logger: n.log,
		Export: func(ctx context.Context, w io.Writer) error {
			_, err := kv.Export(ctx, js, kv.ExportHeader{Node: n.fabric.Name(), Region: n.fabric.Region(), At: time.Now().UTC()}, w)
			return err
		},
		Import:   n.importBuckets(js),
		Sessions: sessionDesk{n},
	})
	return err
}

func (n *node) importBuckets(js jetstream.JetStream) func(context.Context, io.ReadSeeker) ([]string, error) {
	return func(ctx context.Context, f io.ReadSeeker) ([]string, error) {
		res, err := kv.Import(ctx, f, func(ctx context.Context, kind string) (jetstream.KeyValue, error) {
			cfg := kv.BucketConfig{Kind: kind, Region: n.fabric.Region(), Replicas: n.fabric.Votes()}
			b, err := kv.NewBucket(n.fabric.Fabric(), cfg)
			if err != nil {
				return nil, err
			}
			if err := b.Ensure(ctx); err != nil {
				return nil, err
			}
			return js.KeyValue(ctx, b.Name())
		})
		done := []string{fmt.Sprintf("%d entries of node %s added, %d were there already", res.Added, res.Header.Node, res.Same)}
		for _, c := range res.Conflicts {
			done = append(done, "left as it is, since it has another value here: "+c)
		}
		return done, err
	}
}

// errDraining is what a second drain is answered with.
var errDraining = errors.New("it drains already")

// drain begins to stop this node, as SIGTERM does.
func (n *node) drain(reason string) error {
	select {
	case n.drained <- reason:
		return nil
	default:
		return errDraining
	}
}
