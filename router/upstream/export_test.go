package upstream

import (
	"crypto/tls"
	"io"
	"net/http"
)

// Event is an event as Events returns it.
type Event struct{ Data, Name, LastID string }

// Events reads all events of r through a buffer of size bytes.
func Events(r io.Reader, size int) (events []Event, retry int64, err error) {
	s := newSSE(r, make([]byte, size))
	for {
		data, name, err := s.next()
		if err == io.EOF {
			return events, s.retry.Milliseconds(), nil
		}
		if err != nil {
			return events, 0, err
		}
		events = append(events, Event{string(data), name, s.lastID})
	}
}

// NewStandard returns the transport for https, trusting what config trusts.
func NewStandard(config *tls.Config) http.RoundTripper {
	t := newStandard()
	t.TLSClientConfig = config
	return t
}

// Sessions returns the number of sessions b holds.
func (b *Backend) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions)
}

// Idle returns the number of connections b could use again; -1 if its transport
// does not say.
func (b *Backend) Idle() (idle, open int) {
	t, ok := b.transport.(*plain)
	if !ok {
		return -1, -1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.idle) + len(t.resting), len(t.open)
}

// StreamEvents calls event for every event of r as it comes.
func StreamEvents(r io.Reader, event func(Event)) {
	s := newSSE(r, make([]byte, 64))
	for {
		data, name, err := s.next()
		if err != nil {
			return
		}
		event(Event{string(data), name, s.lastID})
	}
}

// ForgetSessions makes Close quick.
func (b *Backend) ForgetSessions() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.sessions)
}
