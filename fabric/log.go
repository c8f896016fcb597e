package fabric

import (
	"context"
	"fmt"
	"log/slog"
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

// Warnf logs at warn, but for the remarks on choices the fabric makes on purpose.
func (b *logBridge) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	for _, known := range onPurpose {
		if strings.Contains(format, known) {
			level = slog.LevelDebug
		}
	}
	b.put(level, format, v)
}

// Errorf logs at error.
func (b *logBridge) Errorf(format string, v ...any) { b.put(slog.LevelError, format, v) }

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
