package session

import "time"

// StandStill makes the layer believe that its process just stood still.
func (l *Layer) StandStill() { l.tick.Add(-int64(2 * pauseOver)) }

// Later expires what is kept as if d had passed.
func (l *Layer) Later(d time.Duration) { l.expire(l.now() + d) }

// Kept returns how many bytes all rings hold, and how many sessions have
// something that expires.
func (l *Layer) Kept() (bytes, sessions int) {
	l.odd.Lock()
	defer l.odd.Unlock()
	return int(l.bytes.Load()), len(l.kept)
}

// KeepFor is how long streams are kept.
const KeepFor = keepFor
