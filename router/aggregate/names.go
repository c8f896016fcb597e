package aggregate

import (
	"fmt"
	"slices"
	"strings"

	"ripstop/router"
)

const (
	nameSeparator = "__"
	uriScheme     = "ripstop://"
)

// JoinName returns the aggregate's name of a tool or prompt of server. Server
// names hold no "__" and end in no "_" (router.CheckServerName), so the first
// "__" is always the separator, whatever the tool is called.
func JoinName(server, name string) string { return server + nameSeparator + name }

// SplitName is the inverse of JoinName. ok is false for what JoinName never
// returns.
func SplitName(joined string) (server, name string, ok bool) {
	server, name, ok = strings.Cut(joined, nameSeparator)
	return server, name, ok && router.CheckServerName(server) == nil
}

// JoinURI returns the aggregate's URI, or URI template, of a resource of
// server. The original follows verbatim: it may hold anything.
func JoinURI(server, uri string) string { return uriPrefix(server) + uri }

func uriPrefix(server string) string { return uriScheme + server + "/" }

// SplitURI is the inverse of JoinURI. ok is false for what JoinURI never
// returns.
func SplitURI(joined string) (server, uri string, ok bool) {
	rest, ok := strings.CutPrefix(joined, uriScheme)
	if !ok {
		return "", "", false
	}
	server, uri, ok = strings.Cut(rest, "/")
	return server, uri, ok && router.CheckServerName(server) == nil
}

// known reports whether server is a member.
func (b *Backend) known(server string) bool {
	b.mu.Lock()
	_, found := slices.BinarySearch(b.servers, server)
	b.mu.Unlock()
	// A server may be there before the word of it.
	return found || slices.Contains(b.opts.Servers(), server)
}

// splitName returns the member that joined names, and the name there. what is
// "tool" or "prompt".
func (b *Backend) splitName(what, joined string) (server, name string, err error) {
	server, name, ok := SplitName(joined)
	if ok && b.known(server) {
		return server, name, nil
	}
	why := fmt.Sprintf("there is no server %q", server)
	if !ok {
		why = "it names no server"
	}
	return "", "", invalidParams("unknown %s %q: %s; a %s is called <server>%s<name>, as %ss/list gives it; servers now: %s",
		what, clip(joined), clip(why), what, nameSeparator, what, b.some())
}

// splitURI likewise for resources. code is the error's code in the client's
// era: -32002 (2025-11-25, resources, "Error Handling") or -32602 (2026-07-28).
func (b *Backend) splitURI(joined string, code int) (server, uri string, err error) {
	server, uri, ok := SplitURI(joined)
	if ok && b.known(server) {
		return server, uri, nil
	}
	e := clientError(code, "unknown resource %q: its URI is %s<server>/<uri>, as resources/list gives it; servers now: %s",
		clip(joined), uriScheme, b.some())
	e.Data = uriData(joined)
	return "", "", e
}

// some returns the names of the members, as many as a person reads.
func (b *Backend) some() string {
	const enough = 20
	names := b.opts.Servers()
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > enough:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
	}
	return strings.Join(names, ", ")
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
