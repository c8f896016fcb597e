package edge_test

import (
	"context"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/router"
	"ripstop/router/edge"
)

// numbered is a handler that numbers what it sends, as the session layer does.
func numbered(ids *[]string, send ...string) router.HandlerFunc {
	return func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		stream := req.StreamID
		*ids = append(*ids, stream)
		if req.Op == router.OpListen {
			stream = "g1"
		}
		events := out.(router.EventStream)
		if req.Op == router.OpListen {
			if err := events.SendEvent(ctx, stream+".0", nil); err != nil {
				return nil, err
			}
		}
		n := 0
		id := func() string { n++; return stream + "." + string(rune('0'+n)) }
		for _, msg := range send {
			if err := events.SendEvent(ctx, id(), []byte(msg)); err != nil {
				return nil, err
			}
		}
		if req.Op == router.OpListen {
			return nil, nil
		}
		r := &router.Reply{Body: []byte(result)}
		if len(send) > 0 {
			r.EventID = id()
		}
		return r, nil
	}
}

func TestEventIDs(t *testing.T) {
	const message = "event: message\nid: "
	for _, tt := range []struct {
		name, method, version, session string
		send                           []string
		want                           string // with $ for the stream's id
	}{
		{"2025-11-25", "POST", "2025-11-25", "s1", []string{note},
			"id: $.0\nretry: 1000\ndata: \n\n" + message + "$.1\ndata: " + note + "\n\n" + message + "$.2\ndata: " + result + "\n\n"},
		{"older", "POST", "2025-06-18", "s1", []string{note},
			message + "$.1\ndata: " + note + "\n\n" + message + "$.2\ndata: " + result + "\n\n"},
		{"no stream", "POST", "2025-11-25", "s1", nil, result},
		{"no session to come back to", "POST", "2025-11-25", "", []string{note},
			message + "$.1\nretry: 1000\ndata: " + note + "\n\n" + message + "$.2\ndata: " + result + "\n\n"},
		{"own stream, 2025-11-25", "GET", "2025-11-25", "s1", []string{note, note},
			"id: g1.0\nretry: 1000\ndata: \n\n" + message + "g1.1\ndata: " + note + "\n\n" + message + "g1.2\ndata: " + note + "\n\n"},
		{"own stream, older", "GET", "2025-03-26", "s1", []string{note},
			": ok\n\n" + message + "g1.1\ndata: " + note + "\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ids []string
			e := edge.New(edge.Options{Handler: numbered(&ids, tt.send...)})
			h := header("Mcp-Protocol-Version", tt.version)
			if tt.session != "" {
				h.Set("Mcp-Session-Id", tt.session)
			}
			body := legacyCall
			if tt.method == "GET" {
				body = ""
			}
			w := do(t, e, tt.method, "/mcp/demo", body, h)
			if got, want := w.Body.String(), strings.ReplaceAll(tt.want, "$", ids[0]); got != want {
				t.Errorf("got\n%q, want\n%q", got, want)
			}
		})
	}
}

// A stream's id is new for every call, and says what the call's own id is.
func TestStreamIDs(t *testing.T) {
	var ids []string
	e := edge.New(edge.Options{Handler: numbered(&ids)})
	h := header("Mcp-Protocol-Version", "2025-11-25", "Mcp-Session-Id", "s1")
	for _, id := range []string{`7`, `7`, `"a-b"`, `"` + strings.Repeat("x", 36) + `"`, `"` + strings.Repeat("x", 37) + `"`} {
		do(t, e, "POST", "/mcp/demo", strings.Replace(legacyCall, `"id":7`, `"id":`+id, 1), h)
		last := ids[len(ids)-1]
		m := regexp.MustCompile(`^[a-z2-7]{12}(?:-([A-Za-z0-9_-]+))?$`).FindStringSubmatch(last)
		if m == nil || len(last) > 64 {
			t.Fatalf("stream id %q", last)
		}
		own, err := base64.RawURLEncoding.DecodeString(m[1])
		if err != nil || string(own) != id && len(id) <= 38 || len(id) > 38 && m[1] != "" {
			t.Errorf("%s: stream id %q has %q, %v", id, last, own, err)
		}
	}
	if ids[0] == ids[1] {
		t.Errorf("two calls have one stream id, %s", ids[0])
	}
	do(t, e, "POST", "/mcp/demo", modernCall, modernHeader())
	do(t, e, "POST", "/mcp/demo", initialize, header())
	do(t, e, "POST", "/mcp/demo", initialized, h)
	if rest := strings.Join(ids[5:], ""); rest != "" {
		t.Errorf("modern calls, initialize and notifications have stream ids: %s", rest)
	}
}

// An edge that must stop lets clients that can come back for an answer do so.
func TestShutdownLeavesResumable(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2025-06-18"} {
		synctest.Test(t, func(t *testing.T) {
			e := edge.New(edge.Options{Handler: router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				if err := out.(router.EventStream).SendEvent(ctx, req.StreamID+".1", []byte(note)); err != nil {
					return nil, err
				}
				<-ctx.Done()
				return nil, ctx.Err()
			})})
			p := serve(t, e)
			c := send(t, p, "POST", "MCP-Protocol-Version: "+version+"\r\nMcp-Session-Id: s1\r\n", legacyCall)
			c.response(200)
			done := shutdown(e, 2*time.Second)
			got := readAll(t, c.body)
			if resumes := !strings.Contains(got, "-32013"); resumes != (version == "2025-11-25") || !strings.Contains(got, note) {
				t.Errorf("%s: %q", version, got)
			}
			if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}
