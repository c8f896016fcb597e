package wire_test

import (
	"testing"

	"ripstop/router/wire"
)

func TestErrandOf(t *testing.T) {
	for subject, want := range map[string]string{
		wire.ErrandSubject("s", "i", wire.ErrandAbout):   wire.ErrandAbout,
		wire.ErrandSubject("s", "i", wire.ErrandRelease): wire.ErrandRelease,
		"mcp.v1.inst.s.i._end":                           "",
		"mcp.v1.inst.s.i.ping":                           "",
		"mcp.v1.inst.s.i.tools.call._release":            "",
		"mcp.v1.req.s._release":                          "", // clients may publish there
		"mcp.v1.req.s.x._release":                        "",
	} {
		if got := wire.ErrandOf(subject); got != want {
			t.Errorf("%s: got %q, want %q", subject, got, want)
		}
	}
}
