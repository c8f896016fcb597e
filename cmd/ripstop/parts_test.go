package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// toolWith makes a tool of an input schema.
func toolWith(t testing.TB, schema string) *mcp.Tool {
	t.Helper()
	var wire any
	if err := json.Unmarshal([]byte(schema), &wire); err != nil {
		t.Fatal(err)
	}
	return &mcp.Tool{Name: "t", InputSchema: wire}
}

const wide = `{"type":"object","additionalProperties":false,"$defs":{"level":{"enum":["low","high"]}},"properties":{
	"s":{"type":"string"},"i":{"type":"integer"},"n":{"type":"number"},"b":{"type":"boolean"},
	"o":{"type":"object"},"a":{"type":"array","items":{"type":"integer"}},"as":{"type":"array","items":{"type":"string"}},"any":{},
	"opt":{"anyOf":[{"type":"integer"},{"type":"null"}]},"un":{"type":["string","integer"]},
	"e":{"type":"string","enum":["red","green"]},"ref":{"$ref":"#/$defs/level"},"titled":{"oneOf":[{"const":"x","title":"The X"}]},
	"num":{"enum":[1,2]},"free":{"type":"array"}}}`

func TestArguments(t *testing.T) {
	tool := toolWith(t, wide)
	for _, tt := range []struct{ words, want, err string }{
		{words: "", want: `{}`},
		{words: "s=5", want: `{"s":"5"}`},
		{words: "s=", want: `{"s":""}`},
		{words: `s="q"`, want: `{"s":"\"q\""}`},
		{words: "s=<&>", want: `{"s":"\u003c\u0026\u003e"}`},
		{words: "i=5 n=5 b=true", want: `{"b":true,"i":5,"n":5}`},
		{words: "i=12345678901234567890", want: `{"i":12345678901234567890}`},
		{words: "i=-7 n=1e3", want: `{"i":-7,"n":1e3}`},
		{words: "i:=1.0", want: `{"i":1.0}`},
		{words: "i=1.5", err: `"1.5" is not an integer`},
		{words: "i=", err: `"" is not an integer`},
		{words: "i=07", err: `"07" is not an integer`},
		{words: "i:=null", err: "null is null, not an integer"},
		{words: "n=NaN", err: `"NaN" is not a number`},
		{words: "b=yes", err: `"yes" is not a boolean`},
		{words: `o={"x":1}`, want: `{"o":{"x":1}}`},
		{words: "o=x", err: `"x" is not an object`},
		{words: "o=[1]", err: `"[1]" is not an object`},
		{words: "a=1 a=2", want: `{"a":[1,2]}`},
		{words: "a=[1,2]", want: `{"a":[1,2]}`},
		{words: "a=[1] a=2", err: `given twice`},
		{words: "a=2 a=[1]", err: `given twice`},
		{words: "a=x", err: `"x" is not an integer`},
		{words: "as=1 as=x", want: `{"as":["1","x"]}`},
		{words: "free=x free=y", want: `{"free":["x","y"]}`},
		{words: "any=5", want: `{"any":5}`},
		{words: "any=x", want: `{"any":"x"}`},
		{words: `any={"k":[]}`, want: `{"any":{"k":[]}}`},
		{words: "opt=5", want: `{"opt":5}`},
		{words: "opt=null", want: `{"opt":null}`},
		{words: "opt=x", err: `"x" is not an integer or null`},
		{words: "un=5", want: `{"un":5}`},
		{words: "un=five", want: `{"un":"five"}`},
		{words: "e=red", want: `{"e":"red"}`},
		{words: "e=gren", err: `gren is none of red, green; did you mean "green"?`},
		{words: "ref=high", want: `{"ref":"high"}`},
		{words: "ref=none", err: `none is none of low, high`},
		{words: "titled=x", want: `{"titled":"x"}`},
		{words: "titled=y", err: `y is none of x`},
		{words: "num=2", want: `{"num":2}`},
		{words: "num=3", err: `3 is none of 1, 2`},
		{words: "x=1", err: `argument "x" is none of t's`},
		{words: "=1", err: "is not k=v"},
		{words: ":=1", want: "", err: `argument ":" is none of t's`},
		{words: "-", err: "not a JSON object"},
		{words: "null", err: `argument "null" is not k=v`},
		{words: `{"i":1}`, want: `{"i":1}`},
		{words: `{"i":"1"}`, err: `argument "i": "1" is a string, not an integer`},
		{words: `{"i":1} s=x`, err: "is not k=v"},
	} {
		got, err := parseArguments(tool, strings.Fields(tt.words), strings.NewReader("[]"))
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: got %s, error %v, want error with %q", tt.words, got, err, tt.err)
			}
		case err != nil || string(got) != tt.want:
			t.Errorf("%q: got %s, %v, want %s", tt.words, got, err, tt.want)
		}
	}
}

// TestArgumentsWithoutSchema takes what a schema that says nothing, or nonsense,
// allows: anything.
func TestArgumentsWithoutSchema(t *testing.T) {
	for _, schema := range []string{`null`, `{}`, `true`, `{"type":"object"}`, `{"type":5}`, `{"$ref":"#/$defs/x"}`,
		`{"properties":{"k":{"$ref":"#/$defs/k"}},"$defs":{"k":{"$ref":"#/$defs/k"}}}`} {
		got, err := parseArguments(toolWith(t, schema), []string{"k=5", "l=x"}, nil)
		if err != nil || string(got) != `{"k":5,"l":"x"}` {
			t.Errorf("schema %s: %s, %v", schema, got, err)
		}
	}
}

