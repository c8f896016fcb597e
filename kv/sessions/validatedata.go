package sessions

import (
	"context"
	"errors"
	"slices"
	"strings"

	"ripstop/kv"
)

// data checks every session's data against its list.
func (v *validation) data(ctx context.Context) error {
	bySession := map[string][]string{}
	for _, key := range v.sorted() {
		id, isList := strings.CutSuffix(key, manifestSuffix)
		if !isList {
			var isData bool
			if id, _, isData = strings.Cut(key, "."); !isData {
				continue
			}
		}
		if !v.keys[key].gone {
			bySession[id] = append(bySession[id], key)
		}
	}
	for id, keys := range bySession {
		if record, ok := v.keys[id]; !ok || record.gone {
			removed, err := v.s.dropOrphan(ctx, id)
			if err != nil {
				return err
			}
			if removed {
				v.find(id, FindingOrphan, true, "%d keys of data of a session that is not there", len(keys))
			}
			continue
		}
		if err := v.sessionData(ctx, id, keys); err != nil {
			return err
		}
	}
	return nil
}

// sessionData compares the data of one session with its list. Reads are not of
// one moment, so what differs is read again from the leader.
func (v *validation) sessionData(ctx context.Context, id string, keys []string) error {
	if v.matches(id, keys) {
		return nil
	}
	keys = append(keys, manifestKey(id))
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for {
		before := v.keys[manifestKey(id)].rev
		for _, key := range keys {
			e, err := v.s.bucket.Get(ctx, key)
			if err != nil {
				return err
			}
			v.keys[key] = look(e)
		}
		e, err := v.s.bucket.Get(ctx, manifestKey(id))
		if err != nil {
			return err
		}
		if e.Rev == v.keys[manifestKey(id)].rev { // nothing was written meanwhile
			break
		}
		if m := look(e); m.list != nil && m.bad == nil && m.rev != before {
			for key := range m.list.Keys {
				keys = append(keys, dataKey(id, key))
			}
			slices.Sort(keys)
			keys = slices.Compact(keys)
		}
	}
	if v.matches(id, keys) {
		return nil
	}
	return v.mendData(ctx, id, keys)
}

// matches reports whether keys are what the list of session id says.
func (v *validation) matches(id string, keys []string) bool {
	m := v.keys[manifestKey(id)]
	if m.bad != nil {
		return false
	}
	n := 0
	for _, key := range keys {
		d := v.keys[key]
		if d.gone || d.rev == 0 || key == manifestKey(id) {
			continue
		}
		if d.bad != nil || m.list == nil || m.list.Keys[d.data.Key][0] != d.data.Rev {
			return false
		}
		n++
	}
	return m.list == nil && n == 0 || m.list != nil && n == len(m.list.Keys)
}

// mendData reports what is wrong with a session's data. With repair the list is
// made what can be read.
func (v *validation) mendData(ctx context.Context, id string, keys []string) error {
	old := v.keys[manifestKey(id)]
	list := &manifest{Schema: recordSchema, Session: id, Keys: map[string]dataEntry{}, Mutation: v.s.mutation()}
	if old.list != nil && old.bad == nil {
		list.N, list.Epoch = old.list.N, old.list.Epoch
	}
	var bad []string
	for _, key := range keys {
		d := v.keys[key]
		switch {
		case d.gone || d.rev == 0 || key == manifestKey(id):
		case d.bad != nil:
			bad = append(bad, key)
		default:
			size, err := v.sizeOf(ctx, key)
			if err != nil {
				return err
			}
			list.Keys[d.data.Key] = dataEntry{d.data.Rev, size}
			list.N, list.Epoch = max(list.N, d.data.Rev), max(list.Epoch, d.data.Epoch)
			list.Bytes += len(d.data.Key) + int(size)
		}
	}
	list.N++
	repaired := false
	if v.repair {
		var err error
		if repaired, err = v.writeList(ctx, list, old.rev); err != nil {
			return err
		}
	}
	for _, key := range bad {
		if err := v.corrupt(ctx, key, v.keys[key]); err != nil {
			return err
		}
	}
	what := "it does not list what is there"
	if old.bad != nil {
		what = old.bad.Error()
	}
	v.find(manifestKey(id), FindingManifest, repaired, "revision %d: %s; %d keys can be read", old.rev, what, len(list.Keys))
	return nil
}

func (v *validation) sizeOf(ctx context.Context, key string) (uint64, error) {
	e, err := v.s.bucket.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	d, err := decodeDatum(e)
	return uint64(len(d.Value)), err
}

func (v *validation) writeList(ctx context.Context, list *manifest, over uint64) (bool, error) {
	data, err := kv.Encode(list)
	if err != nil {
		return false, err
	}
	rev, err := v.s.bucket.Update(ctx, manifestKey(list.Session), data, over)
	if errors.Is(err, kv.ErrConflict) {
		return false, nil // it changes; the next run sees
	}
	if err != nil {
		return false, err
	}
	v.s.data.forget(list.Session)
	v.s.index.Learn(kv.Entry{Key: manifestKey(list.Session), Value: data, Rev: rev})
	return true, nil
}
