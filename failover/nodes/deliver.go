package nodes

import (
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"ripstop/failover"
)

// deliver hands events on, in order.
func (r *Runner) deliver() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.news:
		}
		for {
			r.mu.Lock()
			events := r.queue
			r.queue = nil
			ids := make([]int, 0, len(r.watchers))
			for id := range r.watchers {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			fs := make([]func(failover.Event), len(ids))
			for i, id := range ids {
				fs[i] = r.watchers[id]
			}
			r.mu.Unlock()
			if len(events) == 0 {
				break
			}
			for _, e := range events {
				r.deliverOne(e, fs)
			}
		}
	}
}

func (r *Runner) deliverOne(e failover.Event, watchers []func(failover.Event)) {
	for _, f := range watchers {
		f(e)
	}
	r.metrics.count(e, time.Since(e.At))
	level := slog.LevelInfo
	switch e.Kind {
	case failover.NodeUnhealthy, failover.NodeDegraded, failover.PartitionDetected:
		level = slog.LevelWarn
	case failover.NodeDown:
		if e.Cause != failover.Stopped {
			level = slog.LevelWarn
		}
	case failover.BlipIgnored:
		level = slog.LevelDebug
	}
	r.opts.Logger.Log(r.ctx, level, string(e.Kind), "node", e.Node, "reason", e.Reason)
	data, err := json.Marshal(Event{Event: e, Observer: r.opts.Name, Region: r.opts.Self().Region})
	if err == nil {
		err = r.opts.Conn.Publish(subjectEvents+string(e.Kind), data)
	}
	if err != nil && r.ctx.Err() == nil {
		r.opts.Logger.Warn("event not published", "kind", e.Kind, "err", err)
	}
}
