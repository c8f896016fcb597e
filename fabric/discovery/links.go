package discovery

import (
	"net/url"
	"time"
)

// maxLinks bounds how many routes are added to those a server started with.
const maxLinks = 64

// link is what the Finder did about one address beyond the routes the server was
// started with.
type link struct {
	waiting time.Time // a member that is not connected, since then; zero otherwise
	added   time.Time // when it was last given a route; zero = never
	round   int       // how often: part of the route's path
	lost    time.Time // not a member, since then; zero otherwise
	dial    string    // host:port the route leads to
}

// links decides which addresses need a route of their own. nats-server starts an
// attempt for each route that is new to it and ends the attempt when it leads
// to a node already connected, so a second attempt at the same address needs a
// route that differs: the path does, which routes ignore otherwise.
type links map[string]*link

// judge takes in a finding. c is the connection to the node found, if any; grace
// is how long that is left to come by itself; dial is for a route that is added now.
func (ls links) judge(x Finding, c conn, dial string, grace time.Duration, now time.Time, t Timing) {
	l := ls[x.Addr]
	if x.Outcome != Member {
		if l != nil {
			ls.lose(x, l, now, t)
		}
		return
	}
	if l == nil {
		if c.settled || len(ls) >= maxLinks {
			return
		}
		l = &link{}
		ls[x.Addr] = l
	}
	l.lost = time.Time{}
	switch {
	case c.settled:
		l.waiting = time.Time{}
		if l.round == 0 {
			delete(ls, x.Addr)
		}
		return
	case l.waiting.IsZero():
		l.waiting = now
	}
	if c.id == "" && now.Sub(l.waiting) >= grace && (l.added.IsZero() || now.Sub(l.added) >= t.Again) {
		l.added, l.dial = now, dial // a route that stands is never changed: that would cut it
		l.round++
	}
}

// lose takes back the route of an address that is no member any more: at once if
// it is known to lead elsewhere, later if it just does not answer.
func (ls links) lose(x Finding, l *link, now time.Time, t Timing) {
	l.waiting = time.Time{}
	if l.lost.IsZero() {
		l.lost = now
	}
	if l.round == 0 || x.Outcome.misconfigured() || x.Outcome == Self || now.Sub(l.lost) >= t.Drop {
		delete(ls, x.Addr)
	}
}

// routes returns the routes added.
func (ls links) routes(user, password string) []*url.URL {
	var out []*url.URL
	for _, l := range ls {
		if l.round > 0 {
			out = append(out, routeURL(l.dial, user, password, roundPath(l.round)))
		}
	}
	return out
}
