package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ripstop/e2e/lab"
	"ripstop/fabric/addrtest"
)

// clusterOptions say what cluster a test wants.
type clusterOptions struct {
	nodes   int                       // voters: 3 or 5
	netns   bool                      // each node on a host of its own, whose links can be cut
	proxied bool                      // routes pass proxies, which can be slow
	seed    uint64                    // of the proxies
	args    []string                  // for every node
	builds  func(t testing.TB)        // what must not happen under load; may be nil
	binary  func(t testing.TB) string // of every node at first; nil = ripstop as it is
	servers func(name string) string
}

// member is one node of a cluster. Its addresses outlast its process.
type member struct {
	name                string
	host                int // on lab.Net
	nats, http, cluster string
	advertise           string // proxy of cluster, if any
	peers               []string
	voter               bool
	args                []string
	binary              string   // "" = ripstop as it is
	env                 []string // for its process
	p                   *process
	runs                int
	up                  bool // is meant to run, and not paused
}

// cluster is a region of real processes.
type cluster struct {
	t       testing.TB
	opts    clusterOptions
	members []*member
	dir     string // data and logs
	net     *lab.Net
	proxies []*lab.Proxy
	logs    string // where logs went, once kept
}

const clusterTimeout = 30 * time.Second // for a cluster to form, and a node to catch up

// startCluster starts a cluster and waits until it is ready.
func startCluster(t testing.TB, opts clusterOptions) *cluster {
	t.Helper()
	if opts.builds != nil {
		opts.builds(t)
	}
	c := &cluster{t: t, opts: opts, dir: t.TempDir()}
	if opts.netns {
		w, err := lab.NewNet(opts.nodes)
		if err != nil {
			need(t, "%v", err)
		}
		c.net = w
	}
	t.Cleanup(c.close)
	for i := range opts.nodes {
		c.add(fmt.Sprintf("n%d", i+1))
	}
	var peers []string
	for _, m := range c.members {
		m.voter = true
		peers = append(peers, m.reach())
	}
	for _, m := range c.members {
		m.peers = peers
		c.start(m)
	}
	for _, m := range c.members {
		c.awaitReady(m)
	}
	return c
}

// reach is where other nodes find m.
func (m *member) reach() string {
	if m.advertise != "" {
		return m.advertise
	}
	return m.cluster
}

func (c *cluster) add(name string) *member {
	c.t.Helper()
	i := len(c.members)
	m := &member{name: name, host: i}
	if c.opts.binary != nil {
		m.binary = c.opts.binary(c.t)
	}
	if c.net != nil {
		ip := c.net.Addr(i)
		m.nats, m.http, m.cluster = ip+":4222", ip+":8080", ip+":6222"
	} else {
		m.nats, m.http, m.cluster = addrtest.Reserve(c.t), addrtest.Reserve(c.t), addrtest.Reserve(c.t)
	}
	if c.opts.proxied {
		p, err := lab.NewProxy("127.0.0.1:0", m.cluster, c.opts.seed+uint64(i))
		if err != nil {
			c.t.Fatal(err)
		}
		c.proxies = append(c.proxies, p)
		m.advertise = p.Addr()
	}
	c.members = append(c.members, m)
	return m
}

// join starts one more node, a relay, and waits until it is ready.
func (c *cluster) join(name string, env ...string) *member {
	c.t.Helper()
	m := c.add(name)
	m.peers, m.env = c.members[0].peers, env
	c.start(m)
	c.awaitReady(m)
	return m
}

// start starts m's process, again if it has ended. It does not wait until the
// node is ready.
func (c *cluster) start(m *member) {
	c.t.Helper()
	args := []string{"start", "--name", m.name, "--nats-addr", m.nats, "--http-addr", m.http,
		"--data-dir", filepath.Join(c.dir, m.name), "--cluster-addr", m.cluster, "--peers", strings.Join(m.peers, ",")}
	if m.advertise != "" {
		args = append(args, "--cluster-advertise", m.advertise)
	}
	if c.opts.servers != nil {
		args = append(args, "--servers", c.opts.servers(m.name))
	}
	if c.net != nil {
		args = append(args, "--insecure")
	}
	args = append(append(args, c.opts.args...), m.args...)
	binary := m.binary
	if binary == "" {
		binary = ripstop(c.t)
	}
	cmd := exec.Command(binary, args...)
	if c.net != nil {
		cmd = c.net.Command(m.host, binary, args...)
	}
	cmd.Env = append(cmd.Env, m.env...)
	c.save(m)
	m.p = launch(c.t, cmd)
	m.runs++
	m.up = true
}

