package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/e2e/lab"
)

// settleIn bounds how long a healed cluster may take until every replica and
// every index is the same.
const settleIn = 30 * time.Second

// quiet waits until nothing is written any more and every replica is current.
func (r *faultRun) quiet() error {
	deadline := time.Now().Add(settleIn)
	var last uint64
	var since time.Time
	for {
		info, err := r.stream()
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		for _, m := range r.members {
			if m.voter && problem == "" {
				problem = info.behind(m.name)
			}
		}
		if info.State.Last != last || problem != "" {
			last, since = info.State.Last, time.Now()
		} else if time.Since(since) > time.Second {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not quiet %s after the load ended: at %d, %s", settleIn, last, problem)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// replicas ends every node with kill -9 and reads what each has on its disk:
// a direct get would be answered by any replica.
func (r *faultRun) replicas() (map[string]map[string]lab.Entry, error) {
	for _, m := range r.members { // at once: the living would clear away what the dead had registered
		r.pause(m)
	}
	for _, m := range r.members {
		r.kill(m)
	}
	out := map[string]map[string]lab.Entry{}
	var errs []error
	for _, m := range r.members {
		if !m.voter {
			continue
		}
		have, err := lab.ReadStore(filepath.Join(r.dir, m.name, "jetstream", "jetstream", "FABRIC", "streams", registryStream), "$KV."+strings.TrimPrefix(registryStream, "KV_")+".")
		if err != nil {
			errs = append(errs, fmt.Errorf("replica of %s: %w", m.name, err))
			continue
		}
		out[m.name] = have
	}
	return out, errors.Join(errs...)
}

// indexes waits until the index of every node shows the same instances, and
// returns them.
func (r *faultRun) indexes() (map[string]string, []string) {
	deadline := time.Now().Add(settleIn)
	for {
		var problems []string
		shown := map[string]map[string]string{}
		for _, m := range r.members {
			list, err := r.index(m)
			if err != nil {
				problems = append(problems, fmt.Sprintf("index of %s: %v", m.name, err))
				continue
			}
			shown["index of "+m.name] = list
		}
		problems = append(problems, lab.Same(shown)...)
		if len(problems) == 0 || time.Now().After(deadline) {
			return shown["index of "+r.members[0].name], problems
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// index lists the instances that m's index shows, and the nodes they are on.
func (c *cluster) index(m *member) (map[string]string, error) {
	nc, err := nats.Connect("nats://"+m.nats, nats.NoReconnect(), nats.Timeout(2*time.Second))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	msg, err := nc.Request("ripstop.v1.registry.list."+nc.ConnectedServerId(), []byte(`{}`), 2*time.Second)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Instances []struct{ Server, Instance, Node string }
		Error     string
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, errors.New(answer.Error)
	}
	out := map[string]string{}
	for _, i := range answer.Instances {
		out[i.Server+"."+i.Instance] = i.Node
	}
	return out, nil
}

// compare holds the replicas and the indexes against each other and against
// what was acknowledged.
func (r *faultRun) compare(writes, removals []lab.Op) (keys int, problems []string) {
	for _, m := range r.members {
		r.awaitReady(m)
	}
	if err := r.quiet(); err != nil {
		problems = append(problems, err.Error())
	}
	shown, differ := r.indexes()
	problems = append(problems, differ...)
	replicas, err := r.replicas()
	if err != nil {
		return 0, append(problems, err.Error())
	}
	for node, have := range replicas {
		keys = max(keys, len(have))
		stored := map[string]string{}
		for key, e := range have {
			var record struct{ Node string }
			if e.Deleted || strings.HasPrefix(key, "_") {
				continue
			}
			if err := json.Unmarshal([]byte(e.Value), &record); err != nil {
				problems = append(problems, fmt.Sprintf("%s: %s does not decode: %v", node, key, err))
			}
			stored[key] = record.Node
		}
		problems = append(problems, lab.Same(map[string]map[string]string{"replica of " + node: stored, "indexes": shown})...)
	}
	problems = append(problems, lab.Kept(writes, removals, replicas)...)
	return keys, append(problems, lab.Same(replicas)...)
}
