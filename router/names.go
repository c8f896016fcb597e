package router

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// MaxServerName is the longest server name, in bytes.
const MaxServerName = 63

// CheckServerName says what is wrong with a server name, or nil. A name is
// letters, digits, "-" and "_", starts and ends with a letter or digit, and has
// no "__": that separates server from tool where all servers are one (/mcp), so
// that "a" + "b__c" and "a__b" + "c" can't be confused.
func CheckServerName(name string) error {
	bad := func(why string) error {
		return Errorf(ErrRefused, "server name %q: %s; use up to %d letters, digits, '-' and single '_', starting and ending with a letter or digit", name, why, MaxServerName)
	}
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > MaxServerName:
		return bad("is too long")
	case strings.Contains(name, "__"):
		return bad(`contains "__"`)
	}
	for i, c := range []byte(name) {
		if alnum(c) || (c == '-' || c == '_') && i > 0 && i < len(name)-1 {
			continue
		}
		return bad(fmt.Sprintf("has %q at position %d", c, i+1))
	}
	return nil
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// ServerName makes a valid server name of any text, for files whose keys were
// never meant as one. It returns "" if nothing is left.
func ServerName(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		switch s := b.String(); {
		case alnum(c):
			b.WriteByte(c)
		case c == '_' && s != "" && s[len(s)-1] != '_' && s[len(s)-1] != '-':
			b.WriteByte('_')
		case s != "" && s[len(s)-1] != '-' && s[len(s)-1] != '_':
			b.WriteByte('-')
		}
	}
	s := b.String()
	return strings.Trim(s[:min(len(s), MaxServerName)], "-_")
}

// NewInstanceID returns a fresh instance id: 10 characters of a-z and 2-7,
// 50 random bits, usable as a NATS subject token.
func NewInstanceID() string { return strings.ToLower(rand.Text()[:10]) }

// NewSessionID returns a fresh session id for a session that instance holds:
// "<instance>-<26 characters>", 130 random bits. The instance stands in the id
// so that any node can route a session it has never heard of.
func NewSessionID(instance string) string { return instance + "-" + rand.Text() }

// SessionInstance returns the instance a session id names, or "".
func SessionInstance(session string) string {
	instance, rest, ok := strings.Cut(session, "-")
	if !ok || len(instance) != 10 || len(rest) != 26 {
		return ""
	}
	for _, c := range []byte(instance) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return ""
		}
	}
	for _, c := range []byte(rest) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return ""
		}
	}
	return instance
}
