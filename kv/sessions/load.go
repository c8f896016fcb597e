package sessions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	loadBatch   = 256
	loadBytes   = 4 << 20
	loadTimeout = time.Second // for the next message of an answer
)

// errReplicaBehind: the replica that answered lacks what the leader has.
var errReplicaBehind = errors.New("the replica that answered is behind")

// Load calls f with the messages of a session's stream whose number is greater
// than after, once each, in order. Numbers are missing where messages were
// dropped, or are too old. It reads up to what the stream's leader has when it is
// called, and what waits here to be written; it fails if the leader can't be
// asked while ctx lasts.
func (l *EventLog) Load(ctx context.Context, session, stream string, after uint64, f func(n uint64, msg []byte) error) error {
	if l.opts.Durability == EventsOff {
		return nil
	}
	subject, err := subjectOf(session, stream)
	if err != nil {
		return err
	}
	s := &sorter{last: after, held: map[uint64][]byte{}, f: f}
	for _, e := range l.waiting(session, stream) {
		if err := s.take(e.n, e.msg, true); err != nil {
			return err
		}
	}
	from := uint64(1)
	for pause := retryLeast; ; pause = min(2*pause, retryMost) {
		from, err = l.load(ctx, subject, from, s)
		if err == nil {
			return s.finish()
		}
		if s.err != nil {
			return s.err
		}
		if !passing(err) && !errors.Is(err, errReplicaBehind) {
			return fmt.Errorf("load events of %s: %w", subject, err)
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return fmt.Errorf("load events of %s: %w; last: %w", subject, ctx.Err(), err)
		}
	}
}

// waiting returns what is not written yet of a stream.
func (l *EventLog) waiting(session, stream string) []*event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*event
	for _, e := range l.queue {
		if e.session == session && e.stream == stream {
			list = append(list, e)
		}
	}
	return list
}

// load reads a stream from sequence from on, and returns where to go on after a
// failure.
func (l *EventLog) load(ctx context.Context, subject string, from uint64, s *sorter) (uint64, error) {
	last, err := l.lastOf(ctx, subject)
	if err != nil {
		return from, err
	}
	for from <= last {
		through, err := l.batch(ctx, subject, from, s)
		if err != nil {
			return from, err
		}
		if through < from { // this replica has no more
			return from, errReplicaBehind
		}
		from = through + 1
	}
	return from, nil
}

// lastOf asks the leader for the sequence of a subject's last message, 0 = none.
func (l *EventLog) lastOf(ctx context.Context, subject string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	req, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return 0, err
	}
	msg, err := l.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+l.name, req)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return 0, err
	}
	switch e := answer.Error; {
	case e == nil:
		return answer.Message.Seq, nil
	case e.ErrorCode == jetstream.JSErrCodeMessageNotFound || e.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return 0, nil
	default:
		return 0, e
	}
}

// batch reads some messages by direct get, and returns the sequence of the last;
// 0 if there is none.
func (l *EventLog) batch(ctx context.Context, subject string, from uint64, s *sorter) (through uint64, err error) {
	req, err := json.Marshal(struct {
		Seq   uint64 `json:"seq"`
		Next  string `json:"next_by_subj"`
		Batch int    `json:"batch"`
		Bytes int    `json:"max_bytes"`
	}{from, subject, loadBatch, loadBytes})
	if err != nil {
		return 0, err
	}
	inbox := l.nc.NewInbox()
	sub, err := l.nc.SubscribeSync(inbox)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only with the connection
	if err := errors.Join(sub.SetPendingLimits(-1, -1), l.nc.PublishRequest("$JS.API.DIRECT.GET."+l.name, inbox, req)); err != nil {
		return 0, err
	}
	for {
		m, err := l.next(ctx, sub)
		if err != nil {
			return 0, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("sequence: %w", err)
			}
			n, err := strconv.ParseUint(m.Header.Get(eventHeader), 10, 64)
			if err == nil {
				err = s.take(n, m.Data, false)
			}
			if err != nil {
				return 0, err
			}
			through = seq
		case "204", "404": // end of batch; nothing there
			return through, nil
		default:
			return 0, fmt.Errorf("%s %s", status, m.Header.Get("Description"))
		}
	}
}

func (l *EventLog) next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

// sorter passes numbered messages on in order. A message that was written again
// comes twice, or late.
type sorter struct {
	last uint64 // passed on
	held map[uint64][]byte
	f    func(n uint64, msg []byte) error
	err  error // f's
}

// take passes on what is next, and holds what is not; or all, with hold.
func (s *sorter) take(n uint64, msg []byte, hold bool) error {
	if n <= s.last {
		return nil
	}
	if s.held[n] = msg; hold {
		return nil
	}
	for {
		msg, ok := s.held[s.last+1]
		if !ok {
			return nil
		}
		s.last++
		delete(s.held, s.last)
		if s.err = s.f(s.last, msg); s.err != nil {
			return s.err
		}
	}
}

// finish passes on what is held: what is missing before it will not come.
func (s *sorter) finish() error {
	for _, n := range slices.Sorted(maps.Keys(s.held)) {
		if err := s.f(n, s.held[n]); err != nil {
			return err
		}
	}
	return nil
}
