package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// input is what an object must look like: the arguments of a tool, or the
// answer to an elicitation. Only its top level is looked at; the server checks
// the rest.
type input struct {
	root *jsonschema.Schema // nil = not known
}

// inputOf reads a tool's input schema.
func inputOf(t *mcp.Tool) input { return schemaOf(t.InputSchema) }

// schemaOf reads a schema as it came over the wire. One that can't be read, of
// a dialect unknown here, asks for nothing.
func schemaOf(wire any) input {
	raw, err := json.Marshal(wire)
	if err != nil {
		return input{}
	}
	var s *jsonschema.Schema
	if json.Unmarshal(raw, &s) != nil {
		return input{}
	}
	return input{s}
}

// property is a named part of an input.
type property struct {
	name     string
	required bool
	schema   *jsonschema.Schema // never nil
	root     *jsonschema.Schema // what its references are to
}

// properties lists what the input names: first what is required, in the
// schema's order, then the rest by name, since JSON objects have no order.
func (in input) properties() []property {
	if in.root == nil {
		return nil
	}
	var list []property
	for _, name := range in.root.Required {
		list = append(list, in.property(name))
	}
	for _, name := range slices.Sorted(maps.Keys(in.root.Properties)) {
		if !slices.Contains(in.root.Required, name) {
			list = append(list, in.property(name))
		}
	}
	return list
}

// property returns the property of that name, which may be unknown.
func (in input) property(name string) property {
	p := property{name: name, schema: &jsonschema.Schema{}, root: in.root}
	if in.root != nil {
		p.required = slices.Contains(in.root.Required, name)
		if s := in.root.Properties[name]; s != nil {
			p.schema = s
		}
	}
	return p
}

// closed reports whether only named properties are taken.
func (in input) closed() bool {
	if in.root == nil || in.root.AdditionalProperties == nil || len(in.root.PatternProperties) > 0 {
		return false
	}
	raw, err := json.Marshal(in.root.AdditionalProperties)
	return err == nil && string(raw) == "false"
}

func (in input) names() []string {
	var names []string
	for _, p := range in.properties() {
		names = append(names, p.name)
	}
	return names
}

// maxRefs bounds how deep references are followed: schemas may be recursive.
const maxRefs = 8

// types returns the JSON types a schema takes; nil = any.
func (p property) types() []string {
	types, any := typesOf(p.schema, p.root, maxRefs)
	if any {
		return nil
	}
	return types
}

func typesOf(s, root *jsonschema.Schema, depth int) (types []string, any bool) {
	switch {
	case s == nil || depth == 0:
		return nil, true
	case s.Type != "":
		return []string{s.Type}, false
	case len(s.Types) > 0:
		return s.Types, false
	case s.Ref != "":
		return typesOf(refOf(s.Ref, root), root, depth-1)
	case s.Const != nil:
		return []string{kindOf(rawOf(*s.Const))}, false
	case len(s.Enum) > 0:
		for _, v := range s.Enum {
			types = union(types, kindOf(rawOf(v)))
		}
		return types, false
	}
	alternatives := slices.Concat(s.AnyOf, s.OneOf)
	for _, alt := range alternatives {
		of, any := typesOf(alt, root, depth-1)
		if any {
			return nil, true
		}
		types = union(types, of...)
	}
	return types, len(alternatives) == 0
}

// refOf resolves a reference within root; nil if it is none.
func refOf(ref string, root *jsonschema.Schema) *jsonschema.Schema {
	if root == nil {
		return nil
	}
	if name, ok := strings.CutPrefix(ref, "#/$defs/"); ok {
		return root.Defs[name]
	}
	if name, ok := strings.CutPrefix(ref, "#/definitions/"); ok {
		return root.Definitions[name]
	}
	return nil
}

// choice is one of the values a property may have.
type choice struct {
	value json.RawMessage
	title string // "" = none
}

// text is the choice as it is typed.
func (c choice) text() string { return textOf(c.value) }

