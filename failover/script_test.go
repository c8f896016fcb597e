package failover_test

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ripstop/failover"
)

var update = flag.Bool("update", false, "rewrite what the scripts in testdata expect")

// TestScripts runs testdata/*.txt. A script is one command a line, each followed
// by what must come of it; "go test ./failover -update" writes that anew.
//
//	# a comment
//	config KEY=VALUE…               before anything else: interval, timeout, threshold, stability, forget, software, wire
//	at 1.5s COMMAND                 time passes up to 1.5 s, then COMMAND, which may be left out
//	expect 1.5s node_down n2: …     an event of the lines since the last command
//
// Checks are answered by themselves, as the network is described:
//
//	answers n2 [latency=1ms] [inc=1] [ready=false] [gate=read_only] …   n2 answers checks from now on
//	silent n2                                                           checks of n2 time out from now on
//	voters n1 n2 n3 | route-up n2 | route-down n2 [dead] | stopping n2 [inc=1]
//	lame-duck n2 | heard n2 [inc=1] | self [leader=n1] … | forget n2 | ask n2
//	show                            prints every node; partition prints what speaks for one
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := runScript(string(text))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := firstDifference(got, string(text)); diff != "" && !*update {
				t.Error(diff)
			}
		})
	}
}

// A runner that can't fail proves nothing.
func TestScriptRunnerFails(t *testing.T) {
	const script = "at 0s answers n2\nat 0s heard n2\n%sat 1s route-down n2 dead\n%s"
	const up, dead = "expect 1ms node_up n2: it answers\n", "expect 1s node_down n2: its process is dead: its connections were reset and its port is closed\n"
	for name, text := range map[string]string{
		"missing event":    fmt.Sprintf(script, "", up),
		"additional event": fmt.Sprintf(script, "", up+dead+dead),
		"wrong event":      fmt.Sprintf(script, "", up+strings.Replace(dead, "n2", "n3", 1)),
		"wrong time":       fmt.Sprintf(script, "", up+strings.Replace(dead, "1s", "2s", 1)),
	} {
		got, err := runScript(text)
		if err != nil {
			t.Fatal(err)
		}
		if firstDifference(got, text) == "" {
			t.Errorf("%s: the script passed", name)
		}
	}
	if got, err := runScript(fmt.Sprintf(script, "", up+dead)); err != nil || firstDifference(got, fmt.Sprintf(script, "", up+dead)) != "" {
		t.Errorf("the correct script failed: %v\n%s", err, got)
	}
	for _, text := range []string{"at", "at x heard n2", "at 1s dance n2", "at 2s heard n2\nat 1s heard n2", "at 0s answers n2 colour=red", "config threshold=x", "config timeout=9s\nat 0s"} {
		if _, err := runScript(text); err == nil {
			t.Errorf("script %q was accepted", text)
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(strings.TrimSpace(got), "\n"), strings.Split(strings.TrimSpace(want), "\n")
	for i := range max(len(g), len(w)) {
		line := func(list []string) string {
			if i < len(list) {
				return list[i]
			}
			return "(end)"
		}
		if line(g) != line(w) {
			return fmt.Sprintf("line %d\n got: %s\nwant: %s", i+1, line(g), line(w))
		}
	}
	return ""
}

// epoch is when every script begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is the network of a script.
type world struct {
	m       *failover.Monitor
	now     time.Time
	nodes   map[string]*answer
	pending []pending
	out     strings.Builder
}

type answer struct {
	silent  bool
	latency time.Duration
	skew    time.Duration
	report  failover.Report
}

type pending struct {
	at time.Time
	c  failover.Check
}

// runScript returns the script with what it expects replaced by what came.
func runScript(text string) (string, error) {
	w := &world{now: epoch, nodes: map[string]*answer{}}
	cfg := failover.Config{Software: "v1.4.0", Wire: []int{1}}
	sc := bufio.NewScanner(strings.NewReader(text))
	for line := 1; sc.Scan(); line++ {
		if strings.HasPrefix(sc.Text(), "expect ") {
			continue
		}
		fmt.Fprintln(&w.out, sc.Text())
		words := strings.Fields(sc.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := w.line(&cfg, words); err != nil {
			return "", fmt.Errorf("line %d: %s: %w", line, sc.Text(), err)
		}
	}
	return w.out.String(), sc.Err()
}

func (w *world) line(cfg *failover.Config, words []string) (err error) {
	if words[0] == "config" {
		return configure(cfg, words[1:])
	}
	if w.m == nil {
		if w.m, err = failover.NewMonitor(w.now, "n1", *cfg); err != nil {
			return err
		}
	}
	if words[0] != "at" || len(words) < 2 {
		return errors.New("a line says: at TIME COMMAND")
	}
	d, err := time.ParseDuration(words[1])
	if err != nil {
		return err
	}
	at := epoch.Add(d)
	if at.Before(w.now) {
		return errors.New("time goes back")
	}
	w.pass(at)
	if len(words) == 2 {
		return nil
	}
	return w.command(words[2], words[3:])
}

func configure(cfg *failover.Config, words []string) (err error) {
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "interval":
			cfg.Interval, err = time.ParseDuration(value)
		case "timeout":
			cfg.Timeout, err = time.ParseDuration(value)
		case "stability":
			cfg.Stability, err = time.ParseDuration(value)
		case "forget":
			cfg.ForgetAfter, err = time.ParseDuration(value)
		case "threshold":
			cfg.Threshold, err = strconv.Atoi(value)
		case "software":
			cfg.Software = value
		case "wire":
			cfg.Wire, err = numbers(value)
		default:
			err = fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func numbers(text string) (list []int, err error) {
	for _, word := range strings.Split(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

// pass lets time pass: checks end and the monitor wakes, in order.
func (w *world) pass(until time.Time) {
	for {
		wake, ok := w.m.Wake()
		next := until
		if ok && wake.Before(next) {
			next = wake
		}
		isCheck := len(w.pending) > 0 && !w.pending[0].at.After(next)
		switch {
		case isCheck:
			p := w.pending[0]
			w.pending = w.pending[1:]
			w.now = later(w.now, p.at)
			w.handle(w.m.Checked(w.now, p.c))
		case ok && !wake.After(until):
			w.now = later(w.now, wake)
			w.handle(w.m.Tick(w.now))
		default:
			w.now = until
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (w *world) handle(o failover.Output) {
	for _, e := range o.Events {
		fmt.Fprintf(&w.out, "expect %s %s %s: %s%s\n", w.now.Sub(epoch), e.Kind, cmp.Or(e.Node, "-"), e.Reason, took(e))
	}
	for _, name := range o.Checks {
		c := failover.Check{Node: name, Sent: w.now}
		a := w.nodes[name]
		took := 2 * time.Second
		if a == nil || a.silent {
			c.Failed = "no answer within 2s"
		} else {
			took = a.latency
			c.Latency, c.Skew, c.Report = a.latency, a.skew, a.report
		}
		w.pending = append(w.pending, pending{w.now.Add(took), c})
		slices.SortStableFunc(w.pending, func(a, b pending) int { return a.at.Compare(b.at) })
	}
}

func (w *world) command(verb string, args []string) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	switch verb {
	case "answers":
		return w.answers(name, args)
	case "silent":
		w.nodes[name].silent = true
	case "voters":
		w.handle(w.m.Expect(w.now, args, nil))
	case "route-up":
		w.handle(w.m.RouteUp(w.now, name))
	case "route-down":
		w.handle(w.m.RouteDown(w.now, name, slices.Contains(args, "dead")))
	case "lame-duck":
		w.handle(w.m.LameDuck(w.now, name))
	case "ask":
		w.handle(w.m.Ask(w.now, name))
	case "forget":
		w.handle(w.m.Forget(w.now, name))
	case "stopping", "heard":
		a := answer{}
		if err := a.set(args[1:]); err != nil {
			return err
		}
		if verb == "heard" {
			w.handle(w.m.Heard(w.now, name, a.report.ServerID))
			return nil
		}
		w.handle(w.m.Stopping(w.now, name, a.report.ServerID))
	case "self":
		a := answer{report: failover.Report{Name: "n1", Ready: true}}
		if err := a.set(args); err != nil {
			return err
		}
		w.handle(w.m.Self(w.now, a.report))
	case "show":
		for _, n := range w.m.View() {
			fmt.Fprintf(&w.out, "expect %s %s %s failed=%d mean=%s leader=%t: %s\n", n.Name, n.State, n.Health, n.Failed, n.Mean, n.Leader, strings.Join(n.Reasons, "; "))
		}
	case "partition":
		p := w.m.Partition(w.now)
		fmt.Fprintf(&w.out, "expect detected=%t minority=%t: %s\n", p.Detected(), p.Minority, p)
	default:
		return fmt.Errorf("unknown command %q", verb)
	}
	return nil
}

func (w *world) answers(name string, args []string) error {
	a := &answer{latency: time.Millisecond, report: failover.Report{Name: name, Role: failover.Voter, Software: "v1.4.0", Wire: []int{1}, Incarnation: 1, ServerID: "process-1", Ready: true}}
	if old := w.nodes[name]; old != nil {
		*a = *old
		a.silent = false
	}
	w.nodes[name] = a
	return a.set(args[1:])
}

func (a *answer) set(words []string) (err error) {
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "latency":
			a.latency, err = time.ParseDuration(value)
		case "skew":
			a.skew, err = time.ParseDuration(value)
		case "inc":
			a.report.Incarnation, err = strconv.ParseUint(value, 10, 64)
			a.report.ServerID = "process-" + value
		case "ready":
			a.report.Ready = value == "true"
		case "draining":
			a.report.Draining = value == "true"
		case "gate":
			a.report.Gate = value
		case "leader":
			a.report.MetaLeader = value
		case "role":
			a.report.Role = failover.Role(value)
		case "software":
			a.report.Software = value
		case "wire":
			a.report.Wire, err = numbers(value)
		case "routes":
			a.report.Routes = strings.Split(value, ",")
		case "problem":
			a.report.Problems = []string{value}
		default:
			err = fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func took(e failover.Event) string {
	if e.Took == 0 {
		return ""
	}
	return fmt.Sprintf(" (took %s)", e.Took)
}
