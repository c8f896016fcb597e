package lab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ripstop/e2e/lab"
)

// story is a probe's history and what its servers noted, one call after another.
type story struct {
	ops []lab.Op
	ran []lab.Execution
	n   map[string]int
}

// call adds a call that process executed and that had this outcome; process ""
// did not execute it.
func (s *story) call(process string, o lab.Outcome, said lab.Said) *story {
	if s.n == nil {
		s.n = map[string]int{}
	}
	id := fmt.Sprint("c", len(s.ops))
	at := time.Duration(len(s.ops)+1) * time.Second
	if process != "" {
		s.n[process]++
		s.ran = append(s.ran, lab.Execution{ID: id, Process: process, N: s.n[process]})
	}
	if said.Process == "" {
		said.Process = process
	}
	s.ops = append(s.ops, lab.Op{Kind: "http", Client: "probe", Target: "t", ID: id, Call: at, Return: at + time.Millisecond, Outcome: o, Out: said.String()})
	return s
}

func (s *story) ok(process string) *story { return s.call(process, lab.OK, lab.Said{}) }
func (s *story) anew(process string) *story {
	return s.call(process, lab.OK, lab.Said{Anew: `{"cause":"x"}`})
}
func (s *story) other(process, client string) *story {
	s.ok(process)
	s.ops[len(s.ops)-1].Client = client
	return s
}

// TestSessions: each promise to a session that is broken is noticed, and none
// that is kept.
func TestSessions(t *testing.T) {
	began := func() *story { return (&story{}).ok("a").ok("a") }
	for name, tt := range map[string]struct {
		s    *story
		ends bool
		want string // "" = nothing is wrong
	}{
		"nothing happened":         {began(), false, ""},
		"moved and said so":        {began().anew("b").ok("b"), false, ""},
		"moved twice":              {began().anew("b").anew("c").ok("c"), false, ""},
		"moved, first answer lost": {began().call("b", lab.Unknown, lab.Said{}).ok("b"), false, ""},
		"moved, no answer at all":  {began().call("b", lab.Unknown, lab.Said{}), false, ""},
		"moved in silence":         {began().ok("b").ok("b"), false, "no answer says so"},
		"told late":                {began().ok("b").anew("b"), false, "which had answered"},
		"told twice":               {began().anew("b").anew("b"), false, "2 answers"},
		"told without cause":       {began().anew("a"), false, "there was none before"},
		"opened again":             {began().call("b", lab.OK, lab.Said{Anew: "true"}), false, "opened again"},
		"not known":                {began().call("", lab.Refused, lab.Said{Lost: 1}).ok("a"), false, "not known"},
		"not known, then known":    {began().call("a", lab.OK, lab.Said{Lost: 1}), false, "not known"},
		"replaced and still alive": {began().anew("b").ok("a"), false, "after it was replaced"},
		"shared":                   {began().other("a", "stranger"), false, "has the sessions of"},
		"answer of another":        {began().call("a", lab.OK, lab.Said{Process: "z"}), false, "its answer is of z"},
		"state lost":               {(&story{n: map[string]int{"a": 1}}).ok("a"), false, "counted c0 as 2"},

		"ended":             {began().call("b", lab.OK, lab.Said{Lost: 1}).ok("b"), true, ""},
		"ended, call lost":  {began().call("", lab.Unknown, lab.Said{Lost: 1}).ok("b"), true, ""},
		"ended in silence":  {began().ok("b"), true, "not known 0 times"},
		"ended twice":       {began().call("b", lab.OK, lab.Said{Lost: 2}), true, "not known 2 times"},
		"ended for nothing": {began().call("a", lab.OK, lab.Said{Lost: 1}), true, "not known 1 times"},
		"moved, not ended":  {began().anew("b"), true, "want the session to end"},
	} {
		probes := []lab.Probe{{Name: "probe", Ends: tt.ends}, {Name: "stranger"}}
		got := strings.Join(lab.Sessions(probes, tt.s.ops, tt.s.ran), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	s := began().anew("b").call("c", lab.Unknown, lab.Said{})
	if n := lab.Replaced("probe", s.ops, s.ran); n != 2 {
		t.Errorf("replaced %d times, want 2", n)
	}
}
