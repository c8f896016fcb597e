package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// elicitor answers what a server asks of the user (MCP "Elicitation"): from the
// answers given as flags, and else by asking on the terminal.
type elicitor struct {
	ctx     context.Context // the command's: a question ends with it
	console *console
	in      *lineReader       // nil = nobody can be asked
	answers map[string]string // --answer

	mu sync.Mutex // one question at a time
}

// The actions of an answer.
const (
	actionAccept  = "accept"
	actionDecline = "decline"
	actionCancel  = "cancel"
)

func (e *elicitor) handle(ctx context.Context, req *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	e.console.say("The server asks: " + printable(req.Params.Message))
	if req.Params.Mode == "url" {
		e.console.say("  to be answered in a browser: " + printable(oneLine(req.Params.URL)))
		return e.choose(ctx, "[y]es, it is done or will be; [n]o; [c]ancel? ")
	}
	res, err := e.form(ctx, schemaOf(req.Params.RequestedSchema))
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		e.console.say("")
		return &mcp.ElicitResult{Action: actionCancel}, nil
	}
	return res, err
}

// form answers a form from the flags, and asks for what they leave open.
func (e *elicitor) form(ctx context.Context, in input) (*mcp.ElicitResult, error) {
	content := map[string]any{}
	var open []property
	for _, p := range in.properties() {
		text, given := e.answers[p.name]
		if !given {
			open = append(open, p)
			continue
		}
		raw, err := p.answer(text)
		if err != nil {
			return e.decline(fmt.Sprintf("--answer %s: %v", p.name, err)), nil
		}
		content[p.name] = raw
	}
	if e.in == nil {
		return e.unattended(open, content), nil
	}
	if len(open) > 0 || len(content) == 0 {
		res, err := e.choose(ctx, "[y]es, answer; [n]o, decline; [c]ancel? ")
		if err != nil || res.Action != actionAccept {
			return res, err
		}
	}
	for _, p := range open {
		raw, err := e.ask(ctx, p)
		if err != nil {
			return nil, err
		}
		if raw != nil {
			content[p.name] = raw
		}
	}
	return accept(content)
}

// unattended answers when nobody can be asked: with the flags and the defaults,
// if they are enough.
func (e *elicitor) unattended(open []property, content map[string]any) *mcp.ElicitResult {
	if len(e.answers) == 0 {
		var hints []string
		for _, p := range open {
			hints = append(hints, "--answer "+p.name+"="+strings.ToUpper(p.typeName()))
		}
		why := "declined, since standard input is not a terminal"
		if len(hints) > 0 {
			why += "; answer with " + strings.Join(hints, " ")
		}
		return e.decline(why)
	}
	for _, p := range open {
		switch {
		case len(p.schema.Default) > 0:
			content[p.name] = p.schema.Default
		case p.required:
			return e.decline(fmt.Sprintf("declined, since standard input is not a terminal and %q is not answered; add --answer %s=%s", p.name, p.name, strings.ToUpper(p.typeName())))
		}
	}
	res, err := accept(content)
	if err != nil {
		return e.decline(err.Error())
	}
	return res
}

func (e *elicitor) decline(why string) *mcp.ElicitResult {
	e.console.say("  " + printable(why))
	return &mcp.ElicitResult{Action: actionDecline}
}

// accept builds the answer. Values go through JSON, so that the SDK, which
// checks them against the schema, sees what it would decode itself.
func accept(content map[string]any) (*mcp.ElicitResult, error) {
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	res := &mcp.ElicitResult{Action: actionAccept}
	if err := json.Unmarshal(raw, &res.Content); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return res, nil
}

// choose asks for one of the three actions.
func (e *elicitor) choose(ctx context.Context, question string) (*mcp.ElicitResult, error) {
	if e.in == nil {
		return e.decline("declined, since standard input is not a terminal"), nil
	}
	for {
		e.console.prompt("  " + question)
		line, err := e.in.read(ctx)
		if err != nil {
			return &mcp.ElicitResult{Action: actionCancel}, nil
		}
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "", "y", "yes":
			return &mcp.ElicitResult{Action: actionAccept}, nil
		case "n", "no":
			return &mcp.ElicitResult{Action: actionDecline}, nil
		case "c", "cancel":
			return &mcp.ElicitResult{Action: actionCancel}, nil
		}
		e.console.say("    answer y, n or c first; a field is asked for after y")
	}
}

// ask asks for one field until the answer fits. nil = left out.
func (e *elicitor) ask(ctx context.Context, p property) (json.RawMessage, error) {
	for {
		e.console.prompt("  " + printable(p.question()))
		line, err := e.in.read(ctx)
		if err != nil {
			return nil, err
		}
		line = strings.TrimSpace(line)
		switch {
		case line == "" && len(p.schema.Default) > 0:
			return p.schema.Default, nil
		case line == "" && !p.required:
			return nil, nil
		case line == "":
			e.console.say("    an answer is needed")
			continue
		}
		raw, err := p.answer(line)
		if err == nil {
			return raw, nil
		}
		e.console.say("    " + printable(err.Error()))
	}
}

// question is the prompt for a field.
func (p property) question() string {
	text := p.name
	if p.schema.Title != "" && p.schema.Title != p.name {
		text = p.schema.Title
	}
	text += " (" + p.typeName()
	if !p.required {
		text += ", optional"
	}
	text += ")"
	if p.schema.Description != "" {
		text += ", " + oneLine(p.schema.Description)
	}
	for _, c := range choices(p.schema) {
		if c.title != "" {
			text += "\n    " + c.text() + ": " + c.title
		}
	}
	if d := p.defaultText(); d != "" {
		text += " [" + d + "]"
	}
	return text + ": "
}

// answer turns what was typed into the field's value and checks it.
func (p property) answer(text string) (json.RawMessage, error) {
	raw, err := p.typed(text)
	if err == nil {
		err = p.checkValue(raw)
	}
	if err != nil {
		return nil, err
	}
	return raw, p.validate(raw)
}

func (p property) typed(text string) (json.RawMessage, error) {
	switch p.schema.Type {
	case "boolean":
		switch strings.ToLower(text) {
		case "y", "yes":
			return json.RawMessage("true"), nil
		case "n", "no":
			return json.RawMessage("false"), nil
		}
	case "array":
		if strings.HasPrefix(text, "[") {
			break
		}
		items := []json.RawMessage{}
		for _, word := range strings.Split(text, ",") {
			raw, _, err := p.convert(strings.TrimSpace(word))
			if err != nil {
				return nil, err
			}
			items = append(items, raw)
		}
		return rawOf(items), nil
	}
	raw, _, err := p.convert(text)
	return raw, err
}

// validate checks a value against the whole of the field's schema: lengths,
// limits, formats.
func (p property) validate(raw json.RawMessage) error {
	var own jsonschema.Schema
	text, err := json.Marshal(p.schema)
	if err != nil || json.Unmarshal(text, &own) != nil {
		return nil // the server will say
	}
	resolved, err := own.Resolve(nil)
	if err != nil {
		return nil
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return err
	}
	if err := resolved.Validate(value); err != nil {
		text := err.Error()
		if _, after, ok := strings.Cut(text, "validating root: "); ok {
			text = after
		}
		return errors.New(text)
	}
	return nil
}
