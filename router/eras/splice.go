package eras

import (
	"bytes"
	"encoding/json"
	"slices"

	"ripstop/router/jsonrpc"
)

// Messages are changed member by member: the values in them stay byte for byte
// what they were.

// field returns the raw value of key in a raw object, or nil. Of a repeated key
// the last one counts, as in encoding/json.
func field(object []byte, keys ...string) []byte {
	for _, key := range keys {
		var found []byte
		jsonrpc.EachMember(object, func(k string, v []byte) {
			if k == key {
				found = v
			}
		})
		object = found
	}
	return object
}

// text returns the string a raw value stands for; "" if it is none.
func text(raw []byte) string {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// isObject reports whether raw is one.
func isObject(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }

// build makes a raw object of members.
func build(members ...jsonrpc.Member) []byte {
	out := []byte{'{'}
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, jsonrpc.Quote(m.Key)...), ':'), m.Value...)
	}
	return append(out, '}')
}

func members(object []byte) []jsonrpc.Member {
	var all []jsonrpc.Member
	jsonrpc.EachMember(object, func(k string, v []byte) { all = append(all, jsonrpc.Member{Key: k, Value: v}) })
	return all
}

// without returns object without the members whose key drop names.
func without(object []byte, drop ...string) []byte {
	all := members(object)
	kept := slices.DeleteFunc(slices.Clone(all), func(m jsonrpc.Member) bool { return slices.Contains(drop, m.Key) })
	if len(kept) == len(all) {
		return object
	}
	return build(kept...)
}

// with returns object with the members set; what had their keys goes.
func with(object []byte, set ...jsonrpc.Member) []byte {
	all := slices.DeleteFunc(members(object), func(m jsonrpc.Member) bool {
		return slices.ContainsFunc(set, func(s jsonrpc.Member) bool { return s.Key == m.Key })
	})
	return build(append(all, set...)...)
}

// withDefaults puts those members in front of an object's own whose keys it does
// not have.
func withDefaults(object []byte, defaults ...jsonrpc.Member) []byte {
	if !isObject(object) {
		return object
	}
	has := map[string]bool{}
	jsonrpc.EachMember(object, func(k string, _ []byte) { has[k] = true })
	add := slices.DeleteFunc(defaults, func(m jsonrpc.Member) bool { return has[m.Key] })
	if len(add) == 0 {
		return object
	}
	head := build(add...)
	head = head[:len(head)-1]
	if len(has) > 0 {
		head = append(head, ',')
	}
	return append(head, bytes.TrimLeft(object[1:], " \t\r\n")...)
}

func member(key string, raw []byte) jsonrpc.Member { return jsonrpc.Member{Key: key, Value: raw} }

func quoted(key, value string) jsonrpc.Member {
	return jsonrpc.Member{Key: key, Value: []byte(jsonrpc.Quote(value))}
}

func quotedList(all []string) []byte {
	out := []byte{'['}
	for i, s := range all {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, jsonrpc.Quote(s)...)
	}
	return append(out, ']')
}

// stringsOf returns the strings of a raw array; nil if it holds anything else.
func stringsOf(raw []byte) []string {
	var all []string
	if len(raw) == 0 || json.Unmarshal(raw, &all) != nil {
		return nil
	}
	return all
}

// elements returns the raw elements of a raw array; nil if it is none.
func elements(raw []byte) [][]byte {
	if len(raw) == 0 || raw[0] != '[' {
		return nil
	}
	all, err := jsonrpc.SplitBatch(raw)
	if err != nil {
		return nil
	}
	return all
}
