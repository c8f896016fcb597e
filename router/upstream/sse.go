package upstream

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"time"
)

// maxField bounds the value of an id, event or retry field; a longer one counts
// as absent.
const maxField = 4 << 10

// eventMessage is the name of the events that carry MCP messages; no name means
// the same.
const eventMessage = "message"

// sseReader reads server-sent events (WHATWG HTML, section 9.2.6): lines ended
// by LF, CR or CRLF, several data lines an event, comments, a byte order mark.
// An event that the stream's end cuts off is dropped, as the standard says.
//
// It looks at every byte once and holds no more than the event's data, however
// the bytes arrive.
type sseReader struct {
	r      io.Reader
	buf    []byte
	at, to int // unread part of buf

	line   lineState
	field  []byte // field name of the line being read
	value  []byte // value of a field other than data
	long   bool   // the value is longer than maxField
	skipLF bool   // the last line ended with CR
	begun  bool   // the first line, which may start with a byte order mark, is over

	data    []byte // of the event being read
	hasData bool
	name    string // its "event" field
	id      string // last id field, which counts once its event is complete

	lastID string        // id of the last complete event
	retry  time.Duration // last retry field; 0 = none
}

type lineState uint8

const (
	inField lineState = iota
	valueStart
	inValue
)

var sseBuffers = sync.Pool{New: func() any { b := make([]byte, 4<<10); return &b }}

// newSSE returns a reader that reads r through buf.
func newSSE(r io.Reader, buf []byte) *sseReader {
	return &sseReader{r: r, buf: buf}
}

// restart continues with another stream of the same events.
func (s *sseReader) restart(r io.Reader) {
	*s = sseReader{r: r, buf: s.buf, data: s.data, lastID: s.lastID, id: s.lastID, retry: s.retry}
}

// next returns the next event that has data. The data stays valid until the
// next call. The error is the reader's, or ErrTooLarge.
func (s *sseReader) next() (data []byte, name string, err error) {
	s.data = s.data[:0]
	for {
		if s.at == s.to {
			n, err := s.r.Read(s.buf)
			s.at, s.to = 0, n
			if n == 0 && err != nil {
				return nil, "", err
			}
			continue
		}
		if s.skipLF {
			s.skipLF = false
			if s.buf[s.at] == '\n' {
				s.at++
				continue
			}
		}
		part := s.buf[s.at:s.to]
		end := lineEnd(part)
		if end < 0 {
			s.at = s.to
			s.take(part)
		} else {
			s.at += end + 1
			s.skipLF = part[end] == '\r'
			s.take(part[:end])
		}
		if len(s.data) > maxMessage {
			return nil, "", errBodySize
		}
		if end >= 0 && s.endLine() {
			s.hasData = false
			name, s.name = s.name, ""
			return s.data, name, nil
		}
	}
}

// keep hands the last event's data over to the caller.
func (s *sseReader) keep() []byte {
	data := s.data
	s.data = nil
	return data
}

func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	if lf >= 0 {
		b = b[:lf]
	}
	if cr := bytes.IndexByte(b, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

// take takes a part of the current line.
func (s *sseReader) take(part []byte) {
	for len(part) > 0 {
		switch s.line {
		case inField:
			name, rest, ok := bytes.Cut(part, []byte{':'})
			if len(s.field) < 16 { // longer ones are unknown anyway
				s.field = append(s.field, name[:min(len(name), 16)]...)
			}
			if !ok {
				return
			}
			s.startValue()
			part = rest
		case valueStart:
			s.line = inValue
			if part[0] == ' ' {
				part = part[1:]
			}
		case inValue:
			if string(s.field) == "data" {
				s.data = append(s.data, part...)
			} else if len(s.value)+len(part) <= maxField {
				s.value = append(s.value, part...)
			} else {
				s.long = true
			}
			return
		}
	}
}

func (s *sseReader) startValue() {
	s.line = valueStart
	s.trimMark()
	if string(s.field) != "data" {
		return
	}
	if s.hasData {
		s.data = append(s.data, '\n')
	}
	s.hasData = true
}

func (s *sseReader) trimMark() {
	if !s.begun {
		s.begun = true
		s.field = bytes.TrimPrefix(s.field, []byte("\xef\xbb\xbf"))
	}
}

// endLine ends the current line and reports whether it completed an event with
// data.
func (s *sseReader) endLine() bool {
	if s.line == inField {
		if s.trimMark(); len(s.field) == 0 {
			return s.dispatch()
		}
		s.startValue() // a field without a value
	}
	if !s.long {
		switch string(s.field) {
		case "event":
			if s.name = eventMessage; string(s.value) != eventMessage {
				s.name = string(s.value)
			}
		case "id":
			if bytes.IndexByte(s.value, 0) < 0 {
				s.id = string(s.value)
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(s.value), 10, 31); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	s.line, s.long = inField, false
	s.field, s.value = s.field[:0], s.value[:0]
	return false
}

func (s *sseReader) dispatch() bool {
	s.lastID = s.id
	if s.hasData && len(s.data) > 0 {
		return true
	}
	s.hasData, s.name = false, ""
	return false
}
