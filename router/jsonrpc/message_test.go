package jsonrpc_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"ripstop/router/jsonrpc"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in                        string
		kind                      jsonrpc.Kind
		id, method, name, version string
	}{
		{` {"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"name":"x"}}} `, jsonrpc.Request, "1", "tools/call", "echo", ""},
		{`{"id":"a","params":{"uri":"file:///a\\b\u00e9"},"method":"resources/read","jsonrpc":"2.0"}`, jsonrpc.Request, `"a"`, "resources/read", "file:///a\\bé", ""},
		{`{"jsonrpc":"2.0","method":"notifications/initialized"}`, jsonrpc.Notification, "", "notifications/initialized", "", ""},
		{`{"jsonrpc":"2.0","id":7,"result":{}}`, jsonrpc.Response, "7", "", "", ""},
		{`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`, jsonrpc.Response, "null", "", "", ""},
		{`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":9}}}`, jsonrpc.Request, "2", "tools/list", "", "2026-07-28"},
		{`{"jsonrpc":"2.0","id":2,"method":"tasks/get","params":{"taskId":"t1"}}`, jsonrpc.Request, "2", "tasks/get", "t1", ""},
	} {
		m, err := jsonrpc.Parse([]byte(tt.in))
		if err != nil {
			t.Errorf("Parse(%s): %v", tt.in, err)
			continue
		}
		if m.Kind != tt.kind || string(m.ID) != tt.id || m.Method != tt.method || m.Name != tt.name || m.Version != tt.version {
			t.Errorf("Parse(%s) = %+v", tt.in, m)
		}
		if string(m.Raw) != strings.TrimSpace(tt.in) {
			t.Errorf("Raw = %s, want the message", m.Raw)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   string
		code int
	}{
		{``, jsonrpc.CodeParse},
		{`{`, jsonrpc.CodeParse},
		{`{"jsonrpc":"2.0","id":1,"method":"ping"} x`, jsonrpc.CodeParse},
		{`{"jsonrpc":"2.0","id":01,"method":"ping"}`, jsonrpc.CodeParse},
		{"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"p\xff\"}", jsonrpc.CodeParse},
		{strings.Repeat("[", 5000), jsonrpc.CodeParse},
		{`[]`, jsonrpc.CodeInvalidRequest},
		{`1`, jsonrpc.CodeInvalidRequest},
		{`{"id":1,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"1.0","id":1,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":null,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1.5,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":{},"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":5}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":""}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","Method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","NAME":"b"}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","n\u0061me":"b"}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\ud800"}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":5}}`, jsonrpc.CodeInvalidParams},
		{`{"jsonrpc":"2.0","result":{}}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1}`, jsonrpc.CodeInvalidRequest},
	} {
		_, err := jsonrpc.Parse([]byte(tt.in))
		pe, ok := err.(*jsonrpc.ParseError)
		if !ok || pe.Code != tt.code {
			t.Errorf("Parse(%.80s) = %v, want code %d", tt.in, err, tt.code)
		}
	}
}

