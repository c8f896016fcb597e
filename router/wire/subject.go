// Package wire is MCP on NATS, wire version 1: subjects, headers, frames, and
// the client that speaks it. docs/wire.md is its specification.
package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Subject prefixes.
const (
	prefixRequest  = "mcp.v1.req."  // mcp.v1.req.<server>.<method>[.<name>]: any instance
	prefixInstance = "mcp.v1.inst." // mcp.v1.inst.<server>.<instance>.<method>[.<name>]: that one
	prefixControl  = "mcp.v1.ctl."  // mcp.v1.ctl.<server>.<token>: cancel and keep-alive of one request
)

// QueueGroup is the queue group of every instance on its server's requests.
const QueueGroup = "mcp"

// Pseudo-methods for what is not a JSON-RPC call. An MCP method can't begin
// with "_" on the wire: see EncodeToken.
const (
	tokenResponse = "_response" // the client's answer to a server's request
	tokenListen   = "_listen"   // the legacy session's own stream
	tokenEnd      = "_end"      // end the legacy session
	tokenProbe    = "_probe"    // is the instance there?
)

// maxToken is the longest name that stands in a subject as itself, in bytes of
// its encoded form. nats-server closes a connection whose control line passes
// 4096 bytes (server/const.go, MAX_CONTROL_LINE_SIZE); a subject, a reply
// subject and two sizes share it.
const maxToken = 1024

const hexUpper = "0123456789ABCDEF"

// EncodeToken writes any text as one NATS subject token. Letters, digits and
// "-" stand for themselves, as does "_" except in front; every other byte is
// %XX with upper-case hex. The empty text is "%". Text whose encoding passes
// 1024 bytes is "~" and the hex SHA-256 of it. Different texts have different
// tokens, and a text has exactly one.
func EncodeToken(text string) string {
	if text == "" {
		return "%"
	}
	plain := true
	for i := range len(text) {
		if !literal(text[i], i) {
			plain = false
			break
		}
	}
	if plain && len(text) <= maxToken {
		return text
	}
	b := make([]byte, 0, len(text)+16)
	for i := range len(text) {
		if c := text[i]; literal(c, i) {
			b = append(b, c)
		} else {
			b = append(b, '%', hexUpper[c>>4], hexUpper[c&15])
		}
		if len(b) > maxToken {
			sum := sha256.Sum256([]byte(text))
			return "~" + hex.EncodeToString(sum[:])
		}
	}
	return string(b)
}

func literal(c byte, i int) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' && i > 0
}

// maxMethod bounds a method's name, in bytes. The longest of MCP has 36.
const maxMethod = 128

// operation returns the tail of the subject that req must travel on: the
// method with "/" as ".", and the name. Where a method has named forms
// (tools/call), a longer method under it (tools/call/x) is refused: it would
// share its subject, and so its permission, with a name.
func operation(req *router.Request) (string, error) {
	switch req.Op {
	case router.OpListen:
		return tokenListen, nil
	case router.OpEnd:
		return tokenEnd, nil
	}
	m := req.Message
	if m.Kind == jsonrpc.Response {
		return tokenResponse, nil
	}
	if len(m.Method) > maxMethod {
		return "", router.Errorf(router.ErrRefused, "method of %d bytes: the fabric carries up to %d", len(m.Method), maxMethod)
	}
	for _, named := range []string{"tools/call/", "prompts/get/", "resources/read/", "resources/subscribe/", "resources/unsubscribe/"} {
		if strings.HasPrefix(m.Method, named) {
			return "", router.Errorf(router.ErrRefused, "method %q would share a subject with a name under %q", m.Method, strings.TrimSuffix(named, "/"))
		}
	}
	tail := methodTokens(m.Method)
	if m.Named {
		tail += "." + EncodeToken(m.Name)
	}
	return tail, nil
}

func methodTokens(method string) string {
	switch method { // the calls that matter for speed
	case "tools/call":
		return "tools.call"
	case "tools/list":
		return "tools.list"
	}
	parts := strings.Split(method, "/")
	for i, p := range parts {
		parts[i] = EncodeToken(p)
	}
	return strings.Join(parts, ".")
}

// RequestSubject returns the subject req travels on: to its instance if it
// names one, else to any of its server's. The error is a *router.Error.
func RequestSubject(req *router.Request) (string, error) {
	tail, err := operation(req)
	if err != nil {
		return "", err
	}
	if req.Instance != "" {
		return prefixInstance + req.Server + "." + req.Instance + "." + tail, nil
	}
	return prefixRequest + req.Server + "." + tail, nil
}

// ServerSubject is what the instances of a server subscribe to, in QueueGroup.
func ServerSubject(server string) string { return prefixRequest + server + ".>" }

// InstanceSubject is what one instance subscribes to.
func InstanceSubject(server, instance string) string {
	return prefixInstance + server + "." + instance + ".>"
}

// ProbeSubject is where an instance is asked whether it is there.
func ProbeSubject(server, instance string) string {
	return prefixInstance + server + "." + instance + "." + tokenProbe
}

// ControlSubject carries control messages of the request that token names; "*"
// gives the subject an instance subscribes to.
func ControlSubject(server, token string) string { return prefixControl + server + "." + token }
