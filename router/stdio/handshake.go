package stdio

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

const (
	// discoverPatience is how long a child may leave server/discover
	// unanswered until it is sent initialize as well: some legacy servers
	// ignore what they don't know, others (npx) are only slow to start.
	discoverPatience = 5 * time.Second

	// discoverGrace is how long an answer to server/discover may come after
	// that to initialize; go-sdk handles the two at once.
	discoverGrace = 250 * time.Millisecond
)

// hello is what a kept child said of itself.
type hello struct {
	modern bool
	info   router.Info
	result []byte // of initialize; nil if modern
}

// clientInfo is how this side introduces itself.
var clientInfo = func() string {
	version := "devel"
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		version = bi.Main.Version
	}
	return `{"name":"ripstop","version":` + jsonrpc.Quote(version) + `}`
}()

// modernMeta is the metadata of a request of MCP 2026-07-28.
var modernMeta = map[string]json.RawMessage{
	jsonrpc.MetaVersion:                          json.RawMessage(`"` + router.Version20260728 + `"`),
	"io.modelcontextprotocol/clientInfo":         json.RawMessage(clientInfo),
	"io.modelcontextprotocol/clientCapabilities": json.RawMessage("{}"),
}

// startFailed makes any failure of a handshake one for the client.
func startFailed(err error) error {
	var e *router.Error
	if errors.As(err, &e) && e.Code != router.CodeOutcomeUnknown {
		return err
	}
	return router.Errorf(router.ErrBackend, "the server did not start: %v; nothing was executed", err)
}

// greet is the handshake of the kept child: server/discover, or initialize if
// it does not speak 2026-07-28.
func (b *Backend) greet(ctx context.Context, c *conn) error {
	err := b.introduce(ctx, c)
	if err == nil {
		b.known.Store(c.hello.Load())
	} else if b.known.Load() == nil && !errors.Is(err, errRetry) {
		b.noDisc.Store(false) // discovery was not to blame
	}
	return err
}

func (b *Backend) introduce(ctx context.Context, c *conn) error {
	if b.noDisc.Load() {
		return b.initialize(ctx, c)
	}
	modern, err := b.discover(ctx, c)
	if err != nil || modern {
		return err
	}
	if c.hello.Load() != nil { // initialized meanwhile: discovery only costs time here
		b.noDisc.Store(true)
		return nil
	}
	if err := b.initialize(ctx, c); err != nil {
		return b.withoutDiscover(ctx, err)
	}
	if b.opts.Shared {
		b.noDisc.Store(true) // sessions are on this link now: it must stay what it is
	}
	return nil
}

// withoutDiscover makes the link start again without server/discover, in case
// that was what the child could not take.
func (b *Backend) withoutDiscover(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return startFailed(err)
	}
	b.noDisc.Store(true)
	return fmt.Errorf("%w: %w", errRetry, startFailed(err))
}

// discover tries server/discover. If the child does not answer it, discover
// tries initialize too, and sets c.hello if that is what the child answers.
func (b *Backend) discover(ctx context.Context, c *conn) (modern bool, err error) {
	params, err := json.Marshal(map[string]any{"_meta": modernMeta})
	if err != nil {
		return false, fmt.Errorf("encode server/discover: %w", err)
	}
	cl, err := c.request(ctx, "server/discover", params)
	if err != nil {
		return false, b.withoutDiscover(ctx, err)
	}
	early, cancel := context.WithTimeout(ctx, discoverPatience)
	defer cancel()
	o, answered, err := cl.await(early)
	if err != nil {
		return false, b.withoutDiscover(ctx, err)
	}
	if answered {
		return b.discovered(c, o), nil
	}
	initErr := b.initialize(ctx, c)
	if initErr == nil {
		late, cancel := context.WithTimeout(ctx, discoverGrace)
		defer cancel()
		ctx = late
	}
	o, answered, err = cl.await(ctx)
	if answered && b.discovered(c, o) {
		return true, nil
	}
	c.remove(cl)
	if initErr != nil {
		return false, b.withoutDiscover(ctx, cmp.Or(initErr, err))
	}
	return false, nil
}

