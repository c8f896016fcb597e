package jsonrpc

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxDepth bounds how deeply a message may nest, so that a hostile body can't
// exhaust the stack of anything that parses it later. Real MCP messages stay
// below 30; encoding/json allows 10,000.
const maxDepth = 1000

var errTruncated = errors.New("unexpected end of JSON")

// scanner walks JSON text without building values. It accepts exactly what
// RFC 8259 calls JSON text, and rejects invalid UTF-8 inside strings, which
// encoding/json would silently replace: a byte-for-byte router must not pass
// on what two parsers would read differently.
type scanner struct {
	buf   []byte
	pos   int
	depth int
}

func (s *scanner) fail(what string) error {
	if s.pos >= len(s.buf) {
		return errTruncated
	}
	return fmt.Errorf("%s at byte %d", what, s.pos)
}

func (s *scanner) space() {
	for s.pos < len(s.buf) {
		switch s.buf[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

// peek returns the next byte without taking it, or 0 at the end.
func (s *scanner) peek() byte {
	if s.pos < len(s.buf) {
		return s.buf[s.pos]
	}
	return 0
}

// value skips one value and returns its span.
func (s *scanner) value() (span, error) {
	start := s.pos
	var err error
	switch c := s.peek(); {
	case c == '{':
		err = s.object(nil)
	case c == '[':
		err = s.array(nil)
	case c == '"':
		_, err = s.str()
	case c == '-' || c >= '0' && c <= '9':
		err = s.number()
	case c == 't':
		err = s.literal("true")
	case c == 'f':
		err = s.literal("false")
	case c == 'n':
		err = s.literal("null")
	default:
		err = s.fail("not a JSON value")
	}
	return span{start, s.pos}, err
}

// object walks an object. For every member it calls field with the key's raw
// span (quotes included) and the scanner standing on the value; field must
// consume the value. A nil field skips.
func (s *scanner) object(field func(key span) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	s.space()
	if s.peek() == '}' {
		s.leave()
		return nil
	}
	for {
		key, err := s.str()
		if err != nil {
			return err
		}
		s.space()
		if s.peek() != ':' {
			return s.fail("expected ':'")
		}
		s.pos++
		s.space()
		if field != nil {
			err = field(key)
		} else {
			_, err = s.value()
		}
		if err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case '}':
			s.leave()
			return nil
		default:
			return s.fail("expected ',' or '}'")
		}
	}
}

// array walks an array, calling item with each element's span.
func (s *scanner) array(item func(span) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	s.space()
	if s.peek() == ']' {
		s.leave()
		return nil
	}
	for {
		sp, err := s.value()
		if err != nil {
			return err
		}
		if item != nil {
			if err := item(sp); err != nil {
				return err
			}
		}
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case ']':
			s.leave()
			return nil
		default:
			return s.fail("expected ',' or ']'")
		}
	}
}

func (s *scanner) enter() error {
	if s.depth++; s.depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	s.pos++
	return nil
}

func (s *scanner) leave() { s.depth--; s.pos++ }

// str skips a string and returns its span, quotes included.
func (s *scanner) str() (span, error) {
	start := s.pos
	if s.peek() != '"' {
		return span{}, s.fail("expected a string")
	}
	s.pos++
	for s.pos < len(s.buf) {
		c := s.buf[s.pos]
		switch {
		case c == '"':
			s.pos++
			return span{start, s.pos}, nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return span{}, err
			}
		case c < 0x20:
			return span{}, s.fail("control character in a string")
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, n := utf8.DecodeRune(s.buf[s.pos:])
			if r == utf8.RuneError && n == 1 {
				return span{}, s.fail("invalid UTF-8")
			}
			s.pos += n
		}
	}
	return span{}, errTruncated
}

func (s *scanner) escape() error {
	if s.pos+1 >= len(s.buf) {
		s.pos = len(s.buf)
		return errTruncated
	}
	switch s.buf[s.pos+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos += 2
		return nil
	case 'u':
		for i := 2; i < 6; i++ {
			if s.pos+i >= len(s.buf) {
				s.pos = len(s.buf)
				return errTruncated
			}
			if !isHex(s.buf[s.pos+i]) {
				return s.fail("invalid \\u escape")
			}
		}
		s.pos += 6
		return nil
	}
	return s.fail("invalid escape")
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func (s *scanner) digits() bool {
	start := s.pos
	for s.pos < len(s.buf) && s.buf[s.pos] >= '0' && s.buf[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > start
}

func (s *scanner) number() error {
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
	} else if !s.digits() {
		return s.fail("invalid number")
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return s.fail("invalid number")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			return s.fail("invalid number")
		}
	}
	return nil
}

func (s *scanner) literal(want string) error {
	if len(s.buf)-s.pos < len(want) || string(s.buf[s.pos:s.pos+len(want)]) != want {
		return s.fail("not a JSON value")
	}
	s.pos += len(want)
	return nil
}
