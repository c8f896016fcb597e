package wire

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/router"
)

// An instance that hangs keeps its connection: nothing but its silence tells. It
// says "alive" within 1.5 s, so one that has said nothing for probeAfter is asked,
// twice, and if it does not say even that it is there, it is held to be hung: its
// calls are given up, and it gets no more until it answers. The answer comes from
// the agent at once, however busy its server is.
const (
	probeAfter   = 1800 * time.Millisecond
	probeStream  = AliveEvery + 500*time.Millisecond // of streams, which may have nothing to say
	probeAgain   = 300 * time.Millisecond
	verdictAfter = 600 * time.Millisecond // of the first probe
	deafAfter    = time.Second            // of the first probe: the NATS server has not answered either

	patrolEvery = 100 * time.Millisecond
	doubtFrom   = 700 * time.Millisecond // of silence; a sweep must see it before probeAfter
	pingEvery   = 500 * time.Millisecond // of those held to be hung
	forgetAfter = 30 * time.Second       // nothing else says by then that it is gone
)

// SubjectSuspect and a server's name is where a caller says that an instance of
// it is silent, so that the node it is connected to looks. The body is a [Gone];
// the instance may be empty: the caller does not know which has its call.
const SubjectSuspect = "ripstop.v1.registry.suspect."

// place is an instance of a server.
type place struct{ server, instance string }

// target is what is silent or not: an instance, or whichever instance has a call
// that was not sent to one. Guarded by Client.mu, but for heard.
type target struct {
	place
	calls  int
	heard  atomic.Int64  // when its last frame came, as Client.since
	doubt  *doubt        // nil = none
	silent time.Duration // since when it is held to be hung; 0 = it is not
	pinged time.Duration
	hung   time.Duration // when it was known to be gone, after it had not answered; 0 = never
	news   chan struct{} // closed when it answers a probe, or is not there, if someone waits
}

// doubt is what is done about a target that has gone silent.
type doubt struct {
	k      *call
	wait   time.Duration // of silence, before it is asked
	probes int
	sent   time.Duration // the first probe
}

// since is the time since the client began; monotonic, and never 0.
func (c *Client) since() time.Duration { return time.Since(c.began) + 1 }

// targetOf returns what is known of an instance. c.mu is held.
func (c *Client) targetOf(p place) *target {
	t := c.targets[p]
	if t == nil {
		t = &target{place: p}
		c.targets[p] = t
	}
	return t
}

// OnSilent has f called for each instance found to hang. It must be set before
// the first request.
func (c *Client) OnSilent(f func(server, instance string)) { c.onSilent = f }

// OnDeaf has f called when the NATS server does not answer. It must be set before the first request.
func (c *Client) OnDeaf(f func()) { c.onDeaf = f }

// hangs is the error of a request that is not sent, or nil.
func (t *target) hangs(now time.Duration) error {
	if t.silent == 0 || t.heard.Load() > int64(t.silent) {
		return nil
	}
	return router.Errorf(router.ErrUnavailable, "instance %s of %s hangs: it has not answered for %s; nothing was executed", t.instance, t.server, (now - t.silent + probeAfter).Round(time.Millisecond))
}

// suspect notes that a call has gone silent. c.mu and the call's are held.
func (c *Client) suspect(k *call, silent time.Duration) {
	t := k.target
	if t.doubt != nil || silent < doubtFrom || t.silent != 0 {
		return
	}
	wait := probeAfter
	if k.stream && !k.heard.IsZero() {
		wait = probeStream
	}
	// Of two that can't be addressed, the one that has the call answers, but an
	// older one does not know how: it is only known to have said alive.
	asks := k.req.Instance != "" || k.heard.IsZero() || k.answers
	if asks && silent >= wait-time.Second-patrolEvery {
		t.doubt = &doubt{k: k, wait: wait}
		c.doubts = append(c.doubts, t)
	}
}

