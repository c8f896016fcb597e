package eras

import "time"

// CallID names a held call.
type CallID = callID

// Seal seals a state for a request.
func Seal(keys Keys, instance string, id CallID, expires time.Time, principal, server, method, params string) (string, error) {
	to, err := bind(principal, server, method, []byte(params))
	if err != nil {
		return "", err
	}
	return seal(keys, instance, id, expires, &to)
}

// Open opens it.
func Open(keys Keys, state string, now time.Time, principal, server, method, params string) (CallID, error) {
	from, err := bind(principal, server, method, []byte(params))
	if err != nil {
		return CallID{}, err
	}
	return open(keys, state, now, &from)
}

// Why a state is refused.
var (
	ErrStateForm    = errStateForm
	ErrStateKey     = errStateKey
	ErrStateSeal    = errStateSeal
	ErrStateExpired = errStateExpired
)
