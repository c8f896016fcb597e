package aggregate

import (
	"bytes"
	"encoding/json"
	"slices"

	"ripstop/router/jsonrpc"
)

// span is where a value stands in an editor's text.
type span struct{ from, to int }

func (s span) some() bool { return s.to > s.from }

type cut struct {
	span
	new []byte
}

// editor changes single values of a JSON text and keeps every other byte. The
// text must be valid (jsonrpc.Parse has seen it) and without surrounding white
// space.
type editor struct {
	src  []byte
	cuts []cut
}

func edit(src []byte) *editor { return &editor{src: src} }

func (e *editor) root() span { return span{0, len(e.src)} }

func (e *editor) text(v span) []byte { return e.src[v.from:v.to:v.to] }

// str returns v decoded, if it is a string.
func (e *editor) str(v span) (string, bool) {
	if !v.some() || e.src[v.from] != '"' {
		return "", false
	}
	return string(decode(e.text(v))), true
}

// decode returns what a valid JSON string stands for. Mostly that is part of
// raw.
func decode(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	var s string
	_ = json.Unmarshal(raw, &s) // valid by precondition
	return []byte(s)
}

// fields calls f for each member of the object at obj; if it is none, for
// nothing.
func (e *editor) fields(obj span, f func(key []byte, val span)) {
	if !e.is(obj, '{') {
		return
	}
	for i := e.space(obj.from + 1); i < obj.to && e.src[i] == '"'; {
		end := e.skip(i)
		key := decode(e.src[i:end])
		from := e.space(e.space(end) + 1) // past the colon
		to := e.skip(from)
		f(key, span{from, to})
		i = e.space(e.space(to) + 1) // past the comma
	}
}

// items likewise for the elements of an array.
func (e *editor) items(arr span, f func(val span)) {
	if !e.is(arr, '[') {
		return
	}
	for i := e.space(arr.from + 1); i < arr.to-1; {
		to := e.skip(i)
		f(span{i, to})
		i = e.space(e.space(to) + 1)
	}
}

func (e *editor) is(v span, open byte) bool { return v.some() && e.src[v.from] == open }

// field returns the value of key, or no span. A repeated key counts as often as
// fields calls for it; the last one wins here, as in encoding/json.
func (e *editor) field(obj span, keys ...string) span {
	for _, key := range keys {
		var found span
		e.fields(obj, func(k []byte, v span) {
			if string(k) == key {
				found = v
			}
		})
		obj = found
	}
	return obj
}

// space returns the first position from i that is not white space.
func (e *editor) space(i int) int {
	for i < len(e.src) && (e.src[i] == ' ' || e.src[i] == '\n' || e.src[i] == '\t' || e.src[i] == '\r') {
		i++
	}
	return i
}

// skip returns the end of the value at i.
func (e *editor) skip(i int) int {
	depth := 0
	for i < len(e.src) {
		switch e.src[i] {
		case '"':
			i = e.skipString(i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\n', '\t', '\r':
			i++
			continue
		default:
			i = e.skipPlain(i)
		}
		if depth <= 0 {
			return i
		}
	}
	return i
}

func (e *editor) skipString(i int) int {
	for i++; i < len(e.src); i++ {
		n := bytes.IndexByte(e.src[i:], '"')
		if n < 0 {
			break
		}
		i += n
		slashes := 0
		for e.src[i-1-slashes] == '\\' { // stops at the opening quote at the latest
			slashes++
		}
		if slashes%2 == 0 {
			return i + 1
		}
	}
	return len(e.src)
}

// skipPlain skips a number, true, false or null.
func (e *editor) skipPlain(i int) int {
	for i < len(e.src) && bytes.IndexByte([]byte(",]} \n\t\r"), e.src[i]) < 0 {
		i++
	}
	return i
}

func (e *editor) replace(v span, raw []byte) { e.cuts = append(e.cuts, cut{v, raw}) }

// prefix puts plain text, which needs no escapes, in front of the string at v.
// Anything but a string stays.
func (e *editor) prefix(v span, plain string) {
	if e.is(v, '"') {
		e.replace(span{v.from + 1, v.from + 1}, []byte(plain))
	}
}

// add puts members in front of those the object at obj has. entries is raw
// "key":value text, joined by commas. Call it once for an object.
func (e *editor) add(obj span, entries []byte) {
	if len(entries) == 0 || !e.is(obj, '{') {
		return
	}
	at := obj.from + 1
	if e.src[e.space(at)] != '}' {
		entries = append(slices.Clip(entries), ',')
	}
	e.replace(span{at, at}, entries)
}

// remove takes the members out of the object at obj for whose key drop is true.
func (e *editor) remove(obj span, drop func(key string) bool) {
	kept, dropped := []byte("{"), false
	e.fields(obj, func(k []byte, v span) {
		key := string(k)
		if drop(key) {
			dropped = true
			return
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		kept = append(append(append(kept, jsonrpc.Quote(key)...), ':'), e.text(v)...)
	})
	if dropped {
		e.replace(obj, append(kept, '}'))
	}
}

// done returns the text with all changes made, or the original if there are
// none.
func (e *editor) done() []byte {
	if len(e.cuts) == 0 {
		return e.src
	}
	slices.SortStableFunc(e.cuts, func(a, b cut) int { return a.from - b.from })
	size := len(e.src)
	for _, c := range e.cuts {
		size += len(c.new)
	}
	out, pos := make([]byte, 0, size), 0
	for _, c := range e.cuts {
		out = append(append(out, e.src[pos:c.from]...), c.new...)
		pos = c.to
	}
	return append(out, e.src[pos:]...)
}

// entry returns one member of an object as raw text.
func entry(key string, raw []byte) []byte {
	return append(append([]byte(jsonrpc.Quote(key)), ':'), raw...)
}

// join joins raw values or members with commas.
func join(raw ...[]byte) []byte {
	return bytes.Join(slices.DeleteFunc(raw, func(r []byte) bool { return len(r) == 0 }), []byte(","))
}
