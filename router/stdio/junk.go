package stdio

import (
	"encoding/json"
	"time"

	"ripstop/router"
)

// unreadable takes a line that is no message. If it can still be told which
// call it should have answered, that call fails; else it is junk.
func (c *conn) unreadable(b []byte, err error) {
	var loose struct {
		ID     json.RawMessage
		Method *string
	}
	if json.Unmarshal(b, &loose) == nil && loose.Method == nil {
		if cl := c.byID(loose.ID); cl != nil && c.remove(cl) {
			cl.settle(outcome{err: router.Errorf(router.ErrBackend, "%s was executed, but the server's answer is not valid: %v", cl, err)})
			return
		}
	}
	if skipped, ok := c.junk.allow(time.Now()); ok {
		c.log.Warn("server wrote a line that is not JSON-RPC to its standard output",
			"line", string(b[:min(len(b), 512)]), "err", err, "not_logged", skipped)
	}
}

// limiter lets a few events through at once and one in 10 s after that.
type limiter struct {
	last    time.Time
	burst   int
	skipped int
}

func (l *limiter) allow(now time.Time) (skipped int, ok bool) {
	if l.burst < 5 {
		l.burst++
	} else if now.Sub(l.last) < 10*time.Second {
		l.skipped++
		return 0, false
	}
	l.last = now
	skipped, l.skipped = l.skipped, 0
	return skipped, true
}