func TestSignature(t *testing.T) {
	got := signature(toolWith(t, wide))
	want := "[a=INTEGER,…] [any=ANY] [as=STRING,…] [b=BOOLEAN] [e=RED|GREEN] [free=ARRAY] [i=INTEGER] [n=NUMBER] [num=1|2] [o=OBJECT] [opt=INTEGER] [ref=LOW|HIGH] [s=STRING] [titled=X] [un=STRING|INTEGER]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestProgressLine(t *testing.T) {
	var screen bytes.Buffer
	c := &console{w: &screen, tty: true}
	c.progress([]byte(`{"progress":1,"total":2,"message":"half\u001b[0m\nway"}`))
	c.progress([]byte(`{"progress":2}`))
	c.log([]byte(`{"level":"info","data":{"a":1}}`))
	c.progress([]byte(`{"progress":3}`))
	c.done()
	c.done()
	long := len("1/2  50% half") + 1 + len("[0m; way")
	want := "\r1/2  50% half�[0m; way" + "\r2" + strings.Repeat(" ", long-1) + "\r \rinfo: {\"a\":1}\n" + "\r3\r \r"
	if screen.String() != want {
		t.Errorf("got  %q\nwant %q", screen.String(), want)
	}
	(&console{w: nil, quiet: true}).progress([]byte(`{"progress":1}`)) // must not write
	(&console{w: nil}).progress([]byte(`{`))
}

func TestPrintResult(t *testing.T) {
	for _, tt := range []struct {
		content []mcp.Content
		raw     string
		want    string
	}{
		{[]mcp.Content{&mcp.TextContent{Text: "a"}, &mcp.TextContent{Text: "b\n"}}, `{"structuredContent":{"x":1}}`, "a\nb\n"},
		{nil, `{"structuredContent":{"big":12345678901234567890}}`, "{\n  \"big\": 12345678901234567890\n}\n"},
		{nil, `{}`, ""},
		{[]mcp.Content{&mcp.ImageContent{MIMEType: "image/png", Data: []byte("123")}, &mcp.AudioContent{MIMEType: "audio/wav", Data: []byte("1")}}, `{}`, "[image: image/png, 3 bytes]\n[audio: audio/wav, 1 bytes]\n"},
		{[]mcp.Content{&mcp.ResourceLink{URI: "file:///x", Name: "x"}, &mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "u", Text: "body"}}}, `{}`, "[resource: file:///x] x\nbody\n"},
		{[]mcp.Content{&mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "u", MIMEType: "m", Blob: []byte("12")}}, &mcp.EmbeddedResource{}}, `{}`, "[resource: u, m, 2 bytes]\n[resource]\n"},
	} {
		var b bytes.Buffer
		if err := printResult(&b, &mcp.CallToolResult{Content: tt.content}, []byte(tt.raw)); err != nil || b.String() != tt.want {
			t.Errorf("got %q, %v, want %q", b.String(), err, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	err := printTable(&b, []string{"A", "B"}, [][]string{{"ü", "x\ny"}, {"long", "\x1b[31mred"}})
	if want := "A     B\nü     x; y\nlong  �[31mred\n"; err != nil || b.String() != want {
		t.Errorf("got %q, want %q (%v)", b.String(), want, err)
	}
	if got, want := tableLine([]string{"ab", "0123456789abcdef"}, []int{2, 16}, 16), "ab  0123456789a…"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestClosest(t *testing.T) {
	known := []string{"echo", "count", "remember", "a"}
	for word, want := range map[string]string{
		"ehco": "echo", "ECHO": "echo", "cuont": "count", "rem": "remember", "remembr": "remember",
		"xyz": "", "c": "", "": "", "b": "", "delete": "",
	} {
		if got := closest(word, known); got != want {
			t.Errorf("closest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 5*time.Minute: "3h5m", 50 * time.Hour: "2d2h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestOrdinals(t *testing.T) {
	for _, tt := range []struct {
		voters string
		name   string
		want   string
		fails  bool
	}{
		{"n1,n2,n3", "n9", "n1,n2,n3", false},
		{"n1", "n1", "n1", false}, // refused later, as one voter
		{"3", "ripstop-4", "ripstop-0,ripstop-1,ripstop-2", false},
		{"3", "eu-west-ripstop-0", "eu-west-ripstop-0,eu-west-ripstop-1,eu-west-ripstop-2", false},
		{"3", "n1", "", true},
		{"3", "-1", "", true},
		{"3", "", "", true},
		{"0", "ripstop-0", "", true},
	} {
		got, err := ordinals(strings.Split(tt.voters, ","), tt.name)
		if (err != nil) != tt.fails || err == nil && strings.Join(got, ",") != tt.want {
			t.Errorf("ordinals(%q, %q) = %v, %v; want %q", tt.voters, tt.name, got, err, tt.want)
		}
	}
}
