package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"ripstop/kv/sessions"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"ripstop/fabric"
	"ripstop/fabric/raft"
	"ripstop/failover"
	"ripstop/router/access"
	"ripstop/router/wire"
)

// setting is one key of a node's configuration. It can be given as a flag, as
// RIPSTOP_<KEY> in the environment, or in ripstop.yaml, in that order.
type setting struct {
	key     string
	value   any // the default; its type is the setting's
	help    string
	example string
}

// nodeSettingsList is every setting of `ripstop start`, in the order shown.
var nodeSettingsList = []setting{
	{"name", "", "node name; kept in the data directory after the first start", "n1"},
	{"data-dir", "./ripstop-data", "directory for everything that lasts", "/var/lib/ripstop"},
	{"nats-addr", "127.0.0.1:4222", "listen here for NATS clients (port 0 picks one)", "127.0.0.1:4223"},
	{"http-addr", "127.0.0.1:8080", "listen here for MCP over Streamable HTTP, /health, /ready and /metrics", "127.0.0.1:8081"},
	{"region", fabric.DefaultRegion, "region this node is in; a cluster's nodes share it", "us-east-1"},
	{"cluster-addr", "", "listen here for the other nodes of a cluster; empty runs a node on its own", "10.0.0.5:6222"},
	{"cluster-advertise", "", "host:port at which the other nodes reach --cluster-addr, if it differs", "n1.example.com:6222"},
	{"peers", []string{}, "cluster addresses of the nodes, this one's among them; a DNS name may stand for many", "a:6222,b:6222,c:6222"},
	{"voters", []string{}, "names of the 3 or 5 nodes that vote first, or their number where names end in ordinals (3 with --name ripstop-4: ripstop-0 to ripstop-2); default: the nodes at --peers", "n1,n2,n3"},
	{"timing", "lan", "how soon faults are noticed: lan, wan or stock; the same on every node", "wan"},
	{"secret-file", "", "file with the secret that the nodes of a cluster share", "/etc/ripstop/secret"},
	{"node-check-interval", 5 * time.Second, "how often the other nodes are checked; what happens to their routes is seen at once", "2s"},
	{"health-check-timeout", 2 * time.Second, "how long such a check may take; less than the interval", "1s"},
	{"failover-threshold", 3, "checks in a row that must fail before a node, with no other sign of trouble, is down", "2"},
	{"stability-window", 1500 * time.Millisecond, "how long a node's silence must last before it is down, and its return before it is up", "3s"},
	{"demo", true, "attach the built-in server 'demo'; in a cluster the default is false", "false"},
	{"servers", "", "attach the servers of this mcpServers file, and follow its changes", "mcp.json"},
	{"token-file", "", "file with the token that HTTP clients (Bearer) and NATS clients (user client) must present", "/etc/ripstop/token"},
	{"agent-token-file", "", "file with the token of NATS user agent, who attaches servers; default: that of --token-file", "/etc/ripstop/agent-token"},
	{"operator-token-file", "", "file with the token of NATS user operator, who reads buckets and runs `ripstop admin`; default: that of --token-file", "/etc/ripstop/operator-token"},
	{"users-file", "", "file with more users, each with a token and rights of its own (docs/security.md)", "/etc/ripstop/users.yaml"},
	{"tls-cert", "", "certificate (PEM) to show NATS and HTTP clients; turns TLS on", "/etc/ripstop/n1.crt"},
	{"tls-key", "", "private key of --tls-cert", "/etc/ripstop/n1.key"},
	{"tls-ca", "", "CA certificates (PEM) that clients' certificates are verified with", "/etc/ripstop/ca.crt"},
	{"tls-verify", false, "demand a certificate of every client, but for /health and /ready", "true"},
	{"cluster-tls-cert", "", "certificate to show other nodes, who verify it; default: --tls-cert", "/etc/ripstop/n1.crt"},
	{"cluster-tls-key", "", "private key of --cluster-tls-cert; default: --tls-key", "/etc/ripstop/n1.key"},
	{"cluster-tls-ca", "", "CA certificates that other nodes' are verified with; default: --tls-ca", "/etc/ripstop/ca.crt"},
	{"insecure", false, "listen beyond loopback without a token", "true"},
	{"allowed-origins", []string{}, "web origins that may call the HTTP edge, beyond loopback's own", "https://app.example.com"},
	{"allowed-hosts", []string{}, "host names the HTTP edge answers to on loopback, beyond localhost", "mcp.test"},
	{"session-idle-timeout", 30 * time.Minute, "end a session that was not used for this long", "10m"},
	{"session-cleanup-interval", 5 * time.Minute, "how often sessions are looked for that nobody will ask for again", "1m"},
	{"event-durability", "memory", "where messages of streams are kept for clients that resume them elsewhere: memory (of all voters), file, or off", "file"},
	{"drain-timeout", 30 * time.Second, "how long calls in flight may take to finish at shutdown", "1m"},
	{"log-level", "info", "debug, info, warn or error", "debug"},
	{"log-format", "text", "text or json", "json"},
}

