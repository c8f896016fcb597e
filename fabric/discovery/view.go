package discovery

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// AddressView is what is known of one address.
type AddressView struct {
	Finding
	Connected bool   `json:"connected"`       // a route leads to the node found there
	Added     bool   `json:"added"`           // the Finder gave the server a route there
	Error     string `json:"error,omitempty"` // what is wrong and what to do
}

// EntryView is what is known of one configured peer.
type EntryView struct {
	Entry     string        `json:"entry"`
	LookedUp  time.Time     `json:"looked_up"`
	Error     string        `json:"error,omitempty"` // of the last lookup; the addresses are then those of an earlier one
	Addresses []AddressView `json:"addresses"`
}

// View is a snapshot of the search, for status.
type View struct {
	Entries   []EntryView   `json:"entries"`
	Others    []AddressView `json:"others,omitempty"` // remembered peers and addresses no entry leads to now
	Connected []string      `json:"connected"`        // names of the nodes routes lead to
	Routes    []string      `json:"routes"`           // of the server, without credentials
	Warnings  []string      `json:"warnings,omitempty"`
}

// View returns what is known now.
func (f *Finder) View() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := View{Routes: redacted(f.applied)}
	listed := map[string]bool{}
	for _, e := range f.entries {
		if e.peer.Host == "" {
			continue
		}
		ev := EntryView{Entry: e.peer.String(), LookedUp: e.lookedUp, Error: errText(e.err)}
		for _, a := range e.addrs {
			listed[a] = true
			ev.Addresses = append(ev.Addresses, f.address(a))
		}
		v.Entries = append(v.Entries, ev)
	}
	for a := range f.found {
		if !listed[a] {
			v.Others = append(v.Others, f.address(a))
		}
	}
	slices.SortFunc(v.Others, func(a, b AddressView) int { return strings.Compare(a.Addr, b.Addr) })
	v.Connected = f.settledPeers()
	v.Warnings = f.warnings()
	return v
}

func (f *Finder) address(addr string) AddressView {
	x := f.found[addr]
	x.Addr = addr // an address not probed yet has an empty finding
	l := f.links[addr]
	return AddressView{Finding: x, Connected: x.Outcome == Member && f.connected(x), Added: l != nil && l.round > 0, Error: errText(x.Err)}
}

// Addrs returns the addresses at which the node called name is or was, those of
// all peers if none is known. It does not block.
func (f *Finder) Addrs(name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := map[string]bool{}
	if a := f.peers[name].addr; a != "" {
		set[a] = true
	}
	for addr, x := range f.found {
		if x.Outcome == Member && x.Identity.Name == name {
			set[addr] = true
		}
	}
	if f.cfg.Memory != nil {
		for _, s := range f.cfg.Memory.Peers() {
			if s.Name == name {
				set[s.Addr] = true
			}
		}
	}
	if len(set) == 0 {
		for _, e := range f.entries {
			for _, a := range e.addrs {
				set[a] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// Misconfigured says which peers are of no use, and why, as far as waiting does
// not mend it: what a person must put right.
func (f *Finder) Misconfigured() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.misconfigured()
}

func (f *Finder) misconfigured() []string {
	var out []string
	for _, x := range f.found {
		if x.Outcome.misconfigured() {
			out = append(out, x.Err.Error())
		}
	}
	for _, e := range f.entries {
		if e.err != nil {
			out = append(out, e.err.Error())
		}
	}
	slices.Sort(out)
	return out
}

// warnings are what a person should look at. f.mu is held.
func (f *Finder) warnings() []string {
	out := f.misconfigured()
	ids := map[string][]Finding{}
	for _, x := range f.found {
		if x.Outcome == Member && !slices.ContainsFunc(ids[x.Identity.Name], func(y Finding) bool { return y.Identity.ID == x.Identity.ID }) {
			ids[x.Identity.Name] = append(ids[x.Identity.Name], x)
		}
	}
	for name, xs := range ids {
		if len(xs) > 1 {
			slices.SortFunc(xs, func(a, b Finding) int { return strings.Compare(a.Addr, b.Addr) })
			out = append(out, fmt.Sprintf("node %s runs twice, at %s and at %s; stop one, or give it another --name", name, xs[0].Addr, xs[1].Addr))
		}
	}
	if !f.since.IsZero() {
		out = append(out, fmt.Sprintf("no other node is connected since %s", f.since.UTC().Format(time.RFC3339)))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func redacted(routes []*url.URL) []string {
	out := make([]string, len(routes))
	for i, u := range routes {
		out[i] = u.Host
	}
	return out
}
