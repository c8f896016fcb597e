package discovery_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/fabric/discovery"
)

func openMemory(t *testing.T, dir string) *discovery.Memory {
	t.Helper()
	m, err := discovery.OpenMemory(dir, "c")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func save(t *testing.T, m *discovery.Memory, force bool) {
	t.Helper()
	if err := m.Save(force); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryLastsAndIsWrittenSeldom(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := openMemory(t, dir)
		save(t, m, true)
		if _, err := os.Stat(filepath.Join(dir, discovery.MemoryFile)); !os.IsNotExist(err) {
			t.Errorf("an empty memory is written: %v", err)
		}
		kept := func() int { return len(openMemory(t, dir).Peers()) }
		m.Saw("n2", "10.0.0.2:6222", "")
		save(t, m, false)
		if got := kept(); got != 1 {
			t.Fatalf("%d peers kept, want 1", got)
		}
		m.Saw("n3", "10.0.0.3:6222", "")
		save(t, m, false)
		if got := kept(); got != 1 {
			t.Errorf("written twice at once: %d peers", got)
		}
		time.Sleep(5 * time.Second) // of the bubble's clock
		save(t, m, false)
		if got := kept(); got != 2 {
			t.Errorf("%d peers kept after a while, want 2", got)
		}
		time.Sleep(time.Minute)
		m.Saw("n2", "10.0.0.2:6222", "") // only its time is new
		save(t, m, false)
		if last := openMemory(t, dir).Peers()[0]; time.Since(last.LastSeen) < time.Minute {
			t.Errorf("written for a time alone: %+v", last)
		}
		time.Sleep(10 * time.Minute)
		m.Forget("n3")
		save(t, m, false)
		ps := openMemory(t, dir).Peers()
		if len(ps) != 1 || ps[0].Name != "n2" || ps[0].Addr != "10.0.0.2:6222" || time.Since(ps[0].LastSeen) != 10*time.Minute {
			t.Errorf("kept %+v", ps)
		}
		time.Sleep(31 * 24 * time.Hour)
		if got := kept(); got != 0 {
			t.Errorf("%d peers kept after a month", got)
		}
	})
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	m := openMemory(t, dir)
	for i := range 300 {
		m.Saw(fmt.Sprintf("n%d", i%150), fmt.Sprintf("10.0.%d.%d:6222", i/200, i%200), "")
	}
	for i := range 20 { // a node whose address changes at every start
		m.Saw("n0", fmt.Sprintf("10.1.0.%d:6222", i), "")
	}
	save(t, m, true)
	ps := openMemory(t, dir).Peers()
	count := 0
	for _, p := range ps {
		if p.Name == "n0" {
			count++
		}
	}
	if len(ps) == 0 || len(ps) > 64 || count != 4 || ps[0].Addr != "10.1.0.19:6222" {
		t.Errorf("%d peers kept, %d of one node, the last %v", len(ps), count, ps[0])
	}
}

func TestMemoryToleratesDamage(t *testing.T) {
	future := time.Now().Add(100 * time.Hour).Format(time.RFC3339)
	for title, tt := range map[string]struct {
		text string
		keep int
		err  string
	}{
		"empty":           {"", 0, "unexpected end"},
		"cut off":         {`{"version":1,"cluster":"c","peers":[{"na`, 0, "unexpected end"},
		"zeros":           {strings.Repeat("\x00", 4096), 0, "invalid character"},
		"too large":       {`{"version":1,"cluster":"` + strings.Repeat("c", 2<<20) + `"}`, 0, "unexpected end"},
		"of the future":   {`{"version":2,"cluster":"c"}`, 0, "version 2"},
		"another cluster": {`{"version":1,"cluster":"d","peers":[{"name":"a","addr":"10.0.0.1:6222"}]}`, 0, `belong to cluster "d"`},
		"clock set back":  {`{"version":1,"cluster":"c","peers":[{"name":"a","addr":"10.0.0.1:6222","last_seen":"` + future + `"}]}`, 1, ""},
		"bad entries": {`{"version":1,"cluster":"c","peers":[{"name":"a","addr":"x y","last_seen":"` + future + `"},` +
			`{"addr":"10.0.0.1:6222","last_seen":"` + future + `"},{"name":"b","addr":"10.0.0.2:6222","last_seen":"` + future + `"}]}`, 1, ""},
	} {
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, discovery.MemoryFile)
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := discovery.OpenMemory(dir, "c")
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), path)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if got := m.Peers(); len(got) != tt.keep || len(got) > 0 && got[0].LastSeen.After(time.Now()) {
				t.Errorf("kept %+v", got)
			}
			m.Saw("z", "10.0.0.9:6222", "")
			save(t, m, true)
			if got := openMemory(t, dir).Peers(); len(got) != tt.keep+1 {
				t.Errorf("kept %+v after a new start", got)
			}
		})
	}
}

func TestMemoryReportsAFullDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	m := openMemory(t, dir)
	m.Saw("a", "10.0.0.1:6222", "")
	if err := m.Save(false); err == nil || !strings.Contains(err.Error(), "write remembered peers") {
		t.Errorf("error %v", err)
	}
	if err := m.Save(false); err != nil {
		t.Errorf("tried again at once: %v", err)
	}
}