const envPrefix = "RIPSTOP_"

// configFile is read when it exists, unless --config names another.
const configFile = "ripstop.yaml"

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// addSettings defines the flags of a node on cmd.
func addSettings(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("config", "", "configuration file; default "+configFile+" if it exists ("+envName("config")+")")
	for _, s := range nodeSettingsList {
		help := s.help + " (" + envName(s.key) + ")"
		switch v := s.value.(type) {
		case string:
			f.String(s.key, v, help)
		case bool:
			f.Bool(s.key, v, help)
		case time.Duration:
			f.Duration(s.key, v, help)
		case int:
			f.Int(s.key, v, help)
		case []string:
			f.StringSlice(s.key, v, help)
		}
	}
}

// loaded is the configuration as read, before it is checked.
type loaded struct {
	v    *viper.Viper
	cmd  *cobra.Command
	file string // "" = none
}

// load reads flags, environment and file.
func load(cmd *cobra.Command) (*loaded, error) {
	v := viper.New()
	v.SetEnvPrefix("RIPSTOP")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	if err := v.BindPFlags(cmd.Flags()); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	l := &loaded{v: v, cmd: cmd}
	path := v.GetString("config")
	if path == "" {
		if _, err := os.Stat(configFile); errors.Is(err, fs.ErrNotExist) {
			return l, nil
		}
		path = configFile
	}
	v.SetConfigFile(path)
	if err := v.ReadInConfig(); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	l.file = path
	return l, l.checkKeys()
}

// checkKeys refuses keys that mean nothing: a misspelt one would be a default
// that nobody chose.
func (l *loaded) checkKeys() error {
	known := make([]string, 0, len(nodeSettingsList))
	for _, s := range nodeSettingsList {
		known = append(known, s.key)
	}
	var errs []error
	keys := l.v.AllKeys()
	slices.Sort(keys)
	for _, key := range keys {
		if l.v.InConfig(key) && !slices.Contains(known, key) {
			hint := ""
			if near := closest(key, known); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			errs = append(errs, fmt.Errorf("configuration %s: unknown key %q%s", l.file, key, hint))
		}
	}
	return errors.Join(errs...)
}

// origin says where a key's value came from.
func (l *loaded) origin(key string) string {
	if l.cmd.Flags().Changed(key) {
		return "flag --" + key
	}
	if _, ok := os.LookupEnv(envName(key)); ok {
		return "env " + envName(key)
	}
	if l.file != "" && l.v.InConfig(key) {
		return "file " + l.file
	}
	return "default"
}