// patrol acts on doubts. A tick that comes late means that this process itself
// did not run: what it has not heard says nothing then.
func (c *Client) patrol() {
	now := c.since()
	late := now-c.patrolled > 3*patrolEvery || !c.nc.IsConnected()
	c.patrolled = now
	c.mu.Lock()
	var asked, hung, deaf []*target
	for _, t := range c.doubts {
		switch d := t.doubt; c.settle(t, now, late) {
		case doubtOver:
			t.doubt = nil
		case doubtAsk:
			asked = append(asked, &target{place: t.place, doubt: d})
		case doubtHung:
			t.doubt = nil
			hung = append(hung, &target{place: t.place, doubt: d})
		case doubtDeaf:
			t.doubt = nil
			deaf = append(deaf, &target{place: t.place, doubt: d})
		}
	}
	c.doubts = slices.DeleteFunc(c.doubts, func(t *target) bool { return t.doubt == nil })
	pings := c.pings(now)
	c.mu.Unlock()
	for _, t := range asked {
		c.ask(t.doubt)
	}
	for _, p := range pings {
		c.ping(p, false)
	}
	for _, t := range hung {
		c.hung(t.doubt.k, now)
	}
	for _, t := range deaf {
		c.deaf(t.doubt.k)
	}
}

type step uint8

const (
	doubtWait step = iota
	doubtAsk
	doubtHung
	doubtDeaf
	doubtOver
)

// settle says what is next about a doubted target. c.mu is held.
func (c *Client) settle(t *target, now time.Duration, late bool) step {
	d := t.doubt
	if c.pending[d.k.token] != d.k {
		return doubtOver // a sweep finds another, if there is one
	}
	quiet := now - max(time.Duration(t.heard.Load()), d.k.started.Sub(c.began))
	switch {
	case quiet < doubtFrom:
		return doubtOver
	case late:
		d.probes = 0
		return doubtWait
	case quiet < d.wait:
		return doubtWait
	case d.probes == 0:
		d.probes, d.sent = 1, now
		return doubtAsk
	case d.probes == 1 && now-d.sent >= probeAgain:
		d.probes = 2
		return doubtAsk
	case d.probes < 2 || now-d.sent < verdictAfter:
		return doubtWait
	case c.echo.Load() >= int64(d.sent):
		if t.instance != "" {
			t.silent = now
			c.silent = append(c.silent, t)
		}
		return doubtHung
	case now-d.sent >= deafAfter:
		return doubtDeaf
	}
	return doubtWait
}

// pings returns the hung targets to be asked again whether they hang. c.mu is
// held.
func (c *Client) pings(now time.Duration) []place {
	var ask []place
	c.silent = slices.DeleteFunc(c.silent, func(t *target) bool {
		if t.silent == 0 || t.heard.Load() > int64(t.silent) || now-t.silent > forgetAfter {
			t.silent = 0
			return true
		}
		if now-t.pinged >= pingEvery {
			t.pinged = now
			ask = append(ask, t.place)
		}
		return false
	})
	return ask
}

// hungFor is how long it is known of an instance that is gone that it had not
// answered before.
const hungFor = 2 * time.Second

// gone notes that an instance is gone: whoever comes back under that name is
// another. c.mu is held.
func (t *target) gone(now time.Duration) {
	if t.silent != 0 || t.doubt != nil && t.doubt.probes > 0 && t.heard.Load() < int64(t.doubt.sent) {
		t.hung = now
	}
	t.silent = 0
}

// Replies to probes go to tokens that no request has.
const (
	tokenAsked  = "_" // and the request's: from whoever has it
	tokenPinged = "=" // and server "=" instance
)

// ask asks whoever has a call whether it is there. The second time, the instance's
// node is told too.
func (c *Client) ask(d *doubt) {
	if d.probes == 2 {
		d.k.mu.Lock()
		g := Gone{d.k.server, d.k.instance}
		d.k.mu.Unlock()
		if data, err := json.Marshal(g); err == nil {
			_ = c.nc.Publish(SubjectSuspect+d.k.server, data)
		}
	}
	if d.k.req.Instance != "" {
		c.ping(place{d.k.server, d.k.req.Instance}, d.probes == 2)
		return
	}
	_ = c.nc.PublishMsg(&nats.Msg{
		Subject: ControlSubject(d.k.server, c.prefix+d.k.token), Reply: c.inbox + tokenAsked + d.k.token,
		Header: nats.Header{hdrControl: {controlProbe}},
	})
	c.listenToServer()
}

// listenToServer finds out whether the NATS server answers: if it does not, an
// instance's silence says nothing.
func (c *Client) listenToServer() {
	if !c.flushing.CompareAndSwap(false, true) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	c.work.Go(func() {
		defer c.flushing.Store(false)
		ctx, cancel := context.WithTimeout(c.ctx, deafAfter)
		defer cancel()
		if c.nc.FlushWithContext(ctx) == nil {
			c.echo.Store(int64(c.since()))
		}
	})
}

