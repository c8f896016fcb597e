package eras

import (
	"context"
	"slices"
	"sync"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// What a server speaks, as a request needs to know it.
const (
	eraUnknown int32 = iota
	eraLegacy        // legacy only
	eraModern        // modern only
	eraBoth          // or it does not say
)

// How long a request waits to learn what the server speaks. A legacy server may
// be one that does not answer what it does not know, so initialize rather goes
// ahead.
const (
	modernPatience = 30 * time.Second
	legacyPatience = 2 * time.Second
	probeTimeout   = time.Minute      // one Probe: npx downloads
	probeRest      = time.Second      // from a Probe that failed to the next
	doubtRest      = 10 * time.Second // from a Probe to the next if the server does not seem to be what it said
)

// learning is about finding out what the server speaks.
type learning struct {
	mu      sync.Mutex
	running int
	done    chan struct{} // closed when a running Probe has ended
	last    time.Time     // when the last one ended
}

// Probe implements [router.Backend].
func (w *wrapper) Probe(ctx context.Context) (router.Info, error) {
	l := &w.learns
	l.begin()
	info, err := w.inner.Probe(ctx)
	if err == nil {
		w.greets.know(info)
		w.era.Store(eraOf(info.Versions))
	}
	l.end()
	return info, err
}

func (l *learning) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running++; l.done == nil {
		l.done = make(chan struct{})
	}
}

func (l *learning) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	l.last = time.Now()
	close(l.done) // whoever waits looks again
	l.done = nil
	if l.running > 0 {
		l.done = make(chan struct{})
	}
}

// eraOf says what a server with these versions speaks. One that names none is
// left alone.
func eraOf(versions []string) int32 {
	modern := slices.ContainsFunc(versions, func(v string) bool { return v >= router.Version20260728 })
	legacy := slices.ContainsFunc(versions, func(v string) bool { return v < router.Version20260728 })
	switch {
	case modern && !legacy:
		return eraModern
	case legacy && !modern:
		return eraLegacy
	}
	return eraBoth
}

// speaks returns what the server speaks, and asks it if that is not known. If it
// does not say in time, the request goes to the server as it is.
func (w *wrapper) speaks(ctx context.Context, patience time.Duration) int32 {
	if era := w.era.Load(); era != eraUnknown {
		return era
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.learn():
	case <-ctx.Done():
	case <-timer.C:
	}
	return w.era.Load()
}

// learn asks the server what it speaks unless somebody does, and returns a channel
// that is closed when it has said so, or failed to.
func (w *wrapper) learn() <-chan struct{} {
	l := &w.learns
	l.mu.Lock()
	running := l.done
	rests := time.Since(l.last) < probeRest
	l.mu.Unlock()
	if running != nil {
		return running
	}
	done := make(chan struct{})
	if rests || w.era.Load() != eraUnknown || !w.spawn(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(w.ctx, probeTimeout)
		defer cancel()
		if _, err := w.Probe(ctx); err != nil {
			w.log.Debug("server does not say what it speaks", "instance", w.opts.Instance, "err", err)
		}
	}) {
		close(done)
	}
	return done
}

// forget makes the next request ask again: the server is not what it said.
func (w *wrapper) forget() {
	w.learns.mu.Lock()
	rested := time.Since(w.learns.last) > doubtRest
	w.learns.mu.Unlock()
	if rested {
		w.era.Store(eraUnknown)
	}
}

// doubt looks at the refusal of a modern request: the server may have been
// replaced by one that only speaks the legacy era.
func (w *wrapper) doubt(req *router.Request, reply *router.Reply) {
	if req.Message.Version != router.Version20260728 {
		return
	}
	if m, err := jsonrpc.Parse(reply.Body); err == nil && errorCode(m) == router.CodeUnsupportedVersion {
		w.forget()
	}
}
