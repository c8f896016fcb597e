package sessions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv"
)

const (
	// patience is how long a call without a deadline goes on trying.
	patience = 5 * time.Second
	// retryLeast and retryMost bound the pause between tries of one call; a new
	// leader ends it.
	retryLeast = 5 * time.Millisecond
	retryMost  = 100 * time.Millisecond
)

// leaderWatch lets calls know of a new leader: what was sent to the one before
// may never be answered.
type leaderWatch struct {
	mu     sync.Mutex
	reign  context.Context // ends with the next change
	finish context.CancelFunc
}

func (l *leaderWatch) current() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reign == nil {
		l.reign, l.finish = context.WithCancel(context.Background())
	}
	return l.reign
}

func (l *leaderWatch) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reign != nil {
		l.finish()
		l.reign = nil
	}
}

// errAgain makes persist try again, and is no error of the bucket's.
var errAgain = errors.New("overtaken by another write")

// errUnderWay is errAgain for a write of a record: what it conflicts with relies
// on the record and is gone in a moment. Writes of data give way, records do not.
var errUnderWay = fmt.Errorf("%w that is under way", errAgain)

// persist calls try until it succeeds, fails for good, or ctx ends. One try is
// given up when the bucket gets a leader: try must find out itself what
// became of what it wrote before.
func (s *Store) persist(ctx context.Context, try func(ctx context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for pause := retryLeast; ; pause = min(2*pause, retryMost) {
		reign := s.leader.current()
		err := tryOnce(ctx, reign, try)
		if err == nil || !passing(err) {
			return err
		}
		if errors.Is(err, errUnderWay) {
			pause = retryLeast
		}
		wait := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			err = fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-reign.Done():
		case <-wait.C:
		}
		wait.Stop()
		if ctx.Err() != nil {
			return err
		}
	}
}

// tryOnce gives try up when reign ends.
func tryOnce(ctx, reign context.Context, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(reign, cancel)()
	return try(ctx)
}

// passing reports whether trying again may help.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAgain) ||
		errors.Is(err, kv.ErrRetry) || errors.Is(err, kv.ErrNoBucket) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code == 503 // JetStream is there and has no quorum, no leader, no space
}
