package agent

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"ripstop/kv"
	"ripstop/router"
)

// standbyRetry is how often an instance asks again for a name that another
// holds, besides being told when it may be free.
const standbyRetry = 5 * time.Second

// keepRegistered registers the instance, again after every census, reconnect
// and change of its record, and never gives up.
func (a *Agent) keepRegistered() {
	const least, most = 50 * time.Millisecond, 5 * time.Second
	wait := least
	first := true
	said := ""
	if a.opts.After != nil {
		select {
		case <-a.opts.After:
		case <-a.ctx.Done():
			return
		}
	}
	for {
		retry := (<-chan time.Time)(nil)
		_, err := a.register()
		switch {
		case err == nil:
			wait, said = least, ""
			if first {
				first = false
				close(a.registered)
				a.log.Info("instance attached")
			}
		case a.ctx.Err() != nil || a.draining.Load():
			return
		case errors.Is(err, kv.ErrAlreadyRegistered):
			a.standBy(err)
			retry = time.After(standbyRetry)
		default:
			a.log.Debug("not registered yet", "err", err, "retry", wait)
			if errors.Is(err, kv.ErrRefused) && err.Error() != said { // nobody is just away
				said = err.Error()
				a.log.Warn("the node does not take the registration; trying again", "err", err)
			}
			retry = time.After(wait)
			wait = min(2*wait, most)
		}
		select {
		case <-a.ctx.Done():
			return
		case <-a.again:
		case <-retry:
		}
	}
}

// standBy takes the instance out of service: why says who has its name.
func (a *Agent) standBy(why error) {
	a.mu.Lock()
	before := a.asleep
	a.mu.Unlock()
	if err := a.leave(); err != nil {
		a.log.Warn("subscriptions not ended", "err", err)
	}
	if before {
		return
	}
	if a.opts.Standby {
		a.log.Info("standing by", "why", why)
		return
	}
	a.log.Warn("not attached", "err", why)
	select {
	case a.refused <- why:
	default:
	}
}

// holds reports whether an exclusive instance has the name.
func (a *Agent) holds() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joined
}

// register reports whether the registry's bucket has the record too, so that
// other nodes hear of it.
func (a *Agent) register() (stored bool, err error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return false, nil
	}
	l := a.line
	nc := l.nc
	cid, _ := nc.GetClientID() // 0 while not connected; the request below fails then
	conn := kv.Conn{ServerID: nc.ConnectedServerId(), ClientID: cid}
	if conn != a.record.Conn || a.changed || a.record.Seq == 0 {
		a.record.Conn = conn
		a.record.Seq++
		a.changed = false
	}
	record := a.record
	a.mu.Unlock()
	if stored, err = l.reg.Put(a.ctx, record); err != nil {
		return false, err
	}
	if err := a.join(l); err != nil {
		return false, err
	}
	if a.opts.Exclusive {
		a.probing.Do(func() { a.wg.Go(a.probe) })
	}
	return stored, nil
}

// registerSoon asks for another registration; it never blocks.
func (a *Agent) registerSoon() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// Reconnected tells the agent that its connection was re-established, so that
// its record carries the new one, and that its sessions may be others' by now.
func (a *Agent) Reconnected() {
	a.layer.Doubt()
	a.registerSoon()
}

// probe asks the server what it is, with backoff until it answers, and puts
// that into the registry.
func (a *Agent) probe() {
	wait := time.Second
	for {
		ctx, cancel := context.WithTimeout(a.ctx, a.opts.ProbeTimeout)
		info, err := a.opts.Backend.Probe(ctx)
		cancel()
		if a.ctx.Err() != nil {
			return
		}
		a.describe(info, err)
		a.registerSoon()
		if err == nil {
			return
		}
		a.log.Warn("the server does not say what it is", "err", err, "retry", wait)
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, time.Minute)
	}
}

func (a *Agent) describe(info router.Info, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed = true
	if err != nil {
		a.record.Problem = err.Error()
		return
	}
	a.record.Problem = ""
	a.record.Info = kv.Info{Name: info.Name, Version: info.Version, ProtocolVersions: info.Versions, Capabilities: info.Capabilities}
	a.record.Kinds = kinds(info.Capabilities)
	a.record.Eras = erasOf(info.Versions)
}

func erasOf(versions []string) []string {
	var legacy, modern bool
	for _, v := range versions {
		if v >= router.Version20260728 {
			modern = true
		} else {
			legacy = true
		}
	}
	var out []string
	if legacy {
		out = append(out, router.EraLegacy.String())
	}
	if modern {
		out = append(out, router.EraModern.String())
	}
	return out
}

// kinds lists what the capabilities say the server offers.
func kinds(capabilities json.RawMessage) []string {
	var caps map[string]json.RawMessage
	if json.Unmarshal(capabilities, &caps) != nil {
		return nil
	}
	var out []string
	for _, k := range []string{"tools", "resources", "prompts"} {
		if _, ok := caps[k]; ok {
			out = append(out, k)
		}
	}
	return out
}
