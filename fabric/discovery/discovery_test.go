package discovery_test

import (
	"slices"
	"strings"
	"testing"

	"ripstop/fabric/discovery"
)

func TestParse(t *testing.T) {
	for entry, want := range map[string]string{
		"10.0.0.5:6222":       "10.0.0.5:6222",
		"10.0.0.5":            "10.0.0.5:6222",
		"n1.Example.com:7000": "n1.example.com:7000",
		" n1.example.com. ":   "n1.example.com:6222",
		"my_node-0":           "my_node-0:6222",
		"[fd00::5]:7000":      "[fd00::5]:7000",
		"[fd00::5]":           "[fd00::5]:6222",
		"fd00:0:0::5":         "[fd00::5]:6222",
		"::ffff:10.0.0.5":     "10.0.0.5:6222",
		"[fe80::1%eth0]:7000": "[fe80::1%eth0]:7000",
		"1.example:6222":      "1.example:6222",
	} {
		ps, err := discovery.Parse([]string{entry})
		if err != nil || len(ps) != 1 || ps[0].String() != want {
			t.Errorf("Parse(%q) = %v, %v, want %s", entry, ps, err, want)
			continue
		}
		if again, err := discovery.Parse(ps.Strings()); err != nil || !slices.Equal(again, ps) {
			t.Errorf("Parse(%q) = %v, %v", ps.Strings(), again, err)
		}
	}
	if ps, err := discovery.Parse(nil); err != nil || len(ps) != 0 {
		t.Errorf("Parse(nil) = %v, %v", ps, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for entry, want := range map[string]string{
		"":                      "empty entry",
		"  ":                    "empty entry",
		":6222":                 "no host",
		"a:":                    "port",
		"a:0":                   "between 1 and 65535",
		"a:65536":               "between 1 and 65535",
		"a:x":                   "between 1 and 65535",
		"a:1:2":                 "too many colons",
		"nats://a:6222":         "no scheme",
		"user@a:6222":           "no scheme, user",
		"a b":                   "not an address",
		"0.0.0.0:6222":          "not an address of one node",
		"[::]:6222":             "not an address of one node",
		"224.0.0.1":             "not an address of one node",
		"10.0.0":                "neither an IP address nor a name",
		"10.0.0.256:6222":       "neither an IP address nor a name",
		"a..b":                  "not a DNS name",
		"ä.example":             "not a DNS name",
		strings.Repeat("a", 64): "not a DNS name",
		"[fd00::5:6222":         "missing ']'",
	} {
		_, err := discovery.Parse([]string{"10.0.0.1:6222", entry})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `peer "`+entry+`"`) {
			t.Errorf("Parse(%q): %v, want the entry and %q", entry, err, want)
		}
	}
	if _, err := discovery.Parse([]string{"a:6222", "A"}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("an entry listed twice: %v", err)
	}
	if _, err := discovery.Parse(make([]string, discovery.MaxEntries+1)); err == nil {
		t.Error("too many entries are taken")
	}
}

func TestPeersContains(t *testing.T) {
	ps := parse(t, "10.0.0.5:6222", "n1.example", "[fd00::5]:7000")
	for addr, want := range map[string]bool{
		"10.0.0.5:6222": true, "10.0.0.5": true, "10.0.0.5:1": false, "N1.example:6222": true,
		"[fd00:0::5]:7000": true, "fd00::5": false, "0.0.0.0:6222": false, "": false,
	} {
		if got := ps.Contains(addr); got != want {
			t.Errorf("Contains(%q) = %t", addr, got)
		}
	}
}

func TestRoutes(t *testing.T) {
	member := func(addr string) discovery.Finding { return discovery.Finding{Addr: addr, Outcome: discovery.Member} }
	list := []string{"10.0.0.1:6222", "10.0.0.2:6222", "10.0.0.3:6222"}
	own := []string{"10.0.0.1:6222", "n1.example:6222"}
	for title, tt := range map[string]struct {
		peers  []string
		own    []string
		voters int
		found  []discovery.Finding
		tls    bool
		want   []string
	}{
		"a list":                   {list, own, 3, nil, false, list},
		"a list on all interfaces": {list, []string{"0.0.0.0:6222", "10.0.0.1:6222"}, 3, nil, false, list},
		"own address not known":    {list, []string{"[::]:7000"}, 3, nil, false, list},
		"a longer list": {append(slices.Clone(list), "10.0.0.4:6222", "10.0.0.5:6222"), own, 3, nil, false,
			[]string{"10.0.0.2:6222", "10.0.0.3:6222", "10.0.0.4:6222"}},
		"a seed":                    {list[1:2], own, 3, nil, false, []string{"10.0.0.1:6222", "10.0.0.1:6222", "10.0.0.2:6222"}},
		"a name":                    {[]string{"nodes.test"}, own, 3, nil, false, []string{"10.0.0.1:6222", "10.0.0.1:6222", "10.0.0.1:6222"}},
		"a name, on all interfaces": {[]string{"nodes.test"}, []string{":7000"}, 1, nil, false, []string{"127.0.0.1:7000"}},
		"a name, members found": {[]string{"nodes.test"}, own, 3,
			[]discovery.Finding{{Addr: "10.0.0.9:6222", Outcome: discovery.Refused}, {Addr: "10.0.0.8:6222", Outcome: discovery.OtherCluster}, member("10.0.0.2:6222")},
			false, []string{"10.0.0.1:6222", "10.0.0.1:6222", "10.0.0.2:6222/found1"}},
		"a name, more members found than voters": {[]string{"nodes.test", "10.0.0.2:6222"}, own, 3,
			[]discovery.Finding{member("10.0.0.2:6222"), member("10.0.0.3:6222"), member("10.0.0.4:6222"), member("10.0.0.5:6222")},
			false, []string{"10.0.0.2:6222", "10.0.0.3:6222/found1", "10.0.0.4:6222/found1"}},
		"a list with another cluster's address": {list, own, 3,
			[]discovery.Finding{member("10.0.0.2:6222"), {Addr: "10.0.0.3:6222", Outcome: discovery.Unauthorized}},
			false, []string{"10.0.0.1:6222", "10.0.0.1:6222", "10.0.0.2:6222"}},
		"a relay with other clusters' addresses": {list, []string{"10.0.0.7:6222"}, 0,
			[]discovery.Finding{{Addr: "10.0.0.1:6222", Outcome: discovery.OtherCluster}, {Addr: "10.0.0.2:6222", Outcome: discovery.NotNATS}, {Addr: "10.0.0.3:6222", Outcome: discovery.Refused}},
			false, []string{"10.0.0.3:6222"}},
		"nothing else, TLS":   {list[:2], own, 3, []discovery.Finding{{Addr: "10.0.0.2:6222", Outcome: discovery.Unauthorized}}, true, []string{"10.0.0.2:6222", "10.0.0.2:6222", "10.0.0.2:6222"}},
		"a name, TLS":         {[]string{"nodes.test"}, own, 3, nil, true, []string{"nodes.test:6222", "nodes.test:6222", "nodes.test:6222"}},
		"a relay":             {append(slices.Clone(list), "nodes.test"), []string{"10.0.0.7:6222"}, 0, []discovery.Finding{member("10.0.0.9:6222")}, false, append(slices.Clone(list), "10.0.0.9:6222/found1")},
		"a relay with a name": {[]string{"nodes.test"}, []string{"10.0.0.7:6222"}, 0, nil, false, nil},
	} {
		rs := routes(t, discovery.RouteConfig{Peers: parse(t, tt.peers...), Own: tt.own, Voters: tt.voters, Found: tt.found, Username: "u", Password: "p@:/", TLS: tt.tls})
		if got := hosts(rs); !slices.Equal(got, tt.want) {
			t.Errorf("%s: routes %q, want %q", title, got, tt.want)
		}
		for _, u := range rs {
			if p, _ := u.User.Password(); u.User.Username() != "u" || p != "p@:/" {
				t.Errorf("%s: credentials %v", title, u.User)
			}
		}
	}
	if _, err := discovery.Routes(discovery.RouteConfig{Peers: parse(t, "10.0.0.1"), Own: own, Voters: 1}); err != discovery.ErrAlone {
		t.Errorf("only itself listed: %v", err)
	}
}
