package session

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ripstop/router"
)

// ring is the newest messages of a stream, numbered without gaps.
type ring struct {
	base uint64 // the number before the first one's
	list []event
}

type event struct {
	msg []byte
	at  time.Duration // Layer.now
}

// last returns the number of the newest message, kept or not.
func (r *ring) last() uint64 { return r.base + uint64(len(r.list)) }

func (r *ring) push(msg []byte, at time.Duration) (n uint64) {
	r.list = append(r.list, event{msg, at})
	return r.last()
}

// pop drops the oldest message.
func (r *ring) pop() (msg []byte) {
	msg = r.list[0].msg
	r.list[0] = event{}
	r.list = r.list[1:]
	r.base++
	if len(r.list) == 0 {
		r.list = nil // and its array
	}
	return msg
}

// after returns the oldest message with a number above n.
func (r *ring) after(n uint64) (msg []byte, number uint64, ok bool) {
	if n < r.base {
		n = r.base
	}
	if i := n - r.base; i < uint64(len(r.list)) {
		return r.list[i].msg, n + 1, true
	}
	return nil, 0, false
}

// eventID is the id of a stream's n-th message.
func eventID(stream string, n uint64) string {
	return stream + "." + strconv.FormatUint(n, 10)
}

// parseEventID reads one back.
func parseEventID(id string) (stream string, n uint64, ok bool) {
	i := strings.LastIndexByte(id, '.')
	if i < 1 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(id[i+1:], 10, 64)
	return id[:i], n, err == nil
}

// errEventID is for an id that no event has.
func errEventID(id string) error {
	err := router.Errorf(router.ErrRefused, "Last-Event-ID %.80q is not the id of an event; leave it out to listen from now on", id)
	err.Status = http.StatusBadRequest
	return err
}

// ownStream names the session's own stream, which belongs to no request, under
// an epoch. The ids that edges give the streams of calls are longer.
func ownStream(epoch uint64) string { return "g" + strconv.FormatUint(epoch, 10) }

// ownEpoch reads the epoch from such a name.
func ownEpoch(stream string) (uint64, bool) {
	if len(stream) < 2 || len(stream) >= 8 || stream[0] != 'g' {
		return 0, false
	}
	n, err := strconv.ParseUint(stream[1:], 10, 64)
	return n, err == nil
}
