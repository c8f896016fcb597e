package aggregate_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"ripstop/router"
	"ripstop/router/aggregate"
)

func TestNames(t *testing.T) {
	for _, tt := range []struct{ joined, server, name string }{
		{"demo__echo", "demo", "echo"},
		{"a__b__c", "a", "b__c"},
		{"a___b", "a", "_b"},
		{"a_b__c", "a_b", "c"},
		{"a____", "a", "__"},
		{"a__", "a", ""},
	} {
		server, name, ok := aggregate.SplitName(tt.joined)
		if !ok || server != tt.server || name != tt.name {
			t.Errorf("SplitName(%q) = %q, %q, %v", tt.joined, server, name, ok)
		}
		if got := aggregate.JoinName(tt.server, tt.name); got != tt.joined {
			t.Errorf("JoinName(%q, %q) = %q, want %q", tt.server, tt.name, got, tt.joined)
		}
	}
	for _, bad := range []string{"", "echo", "demo_echo", "__echo", "_a__b", "a b__c", "-__x", strings.Repeat("a", 64) + "__x"} {
		if server, name, ok := aggregate.SplitName(bad); ok {
			t.Errorf("SplitName(%q) = %q, %q; want no", bad, server, name)
		}
	}
}

func TestURIs(t *testing.T) {
	for _, tt := range []struct{ server, uri, joined string }{
		{"fs", "file:///a b/%20?x#y", "ripstop://fs/file:///a b/%20?x#y"},
		{"fs", "", "ripstop://fs/"},
		{"a", "/b/c", "ripstop://a//b/c"},
		{"a", "ripstop://b/x", "ripstop://a/ripstop://b/x"},
		{"a", "file:///{path}{?q*}", "ripstop://a/file:///{path}{?q*}"},
	} {
		if got := aggregate.JoinURI(tt.server, tt.uri); got != tt.joined {
			t.Errorf("JoinURI(%q, %q) = %q, want %q", tt.server, tt.uri, got, tt.joined)
		}
		server, uri, ok := aggregate.SplitURI(tt.joined)
		if !ok || server != tt.server || uri != tt.uri {
			t.Errorf("SplitURI(%q) = %q, %q, %v", tt.joined, server, uri, ok)
		}
	}
	for _, bad := range []string{"", "file:///x", "ripstop://", "ripstop://a", "ripstop:///x", "Ripstop://a/x", "ripstop://a__b/x"} {
		if server, uri, ok := aggregate.SplitURI(bad); ok {
			t.Errorf("SplitURI(%q) = %q, %q; want no", bad, server, uri)
		}
	}
}

// checkPairs holds two pairs against the mapping: each comes back as it was,
// and they are called the same only if they are the same.
func checkPairs(t *testing.T, s1, n1, s2, n2 string) {
	t.Helper()
	for what, m := range map[string]struct {
		join  func(server, name string) string
		split func(joined string) (server, name string, ok bool)
	}{
		"name": {aggregate.JoinName, aggregate.SplitName},
		"uri":  {aggregate.JoinURI, aggregate.SplitURI},
	} {
		for _, p := range [][2]string{{s1, n1}, {s2, n2}} {
			joined := m.join(p[0], p[1])
			if server, name, ok := m.split(joined); !ok || server != p[0] || name != p[1] {
				t.Errorf("%s: %q of %q became %q, which is %q of %q (%v)", what, p[1], p[0], joined, name, server, ok)
			}
		}
		if same := s1 == s2 && n1 == n2; (m.join(s1, n1) == m.join(s2, n2)) != same {
			t.Errorf("%s: (%q, %q) and (%q, %q) collide in %q", what, s1, n1, s2, n2, m.join(s1, n1))
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("a", "b__c", "a-b", "c")
	f.Add("a_b", "_c", "a", "b__c")
	f.Add("x", "/y", "x", "y")
	f.Fuzz(func(t *testing.T, s1, n1, s2, n2 string) {
		if s1, s2 = router.ServerName(s1), router.ServerName(s2); s1 == "" || s2 == "" {
			return
		}
		if router.CheckServerName(s1) != nil || router.CheckServerName(s2) != nil {
			return
		}
		checkPairs(t, s1, n1, s2, n2)
	})
}

// TestNamesCollide tries what fuzzing rarely hits: short names of few letters,
// where a wrong separator collides at once.
func TestNamesCollide(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(n int) string {
		b := make([]byte, r.IntN(n))
		for i := range b {
			b[i] = "a_/"[r.IntN(3)]
		}
		return string(b)
	}
	tried := 0
	for tried < 5_000 {
		s1, s2 := word(6), word(6)
		if router.CheckServerName(s1) != nil || router.CheckServerName(s2) != nil {
			continue
		}
		tried++
		checkPairs(t, s1, word(7), s2, word(7))
	}
}

// FuzzSplit holds the other direction: whatever is taken for a name of the
// aggregate is exactly what joining gives.
func FuzzSplit(f *testing.F) {
	f.Add("a__b")
	f.Add("ripstop://a/b")
	f.Add("a___")
	f.Fuzz(func(t *testing.T, in string) {
		if server, name, ok := aggregate.SplitName(in); ok && aggregate.JoinName(server, name) != in {
			t.Errorf("SplitName(%q) = %q, %q", in, server, name)
		}
		if server, uri, ok := aggregate.SplitURI(in); ok && aggregate.JoinURI(server, uri) != in {
			t.Errorf("SplitURI(%q) = %q, %q", in, server, uri)
		}
	})
}
