package eras_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/jsonrpc"
)

// keyring is a cluster's keys: the last one seals.
type keyring []string

func (k keyring) Current() (string, []byte) {
	id := k[len(k)-1]
	key, _ := k.Key(id)
	return id, key
}

func (k keyring) Key(id string) ([]byte, bool) {
	for _, have := range k {
		if have == id {
			return []byte(strings.Repeat(id, 32)[:32]), true
		}
	}
	return nil, false
}

const stateParams = `{"name":"t","arguments":{"a":1,"b":[2,{"c":3.0}]}}`

func sealed(t testing.TB, keys eras.Keys, expires time.Time) string {
	t.Helper()
	state, err := eras.Seal(keys, "aaaaaaaaaa", eras.CallID{1, 2, 3}, expires, "ann", "s", "tools/call", stateParams)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestStateOpens(t *testing.T) {
	now := time.Now()
	state := sealed(t, keyring{"k1"}, now.Add(time.Minute))
	for _, params := range []string{
		stateParams,
		`{"arguments":{"b":[2,{"c":3.0}],"a":1},"name":"t"}`, // written in another order
		`{"name":"t","arguments":{"a":1,"b":[2,{"c":3.0}]},"_meta":{"x":1},"inputResponses":{"1":{}},"requestState":"…"}`,
	} {
		id, err := eras.Open(keyring{"k1", "k2"}, state, now, "ann", "s", "tools/call", params) // the key was rotated
		if err != nil || id != (eras.CallID{1, 2, 3}) {
			t.Errorf("%s: %v, %v", params, id, err)
		}
	}
	if at, ok := eras.StateInstance(state); !ok || at != "aaaaaaaaaa" {
		t.Errorf("instance %q, %v", at, ok)
	}
	if again := sealed(t, keyring{"k1"}, now.Add(time.Minute)); again == state {
		t.Error("two states are the same: a nonce was used twice")
	}
}

func TestStateIsRefused(t *testing.T) {
	now := time.Now()
	keys := keyring{"k1"}
	state := sealed(t, keys, now.Add(time.Minute))
	type request struct{ principal, server, method, params string }
	right := request{"ann", "s", "tools/call", stateParams}
	tampered := []byte(state)
	if at := &tampered[len(tampered)-5]; *at == 'A' {
		*at = 'B'
	} else {
		*at = 'A'
	}
	for name, c := range map[string]struct {
		state string
		at    time.Time
		req   request
		keys  keyring
		want  error
	}{
		"expired":                {state, now.Add(time.Minute), right, keys, eras.ErrStateExpired},
		"another principal":      {state, now, request{"bob", "s", "tools/call", stateParams}, keys, eras.ErrStateSeal},
		"another server":         {state, now, request{"ann", "r", "tools/call", stateParams}, keys, eras.ErrStateSeal},
		"another method":         {state, now, request{"ann", "s", "prompts/get", stateParams}, keys, eras.ErrStateSeal},
		"other params":           {state, now, request{"ann", "s", "tools/call", `{"name":"u"}`}, keys, eras.ErrStateSeal},
		"parts moved":            {state, now, request{"anns", "", "tools/call", stateParams}, keys, eras.ErrStateSeal},
		"another instance":       {strings.Replace(state, "aaaaaaaaaa", "bbbbbbbbbb", 1), now, right, keys, eras.ErrStateSeal},
		"tampered":               {string(tampered), now, right, keys, eras.ErrStateSeal},
		"another's key":          {state, now, right, keyring{"k2"}, eras.ErrStateKey},
		"another key, same name": {strings.Replace(state, ".k1.", ".k2.", 1), now, right, keyring{"k1", "k2"}, eras.ErrStateSeal},
		"cut":                    {state[:len(state)-6], now, right, keys, eras.ErrStateSeal},
		"a server's own":         {"whatever", now, right, keys, eras.ErrStateForm},
		"empty":                  {"", now, right, keys, eras.ErrStateForm},
		"long":                   {state + strings.Repeat("A", 300), now, right, keys, eras.ErrStateForm},
		"no base64":              {state[:strings.LastIndexByte(state, '.')+1] + "!!!!", now, right, keys, eras.ErrStateForm},
		"nothing sealed":         {state[:strings.LastIndexByte(state, '.')+1] + "AAAA", now, right, keys, eras.ErrStateForm},
	} {
		id, err := eras.Open(c.keys, c.state, c.at, c.req.principal, c.req.server, c.req.method, c.req.params)
		if !errors.Is(err, c.want) || err == nil {
			t.Errorf("%s: %v, %v; want %v", name, id, err, c.want)
		}
	}
	if _, err := eras.Seal(keyring{"k.1"}, "aaaaaaaaaa", eras.CallID{}, now, "", "s", "", "{}"); err == nil {
		t.Error("a key id with a dot was taken")
	}
}

// goldenState is one sealed by the first version of this package; states of one
// version must open in the next, since a cluster is upgraded node by node.
const goldenState = "ripstop1.s.aaaaaaaaaa.k1.fk8YQjykCufKtChVJEAuYtKB0ksoDueT4vaWLifG7XzT0rSP4VwM2AaYw80cg2-Y3X-UHw"

var goldenTime = time.Unix(1_800_000_000, 0)

func TestGoldenState(t *testing.T) {
	id, err := eras.Open(keyring{"k1"}, goldenState, goldenTime, "ann", "s", "tools/call", stateParams)
	if err != nil || id != (eras.CallID{1, 2, 3}) {
		t.Errorf("%v, %v", id, err)
	}
}

// FuzzState looks for a text other than what was sealed that opens, and for one
// that makes the decoder fail in another way than by an error.
func FuzzState(f *testing.F) {
	f.Add(goldenState)
	f.Add(goldenState[:len(goldenState)/2])
	f.Add("ripstop1.s.a.k1.")
	f.Add("ripstop1...AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := eras.Open(keyring{"k1"}, s, goldenTime, "ann", "s", "tools/call", stateParams)
		if err == nil && s != goldenState {
			t.Errorf("%q opens as %v", s, id)
		}
		at, ok := eras.StateInstance(s)
		if ok != (at != "") || ok && !strings.Contains(s, "."+at+".") {
			t.Errorf("%q is of instance %q, %v", s, at, ok)
		}
	})
}

func TestPinned(t *testing.T) {
	call := func(server, method, state string) *router.Request {
		m, err := jsonrpc.Parse(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":1,"method":%q,"params":{"name":"t","uri":"u","requestState":%q}}`, method, state))
		if err != nil {
			t.Fatal(err)
		}
		return &router.Request{Server: server, Era: router.EraModern, Message: m}
	}
	legacy := call("s", "tools/call", goldenState)
	legacy.Era = router.EraLegacy
	for name, c := range map[string]struct {
		req  *router.Request
		want string
	}{
		"retry":          {call("s", "tools/call", goldenState), "aaaaaaaaaa"},
		"of a resource":  {call("s", "resources/read", goldenState), "aaaaaaaaaa"},
		"another server": {call("all", "tools/call", goldenState), ""},
		"its own state":  {call("s", "tools/call", "ripstop1.of its own"), ""},
		"another method": {call("s", "tools/list", goldenState), ""},
		"legacy":         {legacy, ""},
		"no message":     {&router.Request{Era: router.EraModern}, ""},
	} {
		if got, ok := eras.Pinned(c.req); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, c.want)
		}
	}
}