// ping asks an instance whether it is there; again: it did not answer before.
// What can't be published is as good as unanswered, but then the server is silent
// too.
func (c *Client) ping(p place, again bool) {
	msg := &nats.Msg{Subject: ProbeSubject(p.server, p.instance), Reply: c.inbox + tokenPinged + p.server + "=" + p.instance}
	if again {
		msg.Header = nats.Header{hdrControl: {controlAgain}}
	}
	_ = c.nc.PublishMsg(msg)
	c.listenToServer()
}

// onProbed takes the answers to probes.
func (c *Client) onProbed(token string, msg *nats.Msg) {
	now := c.since()
	asked, isAsked := strings.CutPrefix(token, tokenAsked)
	pinged, isPinged := strings.CutPrefix(token, tokenPinged)
	switch {
	case !isAsked && !isPinged:
		return
	}
	// nats-server says that nobody is there: the instance is gone, or the way to it
	// is not known yet. That is no answer, but one that hangs would be there.
	nobody := len(msg.Data) == 0 && msg.Header.Get("Status") != ""
	c.mu.Lock()
	defer c.mu.Unlock()
	if nobody && isAsked {
		return
	}
	if isAsked {
		if k := c.pending[asked]; k != nil {
			k.target.heard.Store(int64(now))
			k.mu.Lock()
			k.answers = true
			k.mu.Unlock()
		}
		return
	}
	server, instance, _ := strings.Cut(pinged, "=")
	if t := c.targets[place{server, instance}]; t != nil {
		if !nobody {
			t.heard.Store(int64(now))
		}
		if t.news != nil {
			close(t.news)
			t.news = nil
		}
	}
}

// hung gives up the calls to where k was sent.
func (c *Client) hung(k *call, now time.Duration) {
	c.giveUp(func(o *call) bool { return o == k || k.target.instance != "" && o.target == k.target },
		func(o *call) string {
			return "the instance does not answer, not even when asked whether it is there"
		})
	if t := k.target; t.instance != "" && c.onSilent != nil {
		c.onSilent(t.server, t.instance)
	}
}

// deaf gives up a call whose frames can't arrive.
func (c *Client) deaf(k *call) {
	c.giveUp(func(o *call) bool { return o == k }, func(*call) string { return "the NATS server that this caller is connected to does not answer" })
	if c.onDeaf != nil {
		c.onDeaf()
	}
}

// Silent reports whether an instance hangs: it is there and does not answer when
// asked twice within a time, or was found so before and has not answered since. If
// it can't be told, it does not. Within 0 it is not asked.
func (c *Client) Silent(ctx context.Context, server, instance string, within time.Duration) bool {
	start := c.since()
	c.mu.Lock()
	t := c.targetOf(place{server, instance})
	if t.hangs(start) != nil || t.hung != 0 && start-t.hung < hungFor && t.heard.Load() < int64(t.hung) {
		c.mu.Unlock()
		return true
	}
	if within == 0 {
		c.mu.Unlock()
		return false
	}
	t.calls++
	if t.news == nil {
		t.news = make(chan struct{})
	}
	news := t.news
	c.mu.Unlock()
	answered := c.asksTwice(ctx, t.place, news, within)
	c.mu.Lock()
	t.calls--
	hangs := !answered && ctx.Err() == nil && t.heard.Load() < int64(start) && c.echo.Load() >= int64(start) && c.targets[t.place] == t
	if hangs && t.silent == 0 {
		t.silent = c.since()
		c.silent = append(c.silent, t)
	}
	c.mu.Unlock()
	if hangs && c.onSilent != nil {
		c.onSilent(server, instance)
	}
	return hangs
}

// asksTwice reports whether an answer came. Time in which this process did not
// run does not count.
func (c *Client) asksTwice(ctx context.Context, p place, news <-chan struct{}, within time.Duration) bool {
	const slices = 20
	began := int64(c.since())
	tick := time.NewTicker(within / slices)
	defer tick.Stop()
	for i := 0; i < slices || i < 3*slices && c.echo.Load() < began; i++ { // longer while the NATS server is slow
		if i == 0 || i == slices/2 {
			c.ping(p, i > 0)
		}
		select {
		case <-news:
			return true
		case <-tick.C:
		case <-ctx.Done():
			return false
		case <-c.stop:
			return false
		}
	}
	return false
}