// nodeSettings is a node's checked configuration.
type nodeSettings struct {
	Name, DataDir, NATSAddr, HTTPAddr  string
	Demo                               bool
	Servers                            string
	Region                             string
	Cluster                            *fabric.Cluster // nil = a node on its own
	Monitor                            failover.Config
	Token, AgentToken, OperatorToken   string
	Users                              []access.User
	TLS                                *fabric.TLS // of NATS and HTTP clients; nil = in clear
	Verify                             bool        // demand certificates of clients
	reread                             func() (secrets, error)
	AllowedOrigins, AllowedHosts       []string
	SessionIdle, SessionCleanup, Drain time.Duration
	EventDurability                    string
	LogLevel                           slog.Level
	LogFormat                          string
}

// settings checks the configuration. Every problem is named, with its origin.
func (l *loaded) settings() (*nodeSettings, error) {
	v := l.v
	s := &nodeSettings{
		Name: v.GetString("name"), DataDir: v.GetString("data-dir"),
		NATSAddr: v.GetString("nats-addr"), HTTPAddr: v.GetString("http-addr"),
		Servers:        v.GetString("servers"),
		AllowedOrigins: v.GetStringSlice("allowed-origins"), AllowedHosts: v.GetStringSlice("allowed-hosts"),
		LogFormat: v.GetString("log-format"),
	}
	var errs []error
	bad := func(key string, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s (%s): %s", key, l.origin(key), fmt.Sprintf(format, args...)))
	}
	s.Demo = l.boolean("demo", bad)
	insecure := l.boolean("insecure", bad)
	s.SessionIdle = l.duration("session-idle-timeout", bad)
	s.SessionCleanup = l.duration("session-cleanup-interval", bad)
	s.EventDurability = v.GetString("event-durability")
	switch s.EventDurability {
	case sessions.EventsMemory, sessions.EventsFile, sessions.EventsOff:
	default:
		bad("event-durability", "%q is not %s, %s or %s", s.EventDurability, sessions.EventsMemory, sessions.EventsFile, sessions.EventsOff)
	}
	s.Drain = l.duration("drain-timeout", bad)
	if err := s.LogLevel.UnmarshalText([]byte(v.GetString("log-level"))); err != nil {
		bad("log-level", "%q is not debug, info, warn or error", v.GetString("log-level"))
	}
	if s.LogFormat != "text" && s.LogFormat != "json" {
		bad("log-format", "%q is not text or json", s.LogFormat)
	}
	if s.Name != "" && !validNodeName(s.Name) {
		bad("name", "%q: use letters, digits, '-', '_' and '.', up to 64", s.Name)
	}
	s.Region = v.GetString("region")
	who := l.secrets(bad)
	s.Token, s.AgentToken, s.OperatorToken, s.Users = who.Tokens.Client, who.Tokens.Agent, who.Tokens.Operator, who.Users
	s.TLS, s.Verify = l.tls(bad)
	s.reread = func() (secrets, error) { return l.reread(s) }
	for _, key := range []string{"nats-addr", "http-addr"} {
		if err := checkListen(v.GetString(key), s.guarded() || insecure, "anyone could call every server", "--token-file"); err != nil {
			bad(key, "%v", err)
		}
	}
	s.Cluster = l.cluster(insecure, bad)
	if s.Cluster != nil && l.origin("demo") == "default" {
		s.Demo = false
	}
	s.Monitor = failover.Config{
		Interval: l.duration("node-check-interval", bad), Timeout: l.duration("health-check-timeout", bad),
		Threshold: l.integer("failover-threshold", bad), Stability: l.duration("stability-window", bad),
		Software: buildVersion(), Wire: wire.Versions(),
	}
	if err := s.Monitor.Validate(); err != nil && len(errs) == 0 {
		bad("node-check-interval", "%v", err)
	}
	return s, errors.Join(errs...)
}

