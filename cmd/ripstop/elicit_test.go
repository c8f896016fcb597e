package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router/bridge/bridgetest"
)

// ask answers the form of bridgetest.Ask with what a person types.
func ask(t testing.TB, typed string, answers map[string]string) (*mcp.ElicitResult, string) {
	t.Helper()
	var screen bytes.Buffer
	e := &elicitor{ctx: t.Context(), console: &console{w: &screen}, in: newLineReader(strings.NewReader(typed)), answers: answers}
	res, err := e.handle(t.Context(), &mcp.ElicitRequest{Params: &mcp.ElicitParams{Message: "Who\x1b[2J?", RequestedSchema: bridgetest.Ask}})
	if err != nil {
		t.Fatal(err)
	}
	return res, screen.String()
}

func TestElicitOnTerminal(t *testing.T) {
	for _, tt := range []struct {
		name, typed string
		answers     map[string]string
		action      string
		content     string
		screen      []string
	}{
		{"all defaults", "\nAnn\n\n\n\n", nil, "accept", `{"colour":"green","name":"Ann"}`, []string{"name (string): ", "colour (red|green, optional) [green]: ", "spam (boolean, optional): "}},
		{"everything", "yes\nAnn\n7\nred\ny\n", nil, "accept", `{"age":7,"colour":"red","name":"Ann","spam":true}`, nil},
		{"mistakes", "y\n\nAnn\nold\n-1\n7\nblue\nred\nmaybe\nno\n", nil, "accept", `{"age":7,"colour":"red","name":"Ann","spam":false}`,
			[]string{"an answer is needed", `"old" is not an integer`, "minimum", "blue is none of red, green", `"maybe" is not a boolean`}},
		{"some by flag", "y\n\n\n\n", map[string]string{"name": "Bob"}, "accept", `{"colour":"green","name":"Bob"}`, nil},
		{"wrong flag", "", map[string]string{"age": "-1"}, "decline", `null`, []string{"--answer age: "}},
		{"declined", "n\n", nil, "decline", `null`, nil},
		{"cancelled", "what\nc\n", nil, "cancel", `null`, []string{"answer y, n or c first"}},
		{"closed at once", "", nil, "cancel", `null`, nil},
		{"closed halfway", "y\nAnn\n", nil, "cancel", `null`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, screen := ask(t, tt.typed, tt.answers)
			content, err := json.Marshal(res.Content)
			if err != nil || res.Action != tt.action || string(content) != tt.content {
				t.Errorf("got %s %s, want %s %s\n%s", res.Action, content, tt.action, tt.content, screen)
			}
			for _, s := range tt.screen {
				if !strings.Contains(screen, s) {
					t.Errorf("the screen lacks %q:\n%s", s, screen)
				}
			}
			if strings.Contains(screen, "\x1b") {
				t.Errorf("the server steers the terminal: %q", screen)
			}
		})
	}
}

func TestElicitURL(t *testing.T) {
	for typed, want := range map[string]string{"y\n": "accept", "n\n": "decline", "": "cancel"} {
		var screen bytes.Buffer
		e := &elicitor{ctx: t.Context(), console: &console{w: &screen}, in: newLineReader(strings.NewReader(typed))}
		res, err := e.handle(t.Context(), &mcp.ElicitRequest{Params: &mcp.ElicitParams{Mode: "url", Message: "Sign in", URL: "https://example.com/x"}})
		if err != nil || res.Action != want || !strings.Contains(screen.String(), "https://example.com/x") {
			t.Errorf("%q: %v, %v, want %s\n%s", typed, res, err, want, screen.String())
		}
	}
	e := &elicitor{ctx: t.Context(), console: &console{w: &bytes.Buffer{}}}
	if res, err := e.handle(t.Context(), &mcp.ElicitRequest{Params: &mcp.ElicitParams{Mode: "url"}}); err != nil || res.Action != "decline" {
		t.Errorf("without a terminal: %v, %v", res, err)
	}
}

// TestElicitLists asks for several of a list, and for titled values.
func TestElicitLists(t *testing.T) {
	const schema = `{"type":"object","properties":{
		"many":{"type":"array","items":{"type":"string","enum":["a","b","c"]}},
		"one":{"type":"string","oneOf":[{"const":"x","title":"The X"},{"const":"y","title":"The Y"}]}}}`
	var wire any
	if err := json.Unmarshal([]byte(schema), &wire); err != nil {
		t.Fatal(err)
	}
	var screen bytes.Buffer
	e := &elicitor{ctx: t.Context(), console: &console{w: &screen}, in: newLineReader(strings.NewReader("y\na,d\na, c\nz\ny\n"))}
	res, err := e.handle(t.Context(), &mcp.ElicitRequest{Params: &mcp.ElicitParams{Message: "?", RequestedSchema: wire}})
	if err != nil {
		t.Fatal(err)
	}
	content, err := json.Marshal(res.Content)
	if err != nil || string(content) != `{"many":["a","c"],"one":"y"}` {
		t.Errorf("got %s, %v\n%s", content, err, screen.String())
	}
	if !strings.Contains(screen.String(), "x: The X") {
		t.Errorf("titles are not shown:\n%s", screen.String())
	}
}

func TestElicitEndsWithCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := newLineReader(blocked{ctx.Done()})
	e := &elicitor{ctx: ctx, console: &console{w: writeFunc(func(p []byte) {
		if strings.HasSuffix(string(p), "? ") {
			cancel() // at the question
		}
	})}, in: r}
	res, err := e.handle(context.Background(), &mcp.ElicitRequest{Params: &mcp.ElicitParams{Message: "?", RequestedSchema: bridgetest.Ask}})
	if err != nil || res.Action != "cancel" {
		t.Errorf("got %v, %v", res, err)
	}
}

// blocked is a terminal at which nobody types until done.
type blocked struct{ done <-chan struct{} }

func (b blocked) Read([]byte) (int, error) {
	<-b.done
	return 0, context.Canceled
}

type writeFunc func([]byte)

func (f writeFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
