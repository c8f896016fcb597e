package wire

import (
	"encoding/json"
	"time"

	"ripstop/router"
)

// unknown is the error of a call that is given up, with what is known of it.
func (k *call) unknown(why string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	known := struct {
		Instance string `json:"instance,omitempty"` // which had the call, if known
		Waited   int64  `json:"waited_ms"`
		Alive    bool   `json:"alive"`               // it said that it has the call
		Silent   int64  `json:"silent_ms,omitempty"` // since it last said anything
	}{k.instance, time.Since(k.started).Milliseconds(), !k.heard.IsZero(), 0}
	who, heard := "of "+k.server, "it never said that it had the call"
	if k.instance != "" {
		who = k.instance + " " + who
	}
	if known.Alive {
		known.Silent = time.Since(k.heard).Milliseconds()
		heard = "it had the call, and was last heard of " + time.Since(k.heard).Round(100*time.Millisecond).String() + " ago"
	}
	e := router.Errorf(router.ErrOutcomeUnknown, "outcome unknown after %s at instance %s: %s; %s; the call may or may not have been executed",
		time.Since(k.started).Round(100*time.Millisecond), who, why, heard)
	e.Data, _ = json.Marshal(known) // always encodes
	return e
}
