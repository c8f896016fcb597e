package discovery

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLinks plays what is found at one address, second by second, and compares
// the routes that follow. It is inside the package since it is about a decision
// whose effects in a server depend on that server's luck.
func TestLinks(t *testing.T) {
	timing := Timing{Grace: 2 * time.Second, Again: 5 * time.Second, Drop: 4 * time.Second}
	none, young, settled := conn{}, conn{id: "x"}, conn{id: "x", settled: true}
	member, refused, other := Finding{Addr: "a", Outcome: Member}, Finding{Addr: "a", Outcome: Refused}, Finding{Addr: "a", Outcome: OtherCluster}
	type step struct {
		x Finding
		c conn
	}
	repeat := func(n int, x Finding, c conn) []step {
		var out []step
		for range n {
			out = append(out, step{x, c})
		}
		return out
	}
	for title, tt := range map[string]struct {
		steps []step
		want  string // round of the route after each second, "-" = none
	}{
		"connects by itself":      {append(repeat(1, member, none), append(repeat(1, member, young), repeat(2, member, settled)...)...), "----"},
		"does not connect":        {repeat(9, member, none), "-11111222"},
		"connects with a route":   {append(repeat(2, member, none), repeat(9, member, settled)...), "-1111111111"},
		"comes and goes":          {repeat(9, member, young), "---------"},
		"never a member":          {repeat(3, refused, none), "---"},
		"stops for a short time":  {append(repeat(2, member, none), append(repeat(3, refused, none), repeat(3, member, settled)...)...), "-1111111"},
		"stops for good":          {append(repeat(2, member, none), repeat(6, refused, none)...), "-11111--"},
		"becomes another cluster": {append(repeat(2, member, none), repeat(2, other, none)...), "-1--"},
		"gone before its route":   {append(repeat(1, member, none), append(repeat(1, refused, none), repeat(2, member, none)...)...), "---1"},
	} {
		ls := links{}
		now := time.Now()
		var got strings.Builder
		for _, s := range tt.steps {
			ls.judge(s.x, s.c, "", time.Second, now, timing)
			now = now.Add(time.Second)
			if rs := ls.routes("", ""); len(rs) == 0 {
				got.WriteString("-")
			} else {
				got.WriteString(strings.TrimPrefix(rs[0].Path, "/found"))
			}
		}
		if got.String() != tt.want {
			t.Errorf("%s: %s, want %s", title, &got, tt.want)
		}
	}
}

func TestLinksAreBounded(t *testing.T) {
	ls := links{}
	for i := range 2 * maxLinks {
		for s := range 3 {
			ls.judge(Finding{Addr: fmt.Sprint(i), Outcome: Member}, conn{}, "", 0, time.Unix(int64(s), 0), Timing{Again: time.Hour})
		}
	}
	if got := len(ls.routes("", "")); got != maxLinks {
		t.Errorf("%d routes, want %d", got, maxLinks)
	}
}
