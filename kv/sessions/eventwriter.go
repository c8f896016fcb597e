package sessions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// run writes what waits, until the log is closed.
func (l *EventLog) run() {
	var retry time.Duration
	var since time.Time // when writes began to fail
	ready, warned := false, false
	for l.await(retry) {
		var err error
		if !ready {
			err = l.ensure()
			ready = err == nil
		}
		if err == nil {
			err = l.writeOnce()
		}
		switch {
		case err == nil:
			retry, warned = 0, false
		case l.ctx.Err() == nil:
			if errors.Is(err, jetstream.ErrNoStreamResponse) {
				ready = false // it may be gone
			}
			if retry == 0 {
				since = time.Now()
			}
			if !warned && time.Since(since) > eventWarn {
				warned = true
				l.log.Warn("events are not kept: their stream can't be written", "stream", l.name, "waiting", l.Pending(), "err", err)
			}
			retry = min(max(2*retry, eventRetry), eventRetryMost)
		}
	}
}

// await waits until there is something to do, or until the pause after a failure
// is over.
func (l *EventLog) await(retry time.Duration) bool {
	if retry > 0 {
		pause := time.NewTimer(retry/2 + rand.N(retry))
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-l.ctx.Done():
		}
		return l.ctx.Err() == nil
	}
	for {
		l.mu.Lock()
		work := len(l.queue) > 0 || len(l.forgets) > 0
		if !work && l.idle != nil {
			close(l.idle)
			l.idle = nil
		}
		l.mu.Unlock()
		if work {
			return l.ctx.Err() == nil
		}
		select {
		case <-l.signal:
		case <-l.ctx.Done():
			return false
		}
	}
}

// ensure makes the stream what it should be. One of the other storage is made
// anew: what it holds lasts minutes.
func (l *EventLog) ensure() error {
	ctx, cancel := context.WithTimeout(l.ctx, eventTimeout)
	defer cancel()
	want := jetstream.StreamConfig{
		Name: l.name, Description: "messages of MCP streams, to resume them", Subjects: []string{eventSubject + "*.*"},
		MaxAge: l.opts.MaxAge, MaxBytes: l.opts.MaxBytes, Discard: jetstream.DiscardOld, Storage: jetstream.MemoryStorage,
		Replicas: l.opts.Replicas, AllowDirect: true, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
		Duplicates: min(2*time.Minute, l.opts.MaxAge),
	}
	if l.opts.Durability == EventsFile {
		want.Storage = jetstream.FileStorage
	}
	have, err := l.js.Stream(ctx, l.name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		_, err = l.js.CreateStream(ctx, want)
	case err != nil:
	case have.CachedInfo().Config.Storage != want.Storage:
		l.log.Info("the event log is made anew with another durability", "stream", l.name, "durability", l.opts.Durability)
		if err = l.js.DeleteStream(ctx, l.name); err == nil {
			_, err = l.js.CreateStream(ctx, want)
		}
	default:
		c := have.CachedInfo().Config
		if c.MaxAge != want.MaxAge || c.MaxBytes != want.MaxBytes || c.Replicas != want.Replicas {
			c.MaxAge, c.MaxBytes, c.Replicas, c.Duplicates = want.MaxAge, want.MaxBytes, want.Replicas, want.Duplicates
			_, err = l.js.UpdateStream(ctx, c)
		}
	}
	if err != nil {
		return fmt.Errorf("create stream %s: %w", l.name, err)
	}
	return nil
}

// writeOnce writes a batch of what waits. What fails is written again with the
// next, before anything newer.
func (l *EventLog) writeOnce() error {
	batch, forgets := l.begin()
	acks, errs := make([]jetstream.PubAckFuture, len(batch)), make([]error, len(batch))
	var stop error // what keeps the rest from being sent
	for n, e := range batch {
		if errs[n] = stop; stop == nil {
			acks[n], errs[n] = l.publish(e)
		}
		if errs[n] != nil && !tooLarge(errs[n]) {
			stop = errs[n]
		}
	}
	var failed []*event
	var last error
	for n, e := range batch {
		if acks[n] != nil {
			errs[n] = l.acknowledged(acks[n])
		}
		switch err := errs[n]; {
		case err == nil:
		case tooLarge(err):
			l.dropped.Add(1)
			l.log.Warn("event dropped", "session", e.session, "stream", e.stream, "n", e.n, "bytes", len(e.msg), "err", err)
		default:
			last = err
			failed = append(failed, e)
		}
	}
	l.end(batch, failed)
	for _, session := range forgets {
		if err := l.purge(session); err != nil && l.ctx.Err() == nil {
			l.log.Debug("events of an ended session are left to their age", "session", session, "err", err)
		}
	}
	return last
}

func (l *EventLog) publish(e *event) (jetstream.PubAckFuture, error) {
	return l.js.PublishMsgAsync(&nats.Msg{
		Subject: eventSubject + e.session + "." + e.stream, Data: e.msg,
		Header: nats.Header{eventHeader: {strconv.FormatUint(e.n, 10)}, jetstream.ExpectedStreamHeader: {l.name}},
	}, jetstream.WithRetryAttempts(0), jetstream.WithStallWait(eventTimeout))
}

func (l *EventLog) acknowledged(ack jetstream.PubAckFuture) error {
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return err
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
}

// tooLarge reports whether a message is refused for what it is.
func tooLarge(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.Code == 400
}

func (l *EventLog) begin() (batch []*event, forgets []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for _, e := range l.queue {
		if size += e.size(); len(batch) > 0 && (size > eventBatchBytes || len(batch) == eventBatch) {
			break
		}
		batch = append(batch, e)
		l.wrote[e.session] = time.Now()
	}
	l.sent = len(batch)
	if len(l.wrote) > 2*eventForgets { // those that never end
		for session, at := range l.wrote {
			if time.Since(at) > l.opts.MaxAge {
				delete(l.wrote, session)
			}
		}
	}
	if len(l.queue) == l.sent || len(l.forgets) > eventForgets/2 {
		for session := range l.forgets {
			forgets = append(forgets, session)
		}
		clear(l.forgets)
	}
	return batch, forgets
}

// end puts what failed back to the beginning.
func (l *EventLog) end(batch, failed []*event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.queue[l.sent:]
	for _, e := range batch {
		l.bytes -= e.size()
	}
	for _, e := range failed {
		l.bytes += e.size()
	}
	l.queue = append(failed, rest...)
	l.sent = 0
	l.shed()
}

func (l *EventLog) purge(session string) error {
	ctx, cancel := context.WithTimeout(l.ctx, eventTimeout)
	defer cancel()
	s, err := l.js.Stream(ctx, l.name)
	if err != nil {
		return err
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject(eventSubject+session+".*"))
}
