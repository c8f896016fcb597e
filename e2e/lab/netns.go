package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Net is a network of hosts, each a network namespace of its own, joined by a
// router, another one, in which packets from one host to another can be made to
// vanish: nobody is told, as when a cable is cut. The test itself reaches every
// host, whatever is cut.
//
//	test ── router ─┬─ host 0 (10.X.1.2)
//	                ├─ host 1 (10.X.2.2) …
type Net struct {
	prefix string // of the names of namespaces and links
	net    int    // the X of 10.X.0.0/16
	hosts  int
	cuts   map[[2]int]bool
}

const netPrefix = "rsl"

// NewNet makes a network of n hosts. It needs root and the ip command; the
// error says so. Networks whose test was killed are removed.
func NewNet(n int) (*Net, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("network namespaces need the ip command (apt-get install iproute2)")
	}
	removeStale()
	w := &Net{prefix: fmt.Sprintf("%s%d", netPrefix, os.Getpid()), hosts: n, cuts: map[[2]int]bool{}}
	if _, err := os.Stat(w.path("r")); err == nil {
		return nil, errors.New("a test has one network at a time: close the other first")
	}
	if err := w.choose(); err != nil {
		return nil, err
	}
	if err := w.build(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// removeStale removes the namespaces of tests that are no more.
func removeStale() {
	found, _ := filepath.Glob("/run/netns/" + netPrefix + "*") // the pattern is well-formed
	for _, path := range found {
		name := filepath.Base(path)
		var pid int
		if _, err := fmt.Sscanf(name, netPrefix+"%d", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, fs.ErrNotExist) {
			_ = ip("netns del " + name) // another test was faster
		}
	}
}

// choose takes an address range that no route leads to.
func (w *Net) choose() error {
	out, err := exec.Command("ip", "route", "show", "table", "all").Output()
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for range 100 {
		w.net = 64 + rand.IntN(128)
		if !strings.Contains(string(out), fmt.Sprintf("10.%d.", w.net)) {
			return nil
		}
	}
	return errors.New("no free range 10.64-191.0.0/16")
}

func (w *Net) path(host string) string { return "/run/netns/" + w.prefix + host }

func (w *Net) build() error {
	r := w.prefix + "r"
	script := []string{
		"netns add " + r,
		"-n " + r + " link set lo up",
		// A veth pair for the test itself; %[1]s the near end, %[2]s the far one.
		fmt.Sprintf("link add %[1]st type veth peer name %[1]su netns %[2]s", w.prefix, r),
		fmt.Sprintf("addr add 10.%d.0.2/24 dev %st", w.net, w.prefix),
		fmt.Sprintf("link set %st up", w.prefix),
		fmt.Sprintf("-n %s addr add 10.%d.0.1/24 dev %su", r, w.net, w.prefix),
		fmt.Sprintf("-n %s link set %su up", r, w.prefix),
		fmt.Sprintf("route add 10.%[1]d.0.0/16 via 10.%[1]d.0.1", w.net),
	}
	for i := range w.hosts {
		h, far := w.name(i), fmt.Sprintf("%sp%d", w.prefix, i)
		script = append(script,
			"netns add "+h,
			fmt.Sprintf("link add eth0 netns %s type veth peer name %s netns %s", h, far, r),
			fmt.Sprintf("-n %s addr add %s/24 dev eth0", h, w.Addr(i)),
			"-n "+h+" link set lo up",
			"-n "+h+" link set eth0 up",
			fmt.Sprintf("-n %s addr add 10.%d.%d.1/24 dev %s", r, w.net, i+1, far),
			fmt.Sprintf("-n %s link set %s up", r, far),
			fmt.Sprintf("-n %s route add default via 10.%d.%d.1", h, w.net, i+1),
		)
	}
	for _, line := range script {
		if err := ip(line); err != nil {
			return err
		}
	}
	return w.In(-1, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

func ip(line string) error {
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", line, err, out)
	}
	return nil
}

func (w *Net) name(i int) string {
	if i < 0 {
		return w.prefix + "r"
	}
	return fmt.Sprintf("%sh%d", w.prefix, i)
}

// Addr is host i's address.
func (w *Net) Addr(i int) string { return fmt.Sprintf("10.%d.%d.2", w.net, i+1) }

// Command runs a program on host i. Its process id is the program's.
func (w *Net) Command(i int, path string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", w.name(i), path}, args...)...)
}

// In calls f on host i (-1: the router), on a thread that is thrown away. The
// sockets that f opens stay on that host; goroutines it starts do not.
func (w *Net) In(i int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(w.path(strings.TrimPrefix(w.name(i), w.prefix)))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			err = errors.Join(err, ns.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Cut makes packets from one host to another vanish, that way only.
func (w *Net) Cut(from, to int) error {
	if w.cuts[[2]int{from, to}] {
		return nil
	}
	w.cuts[[2]int{from, to}] = true
	return ip(w.rule("add", from, to))
}

// Mend undoes Cut.
func (w *Net) Mend(from, to int) error {
	if !w.cuts[[2]int{from, to}] {
		return nil
	}
	delete(w.cuts, [2]int{from, to})
	return ip(w.rule("del", from, to))
}

func (w *Net) rule(verb string, from, to int) string {
	return fmt.Sprintf("-n %s rule %s from %s to %s blackhole", w.name(-1), verb, w.Addr(from), w.Addr(to))
}

// Split cuts both ways between hosts of different sides; a host on no side is
// left alone.
func (w *Net) Split(sides ...[]int) error {
	for a, side := range sides {
		for b, other := range sides {
			for _, i := range side {
				for _, j := range other {
					if a == b {
						continue
					}
					if err := w.Cut(i, j); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// Heal mends every cut.
func (w *Net) Heal() error {
	var errs []error
	for c := range w.cuts {
		errs = append(errs, w.Mend(c[0], c[1]))
	}
	return errors.Join(errs...)
}

// Close removes the network. What still runs on its hosts runs on, unreachable.
func (w *Net) Close() error {
	var errs []error
	for i := -1; i < w.hosts; i++ {
		if _, err := os.Stat("/run/netns/" + w.name(i)); err == nil {
			errs = append(errs, ip("netns del "+w.name(i)))
		}
	}
	if _, err := os.Stat("/sys/class/net/" + w.prefix + "t"); err == nil {
		_ = ip("link del " + w.prefix + "t") // it goes with the router, a little later
	}
	return errors.Join(errs...)
}
