package jsonrpc_test

import (
	"strings"
	"testing"

	"ripstop/router/jsonrpc"
)

func TestEachMember(t *testing.T) {
	for object, want := range map[string]string{
		`{}`:                             "",
		` { "a" : 1 , "b" : {"c":[2]}} `: "a=1 b={\"c\":[2]}",
		`{"\u0061":"x","a":null}`:        `a="x" a=null`,
		`[1]`:                            "",
		`"a"`:                            "",
		``:                               "",
		`{"a":1,"b":}`:                   "a=1",
	} {
		var got []string
		jsonrpc.EachMember([]byte(object), func(key string, value []byte) { got = append(got, key+"="+string(value)) })
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", object, s, want)
		}
	}
}
