package lab

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Said is what the answer to a probe's call says of the session, besides the
// outcome. It is the operation's Out.
type Said struct {
	Process string // that executed the call
	Anew    string `json:",omitempty"` // what the fabric said of a server session made anew; "" = nothing
	Lost    int    `json:",omitempty"` // times that the session was not known, before the outcome
}

func (s Said) String() string {
	data, err := json.Marshal(s)
	if err != nil {
		return err.Error() // strings and numbers always encode
	}
	return string(data)
}

// ReadSaid reads an operation's Out; the zero Said if it holds none.
func ReadSaid(op Op) Said {
	var s Said
	if json.Unmarshal([]byte(op.Out), &s) != nil {
		return Said{}
	}
	return s
}

// Execution is a call that a server's process executed, as the process itself
// noted durably.
type Execution struct {
	ID, Process string
	N           int // counts what the process executed: the state in its memory
}

// Probe is a client with one session, who says of each of its calls what was
// Said.
type Probe struct {
	Name string
	Ends bool // the session ends with its process, and the client begins another
}

// Sessions checks what probes were told of their sessions against what servers
// noted, in that order: each probe's session is its process' own, the process is
// only ever replaced, and the client is told when it was, once, and not
// otherwise: by a flag in the first result, or, where sessions end, by not
// knowing the session.
func Sessions(probes []Probe, ops []Op, ran []Execution) []string {
	problems := states(ran)
	byID := map[string]Execution{}
	for _, e := range ran {
		byID[e.ID] = e
	}
	owner := map[string]string{} // of a process
	for _, p := range probes {
		mine := Select(ops, func(op Op) bool { return op.Client == p.Name })
		own := map[string]bool{}
		for _, op := range mine {
			own[op.ID] = true
			if e, ok := byID[op.ID]; op.Outcome == OK && ok && ReadSaid(op).Process != e.Process {
				problems = append(problems, fmt.Sprintf("call %s was executed by %s, and its answer is of %s", op.ID, e.Process, ReadSaid(op).Process))
			}
		}
		order, back := succession(ran, own)
		problems = append(problems, back...)
		for _, process := range order {
			if other := owner[process]; other != "" && other != p.Name {
				problems = append(problems, fmt.Sprintf("process %s has the sessions of %s and %s", process, other, p.Name))
			}
			owner[process] = p.Name
		}
		if p.Ends {
			problems = append(problems, ends(p.Name, mine)...)
		} else {
			problems = append(problems, flags(p.Name, mine, order, byID)...)
		}
	}
	slices.Sort(problems)
	return problems
}

// states checks that each process counted what it executed without a gap.
func states(ran []Execution) []string {
	var problems []string
	count := map[string]int{}
	for _, e := range ran {
		if count[e.Process]++; e.N != count[e.Process] {
			problems = append(problems, fmt.Sprintf("process %s counted %s as %d, and it was its number %d", e.Process, e.ID, e.N, count[e.Process]))
		}
	}
	return problems
}

// succession returns the processes that executed these calls, in order. One that
// was replaced must not execute any more.
func succession(ran []Execution, own map[string]bool) (order, problems []string) {
	for _, e := range ran {
		if !own[e.ID] || len(order) > 0 && order[len(order)-1] == e.Process {
			continue
		}
		if slices.Contains(order, e.Process) {
			problems = append(problems, fmt.Sprintf("process %s executed %s after it was replaced", e.Process, e.ID))
			continue
		}
		order = append(order, e.Process)
	}
	return order, problems
}

// flags checks a session that outlives its process.
func flags(name string, mine []Op, order []string, ran map[string]Execution) []string {
	var problems []string
	for _, op := range mine {
		if n := ReadSaid(op).Lost; n > 0 {
			problems = append(problems, fmt.Sprintf("%s: the session was not known at %s, %d times: %s", name, op.Call.Round(time.Millisecond), n, op.Err))
		}
	}
	for i, process := range order {
		var flagged []Op
		var answered time.Duration // when the first answer came
		lost := false              // an answer may have had the flag
		for _, op := range mine {
			switch {
			case ran[op.ID].Process != process:
			case op.Outcome != OK:
				lost = true
			default:
				if answered == 0 || op.Return < answered {
					answered = op.Return
				}
				if ReadSaid(op).Anew != "" {
					flagged = append(flagged, op)
				}
			}
		}
		switch {
		case len(flagged) > 1:
			problems = append(problems, fmt.Sprintf("%s: %d answers of process %s say that it is new, want one: %s and %s", name, len(flagged), process, flagged[0].ID, flagged[1].ID))
		case len(flagged) == 1 && i == 0:
			problems = append(problems, fmt.Sprintf("%s: the answer to %s says that process %s is new, and there was none before it", name, flagged[0].ID, process))
		case len(flagged) == 1 && flagged[0].Call > answered:
			problems = append(problems, fmt.Sprintf("%s: %s, begun at %s, is told that process %s is new, which had answered at %s", name, flagged[0].ID, flagged[0].Call, process, answered))
		case len(flagged) == 1 && !strings.HasPrefix(ReadSaid(flagged[0]).Anew, "{"):
			problems = append(problems, fmt.Sprintf("%s: the session was opened again, instead of moved: %s says %s", name, flagged[0].ID, ReadSaid(flagged[0]).Anew))
		case len(flagged) == 0 && i > 0 && answered > 0 && !lost:
			problems = append(problems, fmt.Sprintf("%s: process %s replaced %s, and no answer says so", name, process, order[i-1]))
		}
	}
	return problems
}

// ends checks the calls, one at a time, of sessions that end with their process.
func ends(name string, mine []Op) []string {
	var problems []string
	process, lost := "", 0
	for _, op := range mine {
		said := ReadSaid(op)
		if lost += said.Lost; said.Anew != "" {
			problems = append(problems, fmt.Sprintf("%s: %s says that the server's session was made anew (%s), want the session to end", name, op.ID, said.Anew))
		}
		if op.Outcome != OK {
			continue
		}
		want := 0
		if process != "" && process != said.Process {
			want = 1
		}
		if lost != want {
			problems = append(problems, fmt.Sprintf("%s: the session was not known %d times before %s, want %d: process %s, before it %s", name, lost, op.ID, want, said.Process, process))
		}
		process, lost = said.Process, 0
	}
	return problems
}

// Replaced counts how often a probe's process was replaced, as servers noted.
func Replaced(name string, ops []Op, ran []Execution) int {
	own := map[string]bool{}
	for _, op := range ops {
		own[op.ID] = own[op.ID] || op.Client == name
	}
	order, _ := succession(ran, own)
	return max(0, len(order)-1)
}
