package jsonrpc

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
)

// Edit lists replacements for the routed values of a message. A nil field
// stays as it is; values are raw JSON.
type Edit struct {
	ID            []byte
	ProgressToken []byte
	CancelID      []byte
	Name          []byte
}

// Edit returns the message's bytes with the values replaced and every other
// byte kept. A value the message does not have is not added. m is unchanged.
func (m *Message) Edit(e Edit) []byte {
	type cut struct {
		at  span
		new []byte
	}
	var cuts []cut
	add := func(has []byte, at span, to []byte) {
		if has != nil && to != nil {
			cuts = append(cuts, cut{at, to})
		}
	}
	add(m.ID, m.id, e.ID)
	add(m.ProgressToken, m.token, e.ProgressToken)
	add(m.CancelID, m.cancel, e.CancelID)
	if m.Named {
		add(m.Raw, m.name, e.Name)
	}
	if len(cuts) == 0 {
		return m.Raw
	}
	slices.SortFunc(cuts, func(a, b cut) int { return a.at.from - b.at.from })
	out := make([]byte, 0, len(m.Raw)+64)
	pos := 0
	for _, c := range cuts {
		out = append(append(out, m.Raw[pos:c.at.from]...), c.new...)
		pos = c.at.to
	}
	return append(out, m.Raw[pos:]...)
}

// WithResultMeta returns a response's bytes with key set in result._meta, and
// every other byte kept. A message without an object as its result comes back
// as it is.
func (m *Message) WithResultMeta(key string, value []byte) []byte {
	if len(m.Result) == 0 || m.Result[0] != '{' {
		return m.Raw
	}
	entry := append(append([]byte(Quote(key)), ':'), value...)
	at, meta := m.result.from+1, span{}
	s := scanner{buf: m.Raw[:m.result.to], pos: m.result.from}
	_ = s.object(func(k span) error {
		v, err := s.value()
		if err == nil && string(s.buf[k.from:k.to]) == `"_meta"` && s.buf[v.from] == '{' {
			meta = v
		}
		return err
	})
	inner := m.Result
	if meta.to > 0 {
		at, inner = meta.from+1, m.Raw[meta.from:meta.to]
	} else {
		entry = append(append([]byte(`"_meta":{`), entry...), '}')
	}
	if !emptyObject(inner) {
		entry = append(entry, ',')
	}
	return slices.Concat(m.Raw[:at], entry, m.Raw[at:])
}

// Member is one member of a JSON object. Value is raw JSON.
type Member struct {
	Key   string
	Value []byte
}

// WithParamsMeta returns a request's or notification's bytes with members put
// into params._meta, and every other byte kept. A key that _meta has already
// keeps the sender's value. A response, or a message whose _meta is not an
// object, comes back as it is.
func (m *Message) WithParamsMeta(members ...Member) []byte {
	if m.Kind == Response || len(members) == 0 {
		return m.Raw
	}
	if m.Params == nil {
		at := len(m.Raw) - 1 // the closing brace; jsonrpc and method stand before it
		entry := slices.Concat([]byte(`,"params":{"_meta":{`), joinMembers(members), []byte("}}"))
		return slices.Concat(m.Raw[:at], entry, m.Raw[at:])
	}
	meta, ok := m.paramsMeta()
	if !ok {
		return m.Raw
	}
	at, inner := m.params.from+1, m.Params
	var entry []byte
	if meta.to > 0 {
		at, inner = meta.from+1, m.Raw[meta.from:meta.to]
		entry = joinMembers(missingFrom(inner, members))
	} else {
		entry = slices.Concat([]byte(`"_meta":{`), joinMembers(members), []byte("}"))
	}
	if len(entry) == 0 {
		return m.Raw
	}
	if !emptyObject(inner) {
		entry = append(entry, ',')
	}
	return slices.Concat(m.Raw[:at], entry, m.Raw[at:])
}

// paramsMeta returns where params._meta stands, the zero span if it is absent,
// and false if it is not an object. Parse lets no other spelling of the key by.
func (m *Message) paramsMeta() (meta span, ok bool) {
	s := scanner{buf: m.Raw[:m.params.to], pos: m.params.from}
	ok = true
	_ = s.object(func(k span) error { // Parse has read it before
		v, err := s.value()
		if err == nil && string(s.buf[k.from:k.to]) == `"_meta"` {
			meta, ok = v, s.buf[v.from] == '{'
		}
		return err
	})
	return meta, ok
}

// EachMember calls f for every member of the raw JSON object, in order, with its
// key decoded and its value as it stands. Anything else than an object has none;
// what follows a syntax error is left out.
func EachMember(object []byte, f func(key string, value []byte)) {
	s := scanner{buf: object}
	if s.space(); s.peek() != '{' {
		return
	}
	_ = s.object(func(k span) error { // callers pass what Parse has read
		v, err := s.value()
		if err == nil {
			f(unquote(object[k.from:k.to]), object[v.from:v.to:v.to])
		}
		return err
	})
}

// missingFrom returns the members whose keys the raw object does not have.
func missingFrom(object []byte, members []Member) []Member {
	out := slices.Clone(members)
	s := scanner{buf: object}
	_ = s.object(func(k span) error { // Parse has read it before
		key := unquote(object[k.from:k.to])
		out = slices.DeleteFunc(out, func(m Member) bool { return m.Key == key })
		_, err := s.value()
		return err
	})
	return out
}

func joinMembers(members []Member) []byte {
	var out []byte
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, Quote(m.Key)...), ':'), m.Value...)
	}
	return out
}

func emptyObject(raw []byte) bool {
	return len(bytes.TrimSpace(raw[1:len(raw)-1])) == 0
}

// Quote returns s as a JSON string. Unlike json.Marshal it leaves <, > and &
// as they are.
func Quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// NewError returns an error response. A nil id becomes null, which JSON-RPC
// demands where the request's id could not be read. data is raw JSON or nil.
func NewError(id []byte, code int, text string, data []byte) []byte {
	if id == nil {
		id = []byte("null")
	}
	out := slices.Concat([]byte(`{"jsonrpc":"2.0","id":`), id, []byte(`,"error":{"code":`))
	out = strconv.AppendInt(out, int64(code), 10)
	out = append(append(out, `,"message":`...), Quote(text)...)
	if data != nil {
		out = append(append(out, `,"data":`...), data...)
	}
	return append(out, "}}"...)
}

// NewResult returns a success response. result is raw JSON.
func NewResult(id, result []byte) []byte {
	return slices.Concat([]byte(`{"jsonrpc":"2.0","id":`), id, []byte(`,"result":`), result, []byte("}"))
}

// NewRequest returns a request, or a notification when id is nil. params is raw
// JSON or nil.
func NewRequest(id []byte, method string, params []byte) []byte {
	out := []byte(`{"jsonrpc":"2.0"`)
	if id != nil {
		out = append(append(out, `,"id":`...), id...)
	}
	out = append(append(out, `,"method":`...), Quote(method)...)
	if params != nil {
		out = append(append(out, `,"params":`...), params...)
	}
	return append(out, '}')
}
