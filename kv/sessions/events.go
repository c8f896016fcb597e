package sessions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"ripstop/kv"
)

// Where the event log keeps what it is given.
const (
	EventsMemory = "memory" // of as many nodes as there are votes
	EventsFile   = "file"   // on their disks
	EventsOff    = "off"    // nowhere: streams resume only where they were
)

const (
	eventSubject = "ripstop.v1.event." // and <session>.<stream>
	eventHeader  = "Ripstop-Event"     // a message's number in its stream

	eventQueue      = 8 << 20 // bytes that wait to be written, at most
	eventQueueMsgs  = 1 << 16
	eventBatch      = 256 // messages that wait for their acknowledgement together
	eventBatchBytes = 1 << 20
	eventTimeout    = 2 * time.Second // for an acknowledgement
	eventRetry      = 50 * time.Millisecond
	eventRetryMost  = 2 * time.Second
	eventWarn       = 3 * time.Second // how long writes may fail unmentioned
	eventForgets    = 4096            // sessions that wait to be forgotten, at most
)

// EventOptions configure an event log.
type EventOptions struct {
	Fabric     *nats.Conn
	Region     string        // "" = local
	Generation int           // 0 = 1
	Replicas   int           // as many as there are votes; 0 = 1
	Durability string        // EventsMemory, EventsFile or EventsOff; "" = EventsMemory
	MaxAge     time.Duration // 0 = 5 min
	MaxBytes   int64         // of the whole log; the oldest go first; 0 = 256 MiB
	Logger     *slog.Logger
}

// EventLog keeps the numbered messages of legacy streams for a while, so that a
// client can resume a stream on another node when its owner is gone. What it is
// given is written in the background; nobody waits for it, and when it can't be
// written the oldest that waits is dropped.
type EventLog struct {
	opts   EventOptions
	name   string
	nc     *nats.Conn
	js     jetstream.JetStream
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	signal chan struct{}

	dropped atomic.Uint64

	mu      sync.Mutex
	queue   []*event // oldest first; the first sent of them wait for acknowledgements
	sent    int
	bytes   int
	wrote   map[string]time.Time // sessions this node has written events of, and when last
	forgets map[string]bool      // sessions to forget
	idle    chan struct{}        // closed when nothing waits
}

type event struct {
	session, stream string
	n               uint64
	msg             []byte
}

func (e *event) size() int { return len(e.msg) + len(e.session) + len(e.stream) + 128 }

// OpenEventLog opens the log. It never waits for JetStream: the stream is made
// as soon as that is possible.
func OpenEventLog(opts EventOptions) (*EventLog, error) {
	if opts.Durability == "" {
		opts.Durability = EventsMemory
	}
	if opts.MaxAge == 0 {
		opts.MaxAge = 5 * time.Minute
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 256 << 20
	}
	opts.Replicas = max(opts.Replicas, 1)
	switch opts.Durability {
	case EventsMemory, EventsFile, EventsOff:
	default:
		return nil, fmt.Errorf("event log: durability %q is none of memory, file, off", opts.Durability)
	}
	l := &EventLog{
		opts: opts, name: kv.BucketConfig{Kind: "events", Region: opts.Region, Generation: opts.Generation}.Name(),
		nc: opts.Fabric, log: opts.Logger, signal: make(chan struct{}, 1),
		wrote: map[string]time.Time{}, forgets: map[string]bool{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	var err error
	if l.js, err = jetstream.New(l.nc, jetstream.WithPublishAsyncTimeout(eventTimeout), jetstream.WithPublishAsyncMaxPending(2*eventBatch)); err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	if opts.Durability != EventsOff {
		l.wg.Go(l.run)
	}
	return l, nil
}

// Close ends writing. What waits is lost; see Flush.
func (l *EventLog) Close() error {
	l.cancel()
	l.wg.Wait()
	l.js.CleanupPublisher()
	return nil
}

// Stream is the name of the log's stream.
func (l *EventLog) Stream() string { return l.name }

// Dropped counts messages that were dropped unwritten.
func (l *EventLog) Dropped() uint64 { return l.dropped.Load() }

// Pending counts messages that wait to be written.
func (l *EventLog) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// Append has message n of a session's stream written. It never blocks, and keeps
// msg, which must not be changed any more.
func (l *EventLog) Append(session, stream string, n uint64, msg []byte) {
	if l.opts.Durability == EventsOff {
		return
	}
	e := &event{session, stream, n, msg}
	if !isToken(session) || !isToken(stream) {
		l.dropped.Add(1)
		l.log.Warn("event of an impossible stream dropped", "session", session, "stream", stream)
		return
	}
	l.mu.Lock()
	l.queue = append(l.queue, e)
	l.bytes += e.size()
	l.shed()
	l.mu.Unlock()
	poke(l.signal)
}

func isToken(s string) bool { return s != "" && len(s) <= 200 && kv.Token(s) == s }

// shed drops the oldest of what is not on its way yet. The caller holds l.mu.
func (l *EventLog) shed() {
	n := l.sent
	for len(l.queue)-(n-l.sent) > eventQueueMsgs || l.bytes > eventQueue {
		if n >= len(l.queue) {
			break
		}
		l.bytes -= l.queue[n].size()
		n++
	}
	if n > l.sent {
		l.dropped.Add(uint64(n - l.sent))
		l.queue = append(l.queue[:l.sent], l.queue[n:]...)
	}
}

// Forget removes a session's messages, some time: it has ended. What another
// node has written of a session that this one has not goes by its age.
func (l *EventLog) Forget(session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.queue[:l.sent]
	for _, e := range l.queue[l.sent:] {
		if e.session == session {
			l.bytes -= e.size()
		} else {
			kept = append(kept, e)
		}
	}
	clear(l.queue[len(kept):])
	l.queue = kept
	if _, wrote := l.wrote[session]; wrote && len(l.forgets) < eventForgets {
		l.forgets[session] = true
		poke(l.signal)
	}
	delete(l.wrote, session)
}

// Flush waits until all that was appended is written, or ctx ends.
func (l *EventLog) Flush(ctx context.Context) error {
	l.mu.Lock()
	if len(l.queue) == 0 && len(l.forgets) == 0 {
		l.mu.Unlock()
		return nil
	}
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flush events: %w", ctx.Err())
	case <-l.ctx.Done():
		return errors.New("flush events: the log is closed")
	}
}

// subjectOf is where the messages of a session's stream are.
func subjectOf(session, stream string) (string, error) {
	if !isToken(session) || !isToken(stream) {
		return "", fmt.Errorf("stream %.80q of session %.80q: not a name", stream, session)
	}
	return strings.Join([]string{eventSubject + session, stream}, "."), nil
}
