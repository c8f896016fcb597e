package eras

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Keys are what requestState is sealed with. A cluster shares them, so that any
// of its members can read what another has sealed, and rotates them: the current
// one seals, and those before it still open for as long as states live.
type Keys interface {
	// Current returns the key to seal with, of 16, 24 or 32 bytes, and its id: 1
	// to 64 letters, digits, "-" and "_".
	Current() (id string, key []byte)
	// Key returns the key of that id.
	Key(id string) (key []byte, ok bool)
}

// RandomKeys returns a key that only this process has.
func RandomKeys() Keys {
	k := make(oneKey, 32)
	_, _ = rand.Read(k) // never fails (crypto/rand)
	return k
}

type oneKey []byte

func (k oneKey) Current() (string, []byte)           { return "own", k }
func (k oneKey) Key(id string) (key []byte, ok bool) { return k, id == "own" }

// A state is "ripstop1.<server>.<instance>.<key id>.<sealed>". What stands before the last
// dot is readable without the key and authenticated with the rest, which is
// AES-GCM of the call's id and the time it expires. Bound to it, but not in it,
// are whose call it is and which: see [binding].
const (
	statePrefix = "ripstop1"
	callIDSize  = 16
	plainSize   = 8 + callIDSize
	nonceSize   = 12
	maxState    = 256 // bytes; ours are shorter
)

// callID names a held call. It is not guessable, and never leaves the state.
type callID [callIDSize]byte

func newCallID() (id callID) {
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// Why a state is refused. Clients are not told which it was.
var (
	errStateForm    = errors.New("it is none of this fabric's")
	errStateKey     = errors.New("its key is not known any more")
	errStateSeal    = errors.New("it was changed, or belongs to another caller or request")
	errStateExpired = errors.New("it has expired")
)

// StateInstance returns the instance that holds the call which a requestState
// belongs to, so that its retry can be sent there. It needs no key and proves
// nothing: the instance checks. It reports false for a state that is a server's
// own.
func StateInstance(state string) (instance string, ok bool) {
	p, ok := splitState(state)
	return p.instance, ok
}

// Pinned returns the instance that alone can answer a request, since it holds the
// call that the request retries. A request to another server, as to one that
// passes states on as it got them, is not.
func Pinned(req *router.Request) (instance string, ok bool) {
	m := req.Message
	if req.Era != router.EraModern || m == nil || m.Kind != jsonrpc.Request || !bytes.Contains(m.Params, []byte(statePrefix+".")) {
		return "", false
	}
	switch m.Method {
	case "tools/call", "prompts/get", "resources/read":
		p, ok := splitState(text(field(m.Params, keyState)))
		return p.instance, ok && p.server == req.Server
	}
	return "", false
}

type stateParts struct {
	head            string // what is authenticated, but not encrypted
	server          string
	instance, keyID string
	sealed          string
}

func splitState(state string) (p stateParts, ok bool) {
	if len(state) > maxState {
		return p, false
	}
	part := strings.Split(state, ".")
	if len(part) != 5 || part[0] != statePrefix || !plain(part[1]) || !plain(part[2]) || !plain(part[3]) || part[4] == "" {
		return p, false
	}
	return stateParts{state[:strings.LastIndexByte(state, '.')], part[1], part[2], part[3], part[4]}, true
}

// plain reports whether s is 1 to 64 letters, digits, "-" and "_".
func plain(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// binding is what a state is bound to: opened with any other it fails.
type binding struct {
	principal, server, method string
	params                    [sha256.Size]byte
}

// bind returns the binding of a request. A client may write the params of a retry
// in another order, and its _meta is its transport's, so they are compared by
// what they say.
func bind(principal, server, method string, params []byte) (binding, error) {
	var said any
	if params != nil {
		d := json.NewDecoder(strings.NewReader(string(without(params, "_meta", keyResponses, keyState))))
		d.UseNumber()
		if err := d.Decode(&said); err != nil {
			return binding{}, fmt.Errorf("read params: %w", err)
		}
	}
	canonical, err := json.Marshal(said) // sorts keys
	if err != nil {
		return binding{}, fmt.Errorf("encode params: %w", err)
	}
	return binding{principal, server, method, sha256.Sum256(canonical)}, nil
}

// authenticated returns the additional data of the AEAD.
func (b *binding) authenticated(head string) []byte {
	var out []byte
	for _, s := range []string{head, b.principal, b.server, b.method, string(b.params[:])} {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(s))), s...) // lengths are what keeps parts apart
	}
	return out
}

func aead(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use key: %w", err)
	}
	return cipher.NewGCM(block)
}

// seal returns the state of a held call.
func seal(keys Keys, instance string, id callID, expires time.Time, to *binding) (string, error) {
	keyID, key := keys.Current()
	head := statePrefix + "." + to.server + "." + instance + "." + keyID
	if !plain(keyID) || !plain(instance) || !plain(to.server) {
		return "", fmt.Errorf("seal state: server %q, instance %q or key id %q can't stand in one", to.server, instance, keyID)
	}
	a, err := aead(key)
	if err != nil {
		return "", fmt.Errorf("seal state: %w", err)
	}
	sealed := make([]byte, nonceSize, nonceSize+plainSize+a.Overhead())
	_, _ = rand.Read(sealed) // never fails (crypto/rand)
	text := append(binary.BigEndian.AppendUint64(nil, uint64(expires.Unix())), id[:]...)
	sealed = a.Seal(sealed, sealed, text, to.authenticated(head))
	return head + "." + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// open returns the id of the call that a state belongs to, if it is what seal
// returned for the same binding and has not expired at now.
func open(keys Keys, state string, now time.Time, from *binding) (id callID, err error) {
	p, ok := splitState(state)
	if !ok {
		return id, errStateForm
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(p.sealed)
	if err != nil || len(sealed) < nonceSize {
		return id, errStateForm
	}
	key, ok := keys.Key(p.keyID)
	if !ok {
		return id, errStateKey
	}
	a, err := aead(key)
	if err != nil {
		return id, err
	}
	text, err := a.Open(nil, sealed[:nonceSize], sealed[nonceSize:], from.authenticated(p.head))
	if err != nil || len(text) != plainSize {
		return id, errStateSeal
	}
	if now.Unix() >= int64(binary.BigEndian.Uint64(text)) {
		return id, errStateExpired
	}
	return callID(text[8:]), nil
}