// cluster reads what makes the node one of several, or nil.
func (l *loaded) cluster(insecure bool, bad complain) *fabric.Cluster {
	v := l.v
	c := &fabric.Cluster{
		Addr: v.GetString("cluster-addr"), Advertise: v.GetString("cluster-advertise"),
		Peers: list(v, "peers"), Voters: list(v, "voters"), Secret: l.token("secret-file", bad),
	}
	var err error
	if c.Timing, err = raft.ByName(v.GetString("timing")); err != nil {
		bad("timing", "%v", err)
	}
	if c.Addr == "" {
		for _, key := range []string{"peers", "voters", "cluster-advertise", "cluster-tls-cert", "cluster-tls-key", "cluster-tls-ca"} {
			if l.origin(key) != "default" {
				bad(key, "goes with --cluster-addr, the address at which this node meets the others")
			}
		}
		return nil
	}
	c.TLS = l.routeTLS(bad)
	if c.Voters, err = ordinals(c.Voters, v.GetString("name")); err != nil {
		bad("voters", "%v", err)
	}
	if err := checkListen(c.Addr, c.Secret != "" || insecure, "anyone could join the cluster", "--secret-file"); err != nil {
		bad("cluster-addr", "%v", err)
	}
	return c
}

// ordinals turns a number of voters into the names that a StatefulSet gives its
// first pods; other lists stay as they are.
func ordinals(voters []string, name string) ([]string, error) {
	if len(voters) != 1 {
		return voters, nil
	}
	n, err := strconv.Atoi(voters[0])
	if err != nil {
		return voters, nil // a name
	}
	at := strings.LastIndexByte(name, '-')
	if _, err := strconv.Atoi(name[at+1:]); err != nil || at < 1 {
		return nil, fmt.Errorf("%d counts nodes by the ordinals of their names, and --name %q does not end in one, such as ripstop-0; name the voters instead", n, name)
	}
	if n < 1 || n > 99 {
		return nil, fmt.Errorf("%d voters: 3 or 5 nodes vote", n)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = name[:at+1] + strconv.Itoa(i)
	}
	return names, nil
}

// list reads a list, also where the environment gives it with commas.
func list(v *viper.Viper, key string) []string {
	var out []string
	for _, item := range v.GetStringSlice(key) {
		for _, part := range strings.Split(item, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// token reads the file that key names; "" if it names none.
func (l *loaded) token(key string, bad complain) string {
	path := l.v.GetString(key)
	if path == "" {
		return ""
	}
	token, err := readToken(path)
	if err != nil {
		bad(key, "%v", err)
	}
	return token
}

type complain func(key, format string, args ...any)

func (l *loaded) boolean(key string, bad complain) bool {
	switch text := strings.ToLower(l.v.GetString(key)); text {
	case "true", "1", "yes", "on":
		return true
	case "false", "0", "no", "off":
		return false
	default:
		bad(key, "%q is not true or false", text)
		return false
	}
}

func (l *loaded) duration(key string, bad complain) time.Duration {
	text := l.v.GetString(key)
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		bad(key, "%q is not a duration above zero, such as 30s or 10m", text)
	}
	return d
}

func (l *loaded) integer(key string, bad complain) int {
	text := l.v.GetString(key)
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		bad(key, "%q is not a number above zero", text)
	}
	return n
}

func validNodeName(name string) bool {
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.", c) >= 0) {
			return false
		}
	}
	return len(name) <= 64
}

// readToken reads a token from a file, surrounding white space removed.
func readToken(path string) (string, error) {
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 16 {
		return "", fmt.Errorf("%s holds %d characters; a token has at least 16 (`openssl rand -hex 32 > %s` makes one)", path, len(token), path)
	}
	// nats-server takes a password that begins like this for a bcrypt hash.
	if strings.HasPrefix(token, "$2") || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s: a token is printable ASCII without spaces, and does not begin with $2 (`openssl rand -hex 32 > %s` makes one)", path, path)
	}
	return token, nil
}

// checkListen refuses an address that would offer the fabric to the network
// without authentication.
func checkListen(addr string, safe bool, danger, flag string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port, such as 127.0.0.1:8080", addr)
	}
	if safe || host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s is reachable from other machines, and %s; give %s FILE, or --insecure if that is meant", addr, danger, flag)
}

// logger makes the node's log, to stderr.
func (s *nodeSettings) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
