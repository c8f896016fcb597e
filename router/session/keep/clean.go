package keep

import (
	"context"
	"time"

	"ripstop/kv/sessions"
)

// CleanOptions say when sessions are cleaned up, and by whom.
type CleanOptions struct {
	Every time.Duration // between looks
	Idle  time.Duration // how long a session whose instance is gone is kept for a client that may ask
	Leads func() bool   // whether this node is the one that cleans up
}

// Clean ends sessions that nobody will ask for again, until ctx ends: those
// whose instance has been gone for Idle. A session whose instance is there is
// that one's to end. It also removes what ended sessions have left.
func (k *Keep) Clean(ctx context.Context, opts CleanOptions) {
	tick := time.NewTicker(opts.Every)
	defer tick.Stop()
	gone := map[string]time.Time{} // instances that sessions name and nobody has, since when
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !opts.Leads() {
			clear(gone)
			continue
		}
		k.clean(ctx, opts, gone, time.Now())
	}
}

func (k *Keep) clean(ctx context.Context, opts CleanOptions, gone map[string]time.Time, now time.Time) {
	var orphans []sessions.Record
	named := map[string]bool{}
	for _, r := range k.store.Idle(now.Add(-opts.Idle), func(string) bool { return false }) {
		if k.there(&r) {
			continue
		}
		named[r.Instance] = true
		if since, known := gone[r.Instance]; !known {
			gone[r.Instance] = now
		} else if now.Sub(since) >= opts.Idle {
			orphans = append(orphans, r)
		}
	}
	for instance := range gone {
		if !named[instance] {
			delete(gone, instance)
		}
	}
	for _, r := range orphans {
		if err := k.store.End(ctx, r.ID, r.Rev); err == nil {
			k.stats.cleaned.WithLabelValues("orphan").Inc()
			k.tell(EventEnded, &r, nil, causeIdle)
			k.log.Info("session ended: its instance is gone and nobody has asked for it", "session", r.ID, "server", r.Server, "instance", r.Instance)
		}
	}
	swept, err := k.store.Sweep(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		k.log.Debug("data of ended sessions not swept", "err", err)
	case swept.Data > 0:
		k.stats.cleaned.WithLabelValues("data").Add(float64(swept.Data))
		k.log.Info("data of ended sessions removed", "sessions", swept.Data)
	}
}
