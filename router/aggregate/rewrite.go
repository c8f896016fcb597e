package aggregate

import (
	"bytes"

	"ripstop/router/jsonrpc"
)

// rewriteReply returns a member's response to method with the URIs in it as the
// aggregate names them.
func rewriteReply(server, method string, body []byte) ([]byte, error) {
	switch method {
	case "tools/call", "prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe":
	default:
		return body, nil
	}
	// Most results have no URI and are not looked at further. No encoder
	// escapes letters, so the key stands as it is if it is there.
	if !bytes.Contains(body, []byte(`"uri"`)) {
		return body, nil
	}
	m, err := parseReply(server, body)
	if err != nil {
		return nil, err
	}
	e, to := edit(m.Raw), uriPrefix(server)
	e.prefix(e.field(e.root(), "error", "data", "uri"), to)
	result := e.field(e.root(), "result")
	switch method {
	case "tools/call":
		e.items(e.field(result, "content"), func(c span) { e.content(c, to) })
	case "prompts/get":
		e.items(e.field(result, "messages"), func(msg span) {
			c := e.field(msg, "content")
			e.content(c, to)
			e.items(c, func(c span) { e.content(c, to) })
		})
	case "resources/read":
		e.items(e.field(result, "contents"), func(c span) { e.prefix(e.field(c, "uri"), to) })
	}
	return e.done(), nil
}

// content rewrites one content block: the URI of a resource_link, or of an
// embedded resource.
func (e *editor) content(block span, to string) {
	switch kind, _ := e.str(e.field(block, "type")); kind {
	case "resource_link":
		e.prefix(e.field(block, "uri"), to)
	case "resource":
		e.prefix(e.field(block, "resource", "uri"), to)
	}
}

// rewriteNotification likewise for a member's notification: the URI of a
// resource, and the logger of a log message, which becomes "<server>" or
// "<server>/<logger>".
func rewriteNotification(server string, m *jsonrpc.Message) []byte {
	switch m.Method {
	case methodUpdated:
		e := edit(m.Raw)
		e.prefix(e.field(e.root(), "params", "uri"), uriPrefix(server))
		return e.done()
	case "notifications/message":
		e := edit(m.Raw)
		params := e.field(e.root(), "params")
		if logger := e.field(params, "logger"); e.is(logger, '"') {
			e.prefix(logger, server+"/")
		} else if !logger.some() {
			e.add(params, entry("logger", []byte(jsonrpc.Quote(server))))
		}
		return e.done()
	}
	return m.Raw
}

// withName returns a request with the tool, prompt or resource it is about
// replaced, parsed again.
func withName(m *jsonrpc.Message, name string) (*jsonrpc.Message, error) {
	return jsonrpc.Parse(m.Edit(jsonrpc.Edit{Name: []byte(jsonrpc.Quote(name))}))
}

// withParam returns a request's bytes with a value of params set.
func withParam(m *jsonrpc.Message, key string, raw []byte) []byte {
	e := edit(m.Raw)
	params := e.field(e.root(), "params")
	switch old := e.field(params, key); {
	case old.some():
		e.replace(old, raw)
	case params.some():
		e.add(params, entry(key, raw))
	default:
		e.add(e.root(), append(append([]byte(`"params":{`), entry(key, raw)...), '}'))
	}
	return e.done()
}
