package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Executed checks what a counting backend saw against what callers were told:
// no call ran twice, and one that was acknowledged ran.
func Executed(calls []Op, ran map[string]int) []string {
	var problems []string
	for id, n := range ran {
		if n > 1 {
			problems = append(problems, fmt.Sprintf("call %s was executed %d times", id, n))
		}
	}
	for _, op := range calls {
		switch n := ran[op.ID]; {
		case op.Outcome == OK && n == 0:
			problems = append(problems, fmt.Sprintf("call %s of %s was acknowledged and never executed", op.ID, op.Target))
		case op.Outcome == Refused && n > 0:
			problems = append(problems, fmt.Sprintf("call %s of %s was refused (%s) and yet executed", op.ID, op.Target, op.Err))
		}
	}
	slices.Sort(problems)
	return problems
}

// Entry is what one replica holds under a key.
type Entry struct {
	Seq     uint64 // revision
	Deleted bool   // a deletion's marker
	Value   string
}

// Kept checks that every acknowledged put of a key left its trace, the value or
// a later deletion, on every replica, and that what was deleted, acknowledged,
// stayed so. Each key is put at most once, and deleted after.
func Kept(puts, deletes []Op, replicas map[string]map[string]Entry) []string {
	var problems []string
	for node, have := range replicas {
		for _, op := range puts {
			if _, ok := have[op.Target]; !ok && op.Outcome == OK {
				problems = append(problems, fmt.Sprintf("%s lost %s, acknowledged to %s at %s", node, op.Target, op.Client, op.Return.Round(time.Millisecond)))
			}
		}
		for _, op := range deletes {
			if e, ok := have[op.Target]; ok && !e.Deleted && op.Outcome == OK {
				problems = append(problems, fmt.Sprintf("%s still has %s, whose removal was acknowledged to %s at %s", node, op.Target, op.Client, op.Return.Round(time.Millisecond)))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// Same checks that all replicas hold the same.
func Same[V comparable](replicas map[string]map[string]V) []string {
	var problems []string
	keys := map[string]bool{}
	for _, have := range replicas {
		for k := range have {
			keys[k] = true
		}
	}
	nodes := sortedKeys(replicas)
	for _, k := range sortedKeys(keys) {
		var said []string
		differ := false
		first, has := replicas[nodes[0]][k]
		for _, n := range nodes {
			v, ok := replicas[n][k]
			differ = differ || ok != has || v != first
			if ok {
				said = append(said, fmt.Sprintf("%s: %.100v", n, v))
			} else {
				said = append(said, n+": nothing")
			}
		}
		if differ {
			problems = append(problems, fmt.Sprintf("%s differs: %s", k, strings.Join(said, "; ")))
		}
	}
	return problems
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Kinds of operations on an exclusive key. Client is who holds it then, Target
// the key; Out, of one that was refused, who holds it.
const (
	Acquire = "acquire"
	Release = "release"
)

// Exclusive checks that acquisitions and releases of keys are linearizable: a
// key has one holder, whom a refusal names. What is unknown may take effect at
// any time after its call, or never. A checker that ran out of time has failed.
func Exclusive(ops []Op, within time.Duration) error {
	var history []porcupine.Operation
	clients := map[string]int{}
	for _, op := range ops {
		if op.Outcome == Refused && op.Kind == Acquire && op.Out == "" {
			continue // refused before it reached anyone who knew
		}
		if op.Outcome == Refused && op.Kind == Release {
			continue
		}
		id := len(clients)
		if known, ok := clients[op.Client]; ok {
			id = known
		} else {
			clients[op.Client] = id
		}
		end := int64(op.Return)
		if op.Outcome == Unknown {
			// Its client may go on meanwhile: to the checker it is another.
			end, id = 1<<62, len(ops)+len(history)
		}
		history = append(history, porcupine.Operation{ClientId: id, Input: op, Output: op.Outcome, Call: int64(op.Call), Return: end})
	}
	switch porcupine.CheckOperationsTimeout(holders, history, within) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("linearizability of %d operations: not decided within %s", len(history), within)
	default:
		return fmt.Errorf("not linearizable: %s", blame(history, within))
	}
}

// blame names the keys that are at fault.
func blame(history []porcupine.Operation, within time.Duration) string {
	var bad []string
	for _, part := range holders.Partition(history) {
		if porcupine.CheckOperationsTimeout(holders, part, within) != porcupine.Ok {
			bad = append(bad, fmt.Sprintf("%s (%d operations)", part[0].Input.(Op).Target, len(part)))
		}
	}
	slices.Sort(bad)
	return strings.Join(bad, ", ")
}

// holders models exclusive keys; the state is the holder, "" for none.
var holders = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(Op).Target
			byKey[key] = append(byKey[key], op)
		}
		var out [][]porcupine.Operation
		for _, key := range sortedKeys(byKey) {
			out = append(out, byKey[key])
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		holder, op := state.(string), input.(Op)
		free := holder == "" || holder == op.Client
		switch op.Kind {
		case Acquire:
			switch {
			case output == Refused:
				return holder == op.Out && holder != op.Client, holder
			case output == OK:
				return free, op.Client
			case free: // unknown: refused or done, and never saying which
				return true, op.Client
			}
			return true, holder
		default: // a release of what one does not hold changes nothing
			if holder == op.Client {
				return true, ""
			}
			return true, holder
		}
	},
	DescribeOperation: func(input, output any) string {
		op := input.(Op)
		return fmt.Sprintf("%s %s by %s: %v %s", op.Kind, op.Target, op.Client, output, op.Out)
	},
}

// Forks checks that one sequence number never meant two things: what listeners
// heard, each of them under each number.
func Forks(heard map[string]map[uint64]string) []string {
	var problems []string
	type first struct{ who, what string }
	seen := map[uint64]first{}
	for _, who := range sortedKeys(heard) {
		for seq, what := range heard[who] {
			if f, ok := seen[seq]; ok && f.what != what {
				problems = append(problems, fmt.Sprintf("sequence %d is %.200q to %s and %.200q to %s", seq, f.what, f.who, what, who))
			} else if !ok {
				seen[seq] = first{who, what}
			}
		}
	}
	slices.Sort(problems)
	return problems
}
