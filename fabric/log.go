package fabric

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// logBridge hands nats-server's log to slog. The stock logger's Fatalf exits
// the process; this one keeps the text for Open to return.
type logBridge struct {
	log *slog.Logger

	once  sync.Once
	fatal chan struct{} // closed by Fatalf
	text  string        // valid once fatal is closed
}

func newLogBridge(log *slog.Logger) *logBridge {
	return &logBridge{log: log.With("from", "nats-server"), fatal: make(chan struct{})}
}

func (b *logBridge) fatalText() string { return b.text }

func (b *logBridge) put(level slog.Level, format string, args []any) {
	if b.log.Enabled(context.Background(), level) {
		b.log.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

// Noticef logs at debug: nats-server's notices are a page at every start.
func (b *logBridge) Noticef(format string, v ...any) { b.put(slog.LevelDebug, format, v) }

// onPurpose are warnings about what the fabric chose: payloads past 8 MiB, and
// passwords that never leave this process or are a token of 16 characters.
var onPurpose = []string{"Maximum payloads over", "Plaintext passwords"}

// saidBetter is what the node says itself, in fewer and plainer words: whom it
// reaches, and whether there is a leader.
var saidBetter = []string{"Error trying to connect to route", "Waiting for routing", "has not established contact with a meta leader"}

// Warnf logs at warn, but for the remarks on choices the fabric makes on
// purpose, and what it says itself.
func (b *logBridge) Warnf(format string, v ...any) { b.put(atMost(slog.LevelWarn, format), format, v) }

// Errorf logs at error, with the same exceptions.
func (b *logBridge) Errorf(format string, v ...any) {
	b.put(atMost(slog.LevelError, format), format, v)
}

// atMost is level, or debug for a known text.
func atMost(level slog.Level, format string) slog.Level {
	for _, known := range slices.Concat(onPurpose, saidBetter) {
		if strings.Contains(format, known) {
			return slog.LevelDebug
		}
	}
	return level
}

// Fatalf logs at error and tells Open.
func (b *logBridge) Fatalf(format string, v ...any) {
	b.put(slog.LevelError, format, v)
	b.once.Do(func() {
		b.text = fmt.Sprintf(format, v...)
		close(b.fatal)
	})
}

// Debugf logs at debug.
func (b *logBridge) Debugf(format string, v ...any) { b.put(slog.LevelDebug, format, v) }

// Tracef logs at debug.
func (b *logBridge) Tracef(format string, v ...any) { b.put(slog.LevelDebug, format, v) }
