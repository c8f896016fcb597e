package kv

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unique"
)

// apply takes what the bucket's index has news of.
func (r *Registry) apply(news []Entry) {
	r.change.Lock()
	defer r.change.Unlock()
	keys := make([]string, 0, len(news))
	for _, e := range news {
		if server, ok := strings.CutPrefix(e.Key, claimPrefix); ok {
			r.applyClaim(server, e)
		} else {
			r.applyRecord(e)
			keys = append(keys, e.Key)
		}
	}
	r.show(keys)
	for _, e := range news {
		r.touched(e.Key)
	}
}

func (r *Registry) applyRecord(e Entry) {
	if e.Gone {
		delete(r.records, e.Key)
		return
	}
	i, err := decodeInstance(e)
	if err != nil {
		r.log.Warn("registry record ignored", "key", e.Key, "revision", e.Rev, "err", err)
		if old := r.records[e.Key]; old != nil { // what it said before still counts
			i = old.Instance
		}
	}
	r.records[e.Key] = &record{i, e.Rev}
}

func (r *Registry) applyClaim(server string, e Entry) {
	if e.Gone {
		delete(r.claims, server)
		return
	}
	c, err := decodeClaim(e)
	if err != nil {
		r.log.Warn("exclusive registration ignored", "key", e.Key, "revision", e.Rev, "err", err)
		if old := r.claims[server]; old != nil {
			c = old.Claim
		}
	}
	r.claims[server] = &claimRecord{c, e.Rev}
}

// decodeInstance returns an empty record with an error.
func decodeInstance(e Entry) (*Instance, error) {
	i, err := decodeRecord[Instance](e)
	if err == nil && i.Key() != e.Key {
		err = fmt.Errorf("it says %q of itself", i.Key())
	}
	if err != nil {
		return &Instance{}, err
	}
	intern(&i)
	return &i, nil
}

func decodeClaim(e Entry) (Claim, error) {
	c, err := decodeRecord[Claim](e)
	if err == nil && c.Key() != e.Key {
		return Claim{}, fmt.Errorf("it says %q of itself", c.Key())
	}
	return c, err
}

// decodeRecord decodes a value whose checksum the index has seen to.
func decodeRecord[T any](e Entry) (T, error) {
	var v T
	if e.Value == nil {
		return v, ErrCorrupt
	}
	err := json.Unmarshal(e.Value, &v)
	return v, err
}

// intern makes records share what they have in common, which is most of a
// record's memory.
func intern(i *Instance) {
	same := func(s *string) { *s = unique.Make(*s).Value() }
	for _, s := range []*string{&i.Server, &i.Node, &i.Agent, &i.Transport, &i.Scope, &i.Software, &i.Info.Name, &i.Info.Version, &i.Conn.ServerID, &i.Mutation.Node} {
		same(s)
	}
	for _, list := range []*[]string{&i.Eras, &i.Kinds, &i.Info.ProtocolVersions} {
		for n := range *list {
			same(&(*list)[n])
		}
		*list = slices.Clip(*list)
	}
	i.Info.Capabilities = slices.Clip(i.Info.Capabilities)
}

// effective is what counts of a key; nil if nothing. The caller holds r.change.
func (r *Registry) effective(key string) *Instance {
	if i := r.own[key]; i != nil {
		return i
	}
	rec := r.records[key]
	if rec == nil || rec.Server == "" || rec.Node == r.opts.Node || r.hides(rec.Node, rec.Conn.ServerID) {
		return nil
	}
	return rec.Instance
}

// show brings what is shown of keys up to date and tells the watchers. The
// caller holds r.change.
func (r *Registry) show(keys []string) {
	byServer := map[string][]string{}
	for _, key := range keys {
		server, _, _ := strings.Cut(key, ".")
		byServer[server] = append(byServer[server], key)
	}
	var changes []Change
	for server, keys := range byServer {
		changes = append(changes, r.showServer(server, keys)...)
	}
	for _, c := range changes {
		for _, f := range r.watch {
			f(c)
		}
	}
}

func (r *Registry) showServer(server string, keys []string) []Change {
	old := r.byServer[server] // only written under r.change
	slices.Sort(keys)
	keys = slices.Compact(keys)
	next := make([]*Instance, 0, len(old)+len(keys))
	var changes []Change
	at := 0
	for _, key := range keys { // both lists are sorted: merge them
		id := key[len(server)+1:]
		for at < len(old) && old[at].Instance < id {
			next = append(next, old[at])
			at++
		}
		was := at < len(old) && old[at].Instance == id
		now := r.effective(key)
		if now != nil {
			next = append(next, now)
		}
		switch {
		case now != nil && (!was || !same(old[at], now)):
			changes = append(changes, Change{Instance: *now})
		case now == nil && was:
			changes = append(changes, Change{Instance: *old[at], Gone: true})
		}
		if was {
			at++
		}
	}
	next = append(next, old[at:]...)
	if len(changes) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count += len(next) - len(old)
	if len(next) == 0 {
		delete(r.byServer, server)
	} else {
		r.byServer[server] = slices.Clip(next)
	}
	return changes
}

// same reports whether two records of a key say the same. Every write has a
// mutation id of its own; what was not written yet has a sequence.
func same(a, b *Instance) bool {
	return a.Mutation == b.Mutation && a.Run == b.Run && a.Seq == b.Seq && a.Node == b.Node && a.Conn == b.Conn
}