func TestEdit(t *testing.T) {
	m, err := jsonrpc.Parse([]byte(`  {"jsonrpc":"2.0","params":{"_meta":{"progressToken":"p"},"name":"a__echo"} ,"id":1,"method":"tools/call"}`))
	if err != nil {
		t.Fatal(err)
	}
	got := m.Edit(jsonrpc.Edit{ID: []byte(`"x"`), ProgressToken: []byte("42"), Name: []byte(`"echo"`)})
	want := `{"jsonrpc":"2.0","params":{"_meta":{"progressToken":42},"name":"echo"} ,"id":"x","method":"tools/call"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestWithResultMeta(t *testing.T) {
	for in, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"result":{}}`:                     `{"jsonrpc":"2.0","id":1,"result":{"_meta":{"k":true}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"a":1}}`:                `{"jsonrpc":"2.0","id":1,"result":{"_meta":{"k":true},"a":1}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"_meta":{},"a":1}}`:     `{"jsonrpc":"2.0","id":1,"result":{"_meta":{"k":true},"a":1}}`,
		` {"jsonrpc":"2.0","id":1,"result":{"_meta":{"b":2} }}`:    `{"jsonrpc":"2.0","id":1,"result":{"_meta":{"k":true,"b":2} }}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}`: `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}`,
	} {
		m, err := jsonrpc.Parse([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(m.WithResultMeta("k", []byte("true"))); got != want {
			t.Errorf("WithResultMeta(%s) = %s", in, got)
		}
	}
}

func TestWithParamsMeta(t *testing.T) {
	members := []jsonrpc.Member{{Key: "k", Value: []byte("1")}, {Key: "l", Value: []byte(`{"x":[]}`)}}
	for in, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"method":"ping"}`:                                       `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"k":1,"l":{"x":[]}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"ping" }`:                                      `{"jsonrpc":"2.0","id":1,"method":"ping" ,"params":{"_meta":{"k":1,"l":{"x":[]}}}}`,
		`{"jsonrpc":"2.0","id":1,"params":{ },"method":"ping"}`:                          `{"jsonrpc":"2.0","id":1,"params":{"_meta":{"k":1,"l":{"x":[]}} },"method":"ping"}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":{"_meta":{}}}}`:              `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"k":1,"l":{"x":[]}},"a":{"_meta":{}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1,"_meta":{ }}}`:             `{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1,"_meta":{"k":1,"l":{"x":[]} }}}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"k":7}}}`:               `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"l":{"x":[]},"k":7}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"l":0,"\u006b":null}}}`: `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"l":0,"\u006b":null}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":null}}`:                  `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":null}}`,
		`{"jsonrpc":"2.0","method":"n"}`:                                                 `{"jsonrpc":"2.0","method":"n","params":{"_meta":{"k":1,"l":{"x":[]}}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{}}`:                                           `{"jsonrpc":"2.0","id":1,"result":{}}`,
	} {
		m, err := jsonrpc.Parse([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(m.WithParamsMeta(members...)); got != want {
			t.Errorf("WithParamsMeta(%s)\n got %s\nwant %s", in, got, want)
		}
		if got := string(m.Raw); got != in {
			t.Errorf("the message itself became %s", got)
		}
	}
}

// FuzzWithParamsMeta checks that what is put in can be read back, and that
// nothing else of the message changed.
func FuzzWithParamsMeta(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{"progressToken":"t"}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"ping"}`,
		`{"jsonrpc":"2.0","method":"n","params":{"_meta":[]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := jsonrpc.Parse(in)
		if err != nil || m.HasVersion {
			return
		}
		before := bytes.Clone(m.Raw)
		out := m.WithParamsMeta(jsonrpc.Member{Key: jsonrpc.MetaVersion, Value: []byte(`"2026-07-28"`)})
		if !bytes.Equal(before, m.Raw) {
			t.Fatal("the message changed")
		}
		got, err := jsonrpc.Parse(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if bytes.Equal(out, m.Raw) {
			return // a response, or _meta is no object
		}
		if got.Version != "2026-07-28" || got.Method != m.Method || got.Name != m.Name || !bytes.Equal(got.ID, m.ID) || !bytes.Equal(got.ProgressToken, m.ProgressToken) {
			t.Fatalf("got %s\nfrom %s", out, m.Raw)
		}
	})
}

func TestSplitBatch(t *testing.T) {
	got, err := jsonrpc.SplitBatch([]byte(` [ {"a":1} , 2 ] `))
	if err != nil || len(got) != 2 || string(got[0]) != `{"a":1}` {
		t.Errorf("SplitBatch = %q, %v", got, err)
	}
	for _, in := range []string{"[]", "[1", "[1]x", "{}"} {
		if _, err := jsonrpc.SplitBatch([]byte(in)); err == nil {
			t.Errorf("SplitBatch(%s) took it", in)
		}
	}
}

// FuzzParse holds the scanner against encoding/json: what Parse takes must be
// valid JSON that decodes to the same routed values, and every edit of it must
// still parse to what was put in.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{"progressToken":"t"}}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}`,
		`{"jsonrpc":"2.0","id":"\u00e9","result":{"_meta":{"x":[1,2,{"y":null}]}}}`,
		`[{"jsonrpc":"2.0"}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := jsonrpc.Parse(in)
		if err != nil {
			if pe := err.(*jsonrpc.ParseError); pe.Code == jsonrpc.CodeParse && json.Valid(in) && utf8.Valid(in) {
				if !bytes.Contains(in, []byte(strings.Repeat("[", 500))) && !bytes.Contains(in, []byte("{")) {
					t.Fatalf("valid JSON refused: %v", err)
				}
			}
			return
		}
		if !json.Valid(m.Raw) {
			t.Fatal("took invalid JSON")
		}
		var std struct {
			ID     json.RawMessage
			Method string
			Params struct{ Name, URI string }
		}
		if err := json.Unmarshal(m.Raw, &std); err != nil {
			return // a type encoding/json can't hold in this struct
		}
		if std.Method != m.Method || m.ID != nil && string(std.ID) != string(m.ID) {
			t.Fatalf("encoding/json reads %q %s, Parse %q %s", std.Method, std.ID, m.Method, m.ID)
		}
		if m.Method == "tools/call" && std.Params.Name != m.Name {
			t.Fatalf("encoding/json reads name %q, Parse %q", std.Params.Name, m.Name)
		}
		e, err := jsonrpc.Parse(m.Edit(jsonrpc.Edit{ID: []byte("99"), ProgressToken: []byte(`"n"`), CancelID: []byte("5"), Name: []byte(`"z"`)}))
		if err != nil {
			t.Fatalf("edited: %v", err)
		}
		if m.ID != nil && string(e.ID) != "99" || m.Named && e.Name != "z" || m.ProgressToken != nil && string(e.ProgressToken) != `"n"` {
			t.Fatalf("edit lost: %s", e.Raw)
		}
		if m.Result != nil {
			if _, err := jsonrpc.Parse(m.WithResultMeta("k", []byte("1"))); err != nil {
				t.Fatalf("with meta: %v", err)
			}
		}
	})
}
