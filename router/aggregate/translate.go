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

// triple returns the metadata of a modern request. info is the client's
// Implementation or nil; level is raw JSON or nil.
func triple(info, capabilities, level []byte) []jsonrpc.Member {
	out := []jsonrpc.Member{
		{Key: jsonrpc.MetaVersion, Value: []byte(`"` + router.Version20260728 + `"`)},
		{Key: metaCapabilities, Value: capabilities},
	}
	if info != nil {
		out = append(out, jsonrpc.Member{Key: metaClientInfo, Value: info})
	}
	if level != nil {
		out = append(out, jsonrpc.Member{Key: metaLogLevel, Value: level})
	}
	return out
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

// modernResult turns a legacy member's result m into a modern one with the given
// id. info is the member's serverInfo, or nil.
func modernResult(m *jsonrpc.Message, method string, id, info []byte) []byte {
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
	return e.done()
}

// modernError likewise for an error response: the modern era has other codes
// and statuses.
func modernError(m *jsonrpc.Message, id []byte) (body []byte, status int) {
	e := edit(m.Edit(jsonrpc.Edit{ID: id}))
	code := e.field(e.root(), "error", "code")
	switch string(e.text(code)) {
	case "-32601":
		status = http.StatusNotFound
	case "-32002":
		e.replace(code, []byte("-32602"))
	}
	return e.done(), status
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
