package stdio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

const (
	methodListen     = "subscriptions/listen"
	metaSubscription = "io.modelcontextprotocol/subscriptionId"
)

// modernStatus returns the HTTP status that MCP 2026-07-28 gives a JSON-RPC
// error (transports, "Streamable HTTP").
func modernStatus(rawError []byte) int {
	var e struct {
		Code int `json:"code"`
	}
	if json.Unmarshal(rawError, &e) != nil {
		return 0
	}
	switch e.Code {
	case jsonrpc.CodeMethodNotFound:
		return http.StatusNotFound
	case router.CodeHeaderMismatch, router.CodeMissingCapability, router.CodeUnsupportedVersion:
		return http.StatusBadRequest
	}
	return 0
}

// pushSubscribed passes a notification of a subscription to the client that
// listens, under the id the client knows. It reports whether m was one. These
// are rare and small enough to be re-encoded.
func (c *conn) pushSubscribed(m *jsonrpc.Message) bool {
	if !bytes.Contains(m.Params, []byte(metaSubscription)) {
		return false
	}
	var p struct {
		Meta map[string]json.RawMessage `json:"_meta"`
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return false
	}
	cl := c.byID(p.Meta[metaSubscription])
	if cl == nil || cl.method != methodListen {
		return p.Meta[metaSubscription] != nil // its listener has gone
	}
	params, err := rename(m.Params, cl.clientID)
	if err == nil {
		cl.push(jsonrpc.NewRequest(nil, m.Method, params))
	}
	return true
}

// restoreListenResult returns the last word of a subscription for its client.
func restoreListenResult(m *jsonrpc.Message, id []byte) []byte {
	result, err := rename(m.Result, id)
	if err != nil {
		return m.Edit(jsonrpc.Edit{ID: id})
	}
	return jsonrpc.NewResult(id, result)
}

// rename sets the subscription id in an object's _meta.
func rename(raw, id []byte) ([]byte, error) {
	object, meta := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	if err := json.Unmarshal(object["_meta"], &meta); err != nil {
		return nil, fmt.Errorf("read _meta: %w", err)
	}
	if meta[metaSubscription] == nil {
		return raw, nil
	}
	meta[metaSubscription] = id
	return setKey(object, "_meta", meta)
}

// setKey sets one key of a decoded object and encodes it, without the HTML
// escapes of json.Marshal.
func setKey(object map[string]json.RawMessage, key string, value any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return nil, fmt.Errorf("encode %s: %w", key, err)
	}
	object[key] = bytes.Clone(bytes.TrimSpace(b.Bytes()))
	b.Reset()
	if err := enc.Encode(object); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