// choices lists the only values a property, or the items of a list, may have;
// nil = not limited.
func choices(s *jsonschema.Schema) []choice {
	var list []choice
	switch names, _ := s.Extra["enumNames"].([]any); {
	case s.Const != nil:
		list = append(list, choice{rawOf(*s.Const), s.Title})
	case len(s.Enum) > 0:
		for i, v := range s.Enum {
			c := choice{value: rawOf(v)}
			if i < len(names) {
				c.title, _ = names[i].(string)
			}
			list = append(list, c)
		}
	default:
		for _, alt := range slices.Concat(s.OneOf, s.AnyOf) {
			if alt.Const == nil {
				return nil
			}
			list = append(list, choice{rawOf(*alt.Const), alt.Title})
		}
	}
	return list
}

// typeName describes what a property takes, in a word.
func (p property) typeName() string {
	s := p.schema
	if r := refOf(s.Ref, p.root); r != nil {
		s = r
	}
	if list := choices(s); list != nil {
		return choiceText(list, "|")
	}
	var words []string
	for _, t := range p.types() {
		switch {
		case t == "null":
		case t == "array" && s.Items != nil:
			words = append(words, property{schema: s.Items, root: p.root}.typeName()+",…")
		default:
			words = append(words, t)
		}
	}
	return cmp.Or(strings.Join(words, "|"), "any")
}

func choiceText(list []choice, sep string) string {
	var words []string
	for _, c := range list {
		words = append(words, c.text())
	}
	return strings.Join(words, sep)
}

func (p property) defaultText() string {
	if len(p.schema.Default) == 0 || string(p.schema.Default) == "null" {
		return ""
	}
	return textOf(p.schema.Default)
}

// textOf is a JSON value as it is typed: a string without its quotes.
func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && kindOf(raw) == "string" {
		return s
	}
	return string(raw)
}

// rawOf is the JSON of a value that came from JSON.
func rawOf(v any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return json.RawMessage("null")
	}
	return bytes.TrimSpace(b.Bytes())
}

// kindOf names the JSON type of a value; an integer is told from a number.
func kindOf(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return "nothing"
	}
	switch raw[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	if isInteger(raw) {
		return "integer"
	}
	return "number"
}

// isInteger reports whether a JSON number is one by JSON Schema: 1.0 is.
func isInteger(raw json.RawMessage) bool {
	if !bytes.ContainsAny(raw, ".eE") {
		return true
	}
	var f float64
	return json.Unmarshal(raw, &f) == nil && f == float64(int64(f))
}

// checkValue says what is wrong with a value, or nil.
func (p property) checkValue(raw json.RawMessage) error {
	types, kind := p.types(), kindOf(raw)
	fits := types == nil || slices.Contains(types, kind) || kind == "integer" && slices.Contains(types, "number")
	if !fits {
		return fmt.Errorf("%s is %s, not %s", clip(string(raw)), withArticle(kind), withArticle(strings.Join(types, " or ")))
	}
	s := p.schema
	if r := refOf(s.Ref, p.root); r != nil {
		s = r
	}
	list := choices(s)
	if list == nil || slices.ContainsFunc(list, func(c choice) bool { return sameJSON(c.value, raw) }) {
		return nil
	}
	if kind == "null" && slices.Contains(types, "null") {
		return nil
	}
	return fmt.Errorf("%s is none of %s%s", clip(textOf(raw)), choiceText(list, ", "), didYouMean(textOf(raw), choiceTexts(list)))
}

func choiceTexts(list []choice) []string {
	var texts []string
	for _, c := range list {
		texts = append(texts, c.text())
	}
	return texts
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && string(rawOf(x)) == string(rawOf(y))
}

func withArticle(kind string) string {
	if kind == "null" {
		return kind
	}
	if strings.ContainsRune("aeio", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

// clip shortens a value for an error message.
func clip(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}

func sortedKeys(object map[string]json.RawMessage) []string { return slices.Sorted(maps.Keys(object)) }
