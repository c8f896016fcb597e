package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// rosterKey is the key of the roster, in the bucket of kind "fabric".
const rosterKey = "roster"

// Roster is who votes in a region. It is committed, and never guessed: the
// first one is what the nodes were started with, later ones are an operator's
// doing.
type Roster struct {
	Voters  []string  `json:"voters"`            // sorted
	Removed []string  `json:"removed,omitempty"` // names that must not come back
	Changed time.Time `json:"changed"`
	By      string    `json:"by"` // node that wrote it
}

// Has reports whether the node called name votes.
func (r Roster) Has(name string) bool { return slices.Contains(r.Voters, name) }

// WasRemoved reports whether the node called name was removed for good.
func (r Roster) WasRemoved(name string) bool { return slices.Contains(r.Removed, name) }

// Replace returns the roster in which next votes in the place of gone. Either
// may be "".
func (r Roster) Replace(gone, next string) Roster {
	voters := slices.DeleteFunc(slices.Clone(r.Voters), func(v string) bool { return v == gone || v == next })
	if next != "" {
		voters = append(voters, next)
	}
	slices.Sort(voters)
	removed := slices.Clone(r.Removed)
	if gone != "" && !r.WasRemoved(gone) {
		removed = append(removed, gone)
		slices.Sort(removed)
	}
	return Roster{Voters: voters, Removed: removed}
}

// RosterBook keeps the roster in a bucket.
type RosterBook struct {
	bucket *Bucket
	node   string
}

// NewRosterBook returns the book of region, kept in as many replicas as there
// are votes. Nothing is sent yet.
func NewRosterBook(nc *nats.Conn, region string, replicas int, node string) (*RosterBook, error) {
	b, err := NewBucket(nc, BucketConfig{Kind: "fabric", Region: region, Replicas: replicas, Description: "what the fabric knows of itself: who votes"})
	if err != nil {
		return nil, err
	}
	return &RosterBook{bucket: b, node: node}, nil
}

// Read returns the roster and its revision. It fails with ErrNotFound if none
// was committed yet.
func (b *RosterBook) Read(ctx context.Context) (Roster, uint64, error) {
	e, err := b.bucket.Get(ctx, rosterKey)
	if errors.Is(err, ErrNoBucket) || err == nil && e.Gone {
		return Roster{}, 0, fmt.Errorf("read the roster: %w", ErrNotFound)
	}
	if err != nil {
		return Roster{}, 0, fmt.Errorf("read the roster: %w", err)
	}
	r, err := Decode[Roster](e.Value)
	if err != nil {
		return Roster{}, 0, fmt.Errorf("read the roster: %w", err)
	}
	return r, e.Rev, nil
}

// Commit writes r if the roster's revision is still base (0: there is none). It
// fails with ErrConflict.
func (b *RosterBook) Commit(ctx context.Context, r Roster, base uint64) error {
	if base == 0 {
		if err := b.bucket.Ensure(ctx); err != nil {
			return fmt.Errorf("commit the roster: %w", err)
		}
	}
	r.Changed, r.By = time.Now().UTC().Truncate(time.Millisecond), b.node
	data, err := Encode(r)
	if err != nil {
		return fmt.Errorf("commit the roster: %w", err)
	}
	if _, err := b.bucket.Update(ctx, rosterKey, data, base); err != nil {
		return fmt.Errorf("commit the roster: %w", err)
	}
	return nil
}
