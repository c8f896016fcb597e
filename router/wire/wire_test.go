package wire_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/wire"
)

func TestEncodeToken(t *testing.T) {
	for in, want := range map[string]string{
		"echo": "echo", "a-b_c9": "a-b_c9", "": "%", "_x": "%5Fx", "a.b": "a%2Eb", "a b*>": "a%20b%2A%3E",
		"~": "%7E", "%": "%25", "é": "%C3%A9", "file:///x": "file%3A%2F%2F%2Fx",
		strings.Repeat("a", 1024): strings.Repeat("a", 1024),
	} {
		if got := wire.EncodeToken(in); got != want {
			t.Errorf("EncodeToken(%.20q) = %q, want %q", in, got, want)
		}
	}
}

func TestLongNamesAreHashed(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 1025), strings.Repeat("é", 200)} {
		if got := wire.EncodeToken(name); !strings.HasPrefix(got, "~") || len(got) != 65 {
			t.Errorf("EncodeToken(%d bytes) = %q", len(name), got)
		}
	}
}

func FuzzEncodeToken(f *testing.F) {
	f.Add("a", "b")
	f.Add("%41", "A")
	f.Add("~", strings.Repeat("x", 2000))
	f.Fuzz(func(t *testing.T, a, b string) {
		ta, tb := wire.EncodeToken(a), wire.EncodeToken(b)
		if (a == b) != (ta == tb) {
			t.Fatalf("%q and %q have tokens %q and %q", a, b, ta, tb)
		}
		if ta == "" || len(ta) > 1024 || strings.ContainsAny(ta, " .*>\t\r\n") || ta[0] == '_' {
			t.Fatalf("%q has the token %q", a, ta)
		}
	})
}

// FuzzDecode: whatever arrives is refused or belongs on the subject it came on.
func FuzzDecode(f *testing.F) {
	f.Add("tools.call.echo", []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}`), "s", "2025-06-18")
	f.Add("_listen", []byte(nil), "s", "")
	f.Add("_response", []byte(`{"jsonrpc":"2.0","id":1,"result":{}}`), "", "")
	f.Add("notifications.initialized", []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`), "", "2026-07-28")
	f.Fuzz(func(t *testing.T, tail string, body []byte, session, version string) {
		msg := &nats.Msg{Subject: "mcp.v1.req.demo." + tail, Data: body, Header: nats.Header{}}
		msg.Header.Set("Mcp-Session-Id", session)
		msg.Header.Set("Mcp-Protocol-Version", version)
		in, err := wire.Decode(msg, "demo", "abcdefghij")
		if err != nil {
			if r := router.ErrorReply(in.ID(), err); len(r.Body) == 0 || r.Status < 400 {
				t.Fatalf("refused with %+v", r)
			}
			return
		}
		subject, err := wire.RequestSubject(&in.Request)
		if err != nil || subject != msg.Subject {
			t.Fatalf("taken on %q, belongs on %q, %v", msg.Subject, subject, err)
		}
	})
}

func TestIdentityCountsOnlyFromEdges(t *testing.T) {
	body := []byte(`{"jsonrpc":"2.0","id":1,"method":"ping"}`)
	for subject, want := range map[string]string{
		"mcp.v1.req.demo.ping":             "",
		"mcp.v1.inst.demo.abcdefghij.ping": "alice",
	} {
		msg := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{"Mcp-Principal": {"alice"}, "Mcp-Era": {"modern"}}}
		in, err := wire.Decode(msg, "demo", "abcdefghij")
		if err != nil {
			t.Fatal(err)
		}
		if in.Principal != want {
			t.Errorf("%s: principal %q, want %q", subject, in.Principal, want)
		}
		if modern := in.Era == router.EraModern; modern != (want != "") {
			t.Errorf("%s: era %v", subject, in.Era)
		}
	}
}
