package sessions

import (
	"bytes"
	"encoding/json"
	"strings"
)

// pool makes records share what is the same in many of them: names, and the
// initialize params that every run of a client sends alike.
type pool struct {
	strings map[string]string
	raws    map[string]json.RawMessage
	live    int // entries after the last renewal
}

// share replaces what r has by what is shared.
func (p *pool) share(r *Record) {
	if p.strings == nil {
		p.strings, p.raws = map[string]string{}, map[string]json.RawMessage{}
	}
	for _, s := range []*string{&r.Server, &r.Instance, &r.Node, &r.Home, &r.Version, &r.OnMove, &r.Principal, &r.Cause, &r.Mutation.Node} {
		*s = p.string(*s)
	}
	r.Initialize, r.LogLevel = p.raw(r.Initialize), p.raw(r.LogLevel)
	if len(r.Subscriptions) > 0 {
		m := make(map[string]json.RawMessage, len(r.Subscriptions)) // the old one may be read by others
		for uri, params := range r.Subscriptions {
			m[p.string(uri)] = p.raw(params)
		}
		r.Subscriptions = m
	}
}

func (p *pool) string(s string) string {
	if s == "" {
		return ""
	}
	same, ok := p.strings[s]
	if !ok {
		same = strings.Clone(s)
		p.strings[same] = same
	}
	return same
}

func (p *pool) raw(m json.RawMessage) json.RawMessage {
	if m == nil {
		return nil
	}
	same, ok := p.raws[string(m)]
	if !ok {
		same = bytes.Clone(m)
		p.raws[string(m)] = same
	}
	return same
}

// renew forgets what no record has any more, once that may be half of it.
func (p *pool) renew(records map[string]*Record) {
	if len(p.strings)+len(p.raws) < 2*p.live+1024 {
		return
	}
	*p = pool{}
	for id, r := range records {
		same := *r
		p.share(&same)
		records[id] = &same
	}
	p.live = len(p.strings) + len(p.raws)
}
