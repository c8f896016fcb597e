package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// What bare requests are sent as.
const (
	eraUnknown int32 = iota
	eraModern
	eraLegacy
)

const (
	clientInfo      = `{"name":"ripstop","version":"1"}`
	discoverTimeout = 5 * time.Second // then the server is taken for a legacy one
)

// Probe asks the server what it is: by server/discover (2026-07-28), and by
// initialize where that gets no answer. It keeps nothing open.
func (b *Backend) Probe(ctx context.Context) (router.Info, error) {
	if !b.enter(&b.calls) {
		return router.Info{}, b.errClosed()
	}
	defer b.calls.Done()
	info, modern, err := b.discover(ctx)
	if err != nil {
		return router.Info{}, err
	}
	if info.Versions == nil {
		var id string
		if info, id, err = b.handshake(ctx); err != nil {
			return router.Info{}, err
		}
		if id != "" {
			if _, err := b.end(ctx, &router.Request{Op: router.OpEnd, Session: id, Version: info.Versions[0]}); err != nil {
				b.log.Debug("probe's session not ended", "upstream", b.where(), "err", err)
			}
		}
	}
	b.setEra(modern)
	return info, nil
}

// speaksModern reports whether the server takes requests of 2026-07-28, and
// asks it the first time.
func (b *Backend) speaksModern(ctx context.Context) (bool, error) {
	if era := b.era.Load(); era != eraUnknown {
		return era == eraModern, nil
	}
	select {
	case b.probes <- struct{}{}:
		defer func() { <-b.probes }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if era := b.era.Load(); era != eraUnknown {
		return era == eraModern, nil
	}
	_, modern, err := b.discover(ctx)
	if err == nil {
		b.setEra(modern)
	}
	return modern, err
}

func (b *Backend) setEra(modern bool) {
	if modern {
		b.era.Store(eraModern)
	} else {
		b.era.Store(eraLegacy)
	}
}

// discover sends server/discover. A server that does not know it gives an empty
// Info and no error; so does one whose answer makes no sense, since initialize
// will tell more.
func (b *Backend) discover(ctx context.Context) (info router.Info, modern bool, err error) {
	m, err := b.ask("server/discover", nil)
	if err != nil {
		return info, false, err
	}
	c := call{
		req:  &router.Request{Era: router.EraModern, Version: router.Version20260728, Message: m},
		body: m.WithParamsMeta(clientMeta...), id: m.ID, out: router.Discard,
	}
	limited, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	_, err = b.post(limited, &c)
	switch {
	case ctx.Err() != nil, errors.Is(err, router.ErrUnavailable):
		return info, false, err
	case err != nil || c.answer == nil || c.answer.Result == nil:
		return info, false, nil
	}
	var r struct {
		SupportedVersions []string        `json:"supportedVersions"`
		Capabilities      json.RawMessage `json:"capabilities"`
		ServerInfo        implementation  `json:"serverInfo"`
		Meta              struct {
			ServerInfo implementation `json:"io.modelcontextprotocol/serverInfo"`
		} `json:"_meta"`
	}
	if err := json.Unmarshal(c.answer.Result, &r); err != nil || len(r.SupportedVersions) == 0 {
		return info, false, nil
	}
	who := r.Meta.ServerInfo
	if who.Name == "" {
		who = r.ServerInfo
	}
	info = router.Info{Name: who.Name, Version: who.Version, Versions: r.SupportedVersions, Capabilities: r.Capabilities}
	return info, slices.Contains(r.SupportedVersions, router.Version20260728), nil
}

type implementation struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// handshake opens a session of the backend's own, as a client without
// capabilities. The id is "" if the server is stateless. Info has exactly one
// version, the negotiated one.
func (b *Backend) handshake(ctx context.Context) (info router.Info, id string, err error) {
	m, err := b.ask("initialize", []byte(`{"protocolVersion":"`+router.Version20251125+`","capabilities":{},"clientInfo":`+clientInfo+`}`))
	if err != nil {
		return info, "", err
	}
	reply, err := b.initialize(ctx, &router.Request{Message: m}, router.Discard)
	if err != nil {
		return info, "", err
	}
	answer, err := jsonrpc.Parse(reply.Body)
	if err != nil {
		return info, "", b.errHandshake(err.Error())
	}
	var r struct {
		ProtocolVersion string          `json:"protocolVersion"`
		Capabilities    json.RawMessage `json:"capabilities"`
		ServerInfo      implementation  `json:"serverInfo"`
	}
	if answer.Error != nil {
		err = errors.New(string(answer.Error))
	} else if err = json.Unmarshal(answer.Result, &r); err == nil && r.ProtocolVersion == "" {
		err = errors.New("no protocolVersion in the result")
	}
	if err == nil {
		err = b.initialized(ctx, reply.Session, r.ProtocolVersion)
	}
	if err != nil {
		b.abandon(reply.Session)
		var known *router.Error
		if errors.As(err, &known) || ctx.Err() != nil {
			return info, "", err
		}
		return info, "", b.errHandshake(err.Error())
	}
	info = router.Info{Name: r.ServerInfo.Name, Version: r.ServerInfo.Version, Versions: []string{r.ProtocolVersion}, Capabilities: r.Capabilities}
	return info, reply.Session, nil
}

func (b *Backend) initialized(ctx context.Context, session, version string) error {
	m, err := jsonrpc.Parse(jsonrpc.NewRequest(nil, "notifications/initialized", nil))
	if err != nil {
		return err
	}
	_, err = b.pass(ctx, &router.Request{Session: session, Version: version, Message: m}, router.Discard)
	return err
}

// abandon ends a session that is of no use, without waiting for it.
func (b *Backend) abandon(id string) {
	b.mu.Lock()
	s := b.sessions[id]
	delete(b.sessions, id)
	b.mu.Unlock()
	if s != nil {
		b.background(deleteTimeout, func(ctx context.Context) { b.deleteUpstream(ctx, s.upstream) })
	}
}

func (b *Backend) errHandshake(why string) error {
	return router.Errorf(router.ErrBackend, "%s refuses to initialize: %s", b.where(), clip(why, maxErrorText))
}

// ask builds a request of the backend's own.
func (b *Backend) ask(method string, params []byte) (*jsonrpc.Message, error) {
	return jsonrpc.Parse(jsonrpc.NewRequest(strconv.AppendUint(nil, b.seq.Add(1), 10), method, params))
}
