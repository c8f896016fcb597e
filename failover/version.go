package failover

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// WireProblem says why a node can't be spoken with, or "". mine and theirs are
// wire versions; a side that names none is not judged.
func WireProblem(mine, theirs []int) string {
	if len(mine) == 0 || len(theirs) == 0 {
		return ""
	}
	for _, v := range mine {
		if slices.Contains(theirs, v) {
			return ""
		}
	}
	return fmt.Sprintf("it speaks wire version %s, this node %s: they have none in common; upgrade the older one", join(theirs), join(mine))
}

func join(list []int) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = strconv.Itoa(v)
	}
	return strings.Join(words, ", ")
}

// SoftwareProblem says why two software versions should not run in one cluster,
// or "": a cluster works over one minor version step. Versions that are no
// release, such as "dev", are not judged.
func SoftwareProblem(mine, theirs string) string {
	m, ok := release(mine)
	t, ok2 := release(theirs)
	if !ok || !ok2 {
		return ""
	}
	step := max(m.minor-t.minor, t.minor-m.minor)
	if m.major == t.major && step <= 1 {
		return ""
	}
	older := "it"
	if t.major > m.major || t.major == m.major && t.minor > m.minor {
		older = "this node"
	}
	return fmt.Sprintf("it runs %s, this node %s: more than one minor step apart; upgrade %s step by step", theirs, mine, older)
}

type number struct{ major, minor int }

// release reads v1.2.3; a pseudo-version (v0.0.0-…) is none.
func release(v string) (number, bool) {
	core, rest, ok := strings.Cut(v, "-")
	if ok && strings.HasPrefix(core, "v0.0.0") && rest != "" {
		return number{}, false
	}
	core, _, _ = strings.Cut(core, "+")
	parts := strings.Split(strings.TrimPrefix(core, "v"), ".")
	if len(parts) < 2 {
		return number{}, false
	}
	major, err := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return number{major, minor}, err == nil && err2 == nil
}
