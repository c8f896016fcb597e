package aggregate

import (
	"encoding/json"
	"net/http"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Keys of _meta (MCP 2026-07-28, "Per-request metadata").
const (
	metaPrefix       = "io.modelcontextprotocol/"
	metaClientInfo   = metaPrefix + "clientInfo"
	metaCapabilities = metaPrefix + "clientCapabilities"
	metaLogLevel     = metaPrefix + "logLevel"
	metaServerInfo   = metaPrefix + "serverInfo"
	metaSubscription = metaPrefix + "subscriptionId"
)

// triple returns the metadata of a modern request as raw members of _meta. info
// is the client's Implementation or nil; level is raw JSON or nil.
func triple(info, capabilities, level []byte) []byte {
	out := join(entry(jsonrpc.MetaVersion, []byte(`"`+router.Version20260728+`"`)), entry(metaCapabilities, capabilities))
	if info != nil {
		out = join(out, entry(metaClientInfo, info))
	}
	if level != nil {
		out = join(out, entry(metaLogLevel, level))
	}
	return out
}

// withMeta returns a request's bytes with raw members put into params._meta.
func withMeta(raw, entries []byte) []byte {
	e := edit(raw)
	params := e.field(e.root(), "params")
	meta := e.field(params, "_meta")
	object := append(append([]byte(`"_meta":{`), entries...), '}')
	switch {
	case e.is(meta, '{'):
		e.add(meta, entries)
	case meta.some(): // null, or junk
		e.replace(meta, object[len(`"_meta":`):])
	case params.some():
		e.add(params, object)
	default:
		e.add(e.root(), append(append([]byte(`"params":{`), object...), '}'))
	}
	return e.done()
}

// withoutTriple returns a modern request's bytes without the metadata that only
// the modern era knows, and the log level it asked for.
func withoutTriple(raw []byte) (out []byte, level string) {
	e := edit(raw)
	meta := e.field(e.root(), "params", "_meta")
	level, _ = e.str(e.field(meta, metaLogLevel))
	e.remove(meta, func(key string) bool {
		switch key {
		case jsonrpc.MetaVersion, metaClientInfo, metaCapabilities, metaLogLevel:
			return true
		}
		return false
	})
	return e.done(), level
}

// cacheable reports whether results of method say how long they hold (MCP
// 2026-07-28, "Caching").
func cacheable(method string) bool {
	switch method {
	case "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read", "server/discover":
		return true
	}
	return false
}

// modernReply turns a legacy member's response m into a modern one with the
// given id. info is the member's serverInfo, or nil.
func modernReply(m *jsonrpc.Message, method string, id, info []byte) *router.Reply {
	if m.Error != nil {
		return modernError(m, id)
	}
	e := edit(m.Edit(jsonrpc.Edit{ID: id}))
	result := e.field(e.root(), "result")
	var entries []byte
	want := func(key, raw string) {
		if !e.field(result, key).some() {
			entries = join(entries, entry(key, []byte(raw)))
		}
	}
	want("resultType", `"complete"`)
	if cacheable(method) {
		want("ttlMs", "0")
		want("cacheScope", `"private"`)
	}
	if info != nil {
		named := entry(metaServerInfo, info)
		if meta := e.field(result, "_meta"); !e.is(meta, '{') {
			entries = join(entries, []byte(`"_meta":{`+string(named)+`}`))
		} else if !e.field(meta, metaServerInfo).some() {
			e.add(meta, named)
		}
	}
	e.add(result, entries)
	return &router.Reply{Body: e.done()}
}

// modernError likewise for an error response: the modern era has other codes
// and statuses.
func modernError(m *jsonrpc.Message, id []byte) *router.Reply {
	e := edit(m.Edit(jsonrpc.Edit{ID: id}))
	code, status := e.field(e.root(), "error", "code"), 0
	switch string(e.text(code)) {
	case "-32601":
		status = http.StatusNotFound
	case "-32002":
		e.replace(code, []byte("-32602"))
	}
	return &router.Reply{Body: e.done(), Status: status}
}

// legacyCapabilities returns a legacy client's capabilities for modern
// requests: without what would make a member ask for input, since that can't be
// passed on.
func legacyCapabilities(raw []byte) []byte {
	caps := map[string]json.RawMessage{}
	_ = json.Unmarshal(raw, &caps) // none are as good as unreadable ones
	for _, key := range []string{"elicitation", "sampling", "roots"} {
		delete(caps, key)
	}
	out, err := json.Marshal(caps)
	if err != nil || caps == nil {
		return []byte("{}")
	}
	return out
}