// awaitReady waits until m says that it is ready, and has caught up.
func (c *cluster) awaitReady(m *member) {
	c.t.Helper()
	deadline := time.Now().Add(clusterTimeout)
	for {
		problem := c.unready(m)
		if problem == "" {
			return
		}
		select {
		case <-m.p.done:
			c.t.Fatalf("node %s ended, exit %d: %s", m.name, m.p.cmd.ProcessState.ExitCode(), tail(m.p.stderr.String(), 40))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("node %s is not ready after %s: %s\n%s", m.name, clusterTimeout, problem, tail(m.p.stderr.String(), 40))
		}
	}
}

// unready says why m is not ready, or "".
func (c *cluster) unready(m *member) string {
	status, body := c.page(m, "/ready")
	if status != http.StatusOK {
		return fmt.Sprintf("/ready: %d %s", status, body)
	}
	if !m.voter {
		return ""
	}
	info, err := c.stream()
	if err != nil {
		return err.Error()
	}
	return info.behind(m.name)
}

// page gets one of m's own pages; status 0 if there is no answer.
func (c *cluster) page(m *member, path string) (status int, body string) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.http + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(data)
}

func (c *cluster) byName(name string) *member {
	i := slices.IndexFunc(c.members, func(m *member) bool { return m.name == name })
	if i < 0 {
		c.t.Fatalf("no node is called %q", name)
	}
	return c.members[i]
}

// others are the members that are not among these.
func (c *cluster) others(not ...*member) []*member {
	var out []*member
	for _, m := range c.members {
		if !slices.Contains(not, m) {
			out = append(out, m)
		}
	}
	return out
}

func (c *cluster) signal(m *member, sig syscall.Signal) {
	c.t.Helper()
	if err := m.p.cmd.Process.Signal(sig); err != nil {
		c.t.Fatalf("signal %s to %s: %v", sig, m.name, err)
	}
}

// kill ends m at once, and waits for its end.
func (c *cluster) kill(m *member) {
	c.t.Helper()
	m.up = false
	c.signal(m, syscall.SIGKILL)
	<-m.p.done
}

// pause stops m's process where it stands; resume lets it go on.
func (c *cluster) pause(m *member) {
	c.t.Helper()
	m.up = false
	c.signal(m, syscall.SIGSTOP)
}

func (c *cluster) resume(m *member) {
	c.t.Helper()
	c.signal(m, syscall.SIGCONT)
	m.up = true
}

// stop ends m gracefully and checks that it says so.
func (c *cluster) stop(m *member) {
	c.t.Helper()
	m.up = false
	if code := m.p.stop(c.t); code != 0 {
		c.t.Errorf("node %s: exit %d after SIGTERM", m.name, code)
	}
}

// save writes the log of m's last run to a file.
func (c *cluster) save(m *member) {
	if m.p == nil {
		return
	}
	path := filepath.Join(c.dir, fmt.Sprintf("%s-%d.log", m.name, m.runs))
	head := fmt.Sprintf("# %s\n", strings.Join(m.p.cmd.Args, " "))
	if err := os.WriteFile(path, []byte(head+m.p.stderr.String()), 0o600); err != nil {
		c.t.Error(err)
	}
}

// close ends every process. The logs of a failed test are kept.
func (c *cluster) close() {
	for _, m := range c.members {
		if m.p != nil {
			m.p.cmd.Process.Kill()
		}
	}
	for _, m := range c.members {
		if m.p != nil {
			<-m.p.done
		}
		c.save(m)
	}
	for _, p := range c.proxies {
		p.Close()
	}
	if c.net != nil {
		if err := c.net.Close(); err != nil {
			c.t.Error(err)
		}
	}
	if c.t.Failed() {
		c.t.Logf("logs of the nodes: %s", c.keepLogs())
		for _, m := range c.members {
			if m.p != nil {
				c.t.Logf("end of the log of %s:\n%s", m.name, tail(m.p.stderr.String(), 15))
			}
		}
	}
}

// keepLogs copies the logs to where they outlive the test, and says where.
func (c *cluster) keepLogs() string {
	if c.logs != "" {
		return c.logs
	}
	parent := os.Getenv("RIPSTOP_E2E_RESULTS")
	dir, err := os.MkdirTemp(parent, "failed-"+strings.NewReplacer("/", "-", "=", "-").Replace(c.t.Name())+"-*")
	if err != nil {
		return err.Error()
	}
	found, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is well-formed
	for _, path := range found {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o600)
		}
		if err != nil {
			return err.Error()
		}
	}
	c.logs = dir
	return dir
}

// tail returns the last n lines of text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// node is m seen as a node of its own, for the helpers of single nodes.
func (m *member) node() *node {
	return &node{process: m.p, http: "http://" + m.http, nats: "nats://" + m.nats}
}

// callHTTP makes one call in a session of its own at m, and says what was wrong.
func (m *member) callHTTP(server, id string) string {
	h := &httpClient{target: server, urls: []string{"http://" + m.http}, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	if o, _, err := h.attempt(ctx, id); o != lab.OK {
		return fmt.Sprintf("%s at %s over HTTP: %s, %v", server, m.name, o, err)
	}
	return ""
}