// await waits for an answer to a request of this side's own, and leaves it in
// flight if ctx ends first. The error says that the child is gone.
func (cl *call) await(ctx context.Context) (o outcome, answered bool, err error) {
	select {
	case <-cl.wake:
	default:
		select {
		case <-cl.wake:
		case <-ctx.Done():
			return outcome{}, false, nil
		}
	}
	_, _, o = cl.take()
	if err := o.failure(cl); err != nil {
		return outcome{}, false, err
	}
	return o, true, nil
}

// result returns a response's result, or its error as one.
func (o *outcome) result(cl *call) ([]byte, error) {
	if err := o.failure(cl); err != nil {
		return nil, err
	}
	m, err := jsonrpc.Parse(o.body)
	if err != nil {
		return nil, fmt.Errorf("read answer to %s: %w", cl, err)
	}
	if m.Error != nil {
		return nil, fmt.Errorf("the server answered %s with error %s", cl, m.Error)
	}
	return m.Result, nil
}

// discovered reads a response to server/discover and reports whether the child
// speaks the modern era.
func (b *Backend) discovered(c *conn, o outcome) bool {
	raw, err := o.result(&call{method: "server/discover"})
	if err != nil {
		return false
	}
	var r struct {
		Versions     []string        `json:"supportedVersions"`
		Capabilities json.RawMessage `json:"capabilities"`
		Meta         struct {
			Server serverInfo `json:"io.modelcontextprotocol/serverInfo"`
		} `json:"_meta"`
		Server serverInfo `json:"serverInfo"`
	}
	if json.Unmarshal(raw, &r) != nil || !slices.Contains(r.Versions, router.Version20260728) {
		return false
	}
	if r.Meta.Server == (serverInfo{}) {
		r.Meta.Server = r.Server
	}
	c.hello.Store(&hello{modern: true, info: router.Info{
		Name: r.Meta.Server.Name, Version: r.Meta.Server.Version, Versions: r.Versions, Capabilities: r.Capabilities}})
	return true
}

type serverInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// initialize is the legacy handshake of the kept child. A child that sessions
// share is told that clients can be asked things, since some of them can; for
// those that can't, kept.asked declines. Roots it is not told of: they are each
// session's own.
func (b *Backend) initialize(ctx context.Context, c *conn) error {
	caps := "{}"
	if b.opts.Shared {
		caps = `{"elicitation":{},"sampling":{}}`
	}
	raw, err := c.ask(ctx, "initialize", []byte(`{"protocolVersion":"`+router.Version20251125+`","capabilities":`+caps+`,"clientInfo":`+clientInfo+`}`))
	if err != nil {
		return startFailed(err)
	}
	var r struct {
		Version      string          `json:"protocolVersion"`
		Capabilities json.RawMessage `json:"capabilities"`
		Server       serverInfo      `json:"serverInfo"`
	}
	if err := json.Unmarshal(raw, &r); err != nil || r.Version == "" {
		return startFailed(fmt.Errorf("its result of initialize has no protocolVersion: %.200s", raw))
	}
	if err := c.notify(ctx, jsonrpc.NewRequest(nil, "notifications/initialized", nil)); err != nil {
		return startFailed(err)
	}
	c.hello.Store(&hello{result: raw, info: router.Info{
		Name: r.Server.Name, Version: r.Server.Version, Versions: []string{r.Version}, Capabilities: r.Capabilities}})
	if k, ok := c.owner.(*kept); ok {
		return k.replay().restore(ctx, c)
	}
	return nil
}

// withMeta returns params with the entries that its _meta lacks.
func withMeta(params []byte, entries map[string]json.RawMessage) ([]byte, error) {
	object, meta := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if params != nil {
		if err := json.Unmarshal(params, &object); err != nil {
			return nil, fmt.Errorf("read params: %w", err)
		}
	}
	if raw := object["_meta"]; raw != nil {
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, fmt.Errorf("read params._meta: %w", err)
		}
	}
	all := maps.Clone(entries)
	maps.Copy(all, meta)
	return setKey(object, "_meta", all)
}
