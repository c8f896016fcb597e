package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// maxArguments bounds what "-" reads, as everything else on the way does.
const maxArguments = 16 << 20

// parseArguments turns the words after a tool's name into its arguments: one
// JSON object, "-" for one on stdin, or k=v and k:=JSON.
func parseArguments(t *mcp.Tool, words []string, stdin io.Reader) (json.RawMessage, error) {
	in := inputOf(t)
	object, err := readWords(in, words, stdin)
	if err == nil {
		err = in.checkObject(object, t.Name)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

func readWords(in input, words []string, stdin io.Reader) (map[string]json.RawMessage, error) {
	if len(words) == 1 && words[0] == "-" {
		data, err := io.ReadAll(io.LimitReader(stdin, maxArguments+1))
		if err != nil {
			return nil, fmt.Errorf("read the arguments from stdin: %w", err)
		}
		if len(data) > maxArguments {
			return nil, fmt.Errorf("the arguments on stdin are larger than %d MiB", maxArguments>>20)
		}
		return readObject(string(data))
	}
	if len(words) == 1 && strings.HasPrefix(strings.TrimSpace(words[0]), "{") {
		return readObject(words[0])
	}
	return readPairs(in, words)
}

func readObject(text string) (map[string]json.RawMessage, error) {
	object := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		return nil, fmt.Errorf("the arguments are not a JSON object: %w", err)
	}
	if object == nil {
		return nil, errors.New("the arguments are null, not a JSON object")
	}
	return object, nil
}

// readPairs converts k=v words. An array may be given as one JSON array, or as
// its items, one word each.
func readPairs(in input, words []string) (map[string]json.RawMessage, error) {
	object := map[string]json.RawMessage{}
	lists := map[string][]json.RawMessage{}
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		if name, ok := strings.CutSuffix(name, ":"); ok && name != "" {
			if !json.Valid([]byte(text)) {
				return nil, argumentError(name, errors.New(clip(text)+" is not JSON"))
			}
			if _, twice := object[name]; twice {
				return nil, argumentError(name, errors.New("given twice"))
			}
			object[name] = json.RawMessage(text)
			continue
		}
		if !ok || name == "" {
			return nil, fmt.Errorf("argument %q is not k=v, k:=JSON or one JSON object", clip(word))
		}
		raw, isItem, err := in.property(name).convert(text)
		if err != nil {
			return nil, argumentError(name, err)
		}
		_, twice := object[name]
		switch {
		case isItem && (!twice || lists[name] != nil):
			lists[name] = append(lists[name], raw)
			object[name] = rawOf(lists[name])
		case twice:
			return nil, argumentError(name, errors.New("given twice"))
		default:
			object[name] = raw
		}
	}
	return object, nil
}

func argumentError(name string, err error) error {
	return fmt.Errorf("argument %q: %w", name, err)
}

// convert turns what was typed into a value of the type that is wanted. isItem
// says that it is one item of a list.
func (p property) convert(text string) (raw json.RawMessage, isItem bool, err error) {
	types := p.types()
	if types == nil {
		// Nothing is known: what looks like JSON is meant as JSON.
		if json.Valid([]byte(text)) {
			return json.RawMessage(text), false, nil
		}
		return rawOf(text), false, nil
	}
	for _, c := range choices(p.schema) {
		if c.text() == text {
			return c.value, false, nil
		}
	}
	if kind := kindOf(json.RawMessage(text)); json.Valid([]byte(text)) && kind != "string" {
		if slices.Contains(types, kind) || kind == "integer" && slices.Contains(types, "number") {
			return json.RawMessage(text), false, nil
		}
	}
	switch {
	case slices.Contains(types, "string"):
		return rawOf(text), false, nil
	case slices.Contains(types, "array"):
		item := property{schema: p.schema.Items, root: p.root}
		if item.schema == nil {
			return rawOf(text), true, nil
		}
		raw, _, err := item.convert(text)
		if err == nil {
			err = item.checkValue(raw)
		}
		return raw, true, err
	}
	return nil, false, fmt.Errorf("%s is not %s", quote(clip(text)), withArticle(strings.Join(types, " or ")))
}

// checkObject says what is wrong with the arguments of a tool, naming the one
// it is about.
func (in input) checkObject(object map[string]json.RawMessage, tool string) error {
	for _, p := range in.properties() {
		raw, given := object[p.name]
		switch {
		case given:
			if err := p.checkValue(raw); err != nil {
				return argumentError(p.name, err)
			}
		case p.required:
			return fmt.Errorf("argument %q (%s) is missing%s", p.name, p.typeName(), misspelt(p.name, object, in.names()))
		}
	}
	if !in.closed() {
		return nil
	}
	names := in.names()
	for _, name := range sortedKeys(object) {
		if !slices.Contains(names, name) {
			return fmt.Errorf("argument %q is none of %s's%s", name, tool, didYouMean(name, names))
		}
	}
	return nil
}

// misspelt says which unknown argument was probably meant as the missing one.
func misspelt(name string, object map[string]json.RawMessage, known []string) string {
	var unknown []string
	for _, given := range sortedKeys(object) {
		if !slices.Contains(known, given) {
			unknown = append(unknown, given)
		}
	}
	if near := closest(name, unknown); near != "" {
		return fmt.Sprintf("; %q was given, is it that?", near)
	}
	return ""
}
