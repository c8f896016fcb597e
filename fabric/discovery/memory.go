package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// MemoryFile is the name of the file in a node's data directory.
const MemoryFile = "peers.json"

const (
	memoryMax      = 64                  // peers kept, the most recently seen
	memoryAge      = 30 * 24 * time.Hour // a peer not seen for longer is forgotten
	memoryFileMax  = 1 << 20             // bytes read at most
	memoryEvery    = 5 * time.Second     // between two writes
	memoryFreshen  = 10 * time.Minute    // a mere new "last seen" is written no more often
	memoryPerName  = 4                   // addresses kept of one node
	memoryFilePerm = 0o600
)

// Seen is a peer that was a member of this cluster at an address.
type Seen struct {
	Name     string    `json:"name"`
	Addr     string    `json:"addr"`           // host:port of its cluster port
	Host     string    `json:"host,omitempty"` // DNS name that led there, and that its certificate bears; "" = none
	LastSeen time.Time `json:"last_seen"`
}

// Memory keeps the peers seen recently, in a file that survives a crash at any
// moment. It belongs to one cluster: what another one left is not read.
type Memory struct {
	path    string
	cluster string
	now     func() time.Time

	saving sync.Mutex // held over a write; taken before mu

	mu      sync.Mutex
	peers   map[string]Seen // by address
	changed bool            // something to write that can't wait for memoryFreshen
	written time.Time
}

type memoryDoc struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Peers   []Seen `json:"peers"`
}

// OpenMemory reads the file in dir. A missing file is an empty memory. A file
// that is damaged or another cluster's is reported as an error beside a usable,
// empty memory: nothing depends on it but speed, and it will be written anew.
func OpenMemory(dir, cluster string) (*Memory, error) {
	m := &Memory{path: filepath.Join(dir, MemoryFile), cluster: cluster, now: time.Now, peers: map[string]Seen{}}
	doc, err := readMemory(m.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil
	case err != nil:
		return m, fmt.Errorf("read remembered peers %s: %w; going on without them", m.path, err)
	case doc.Cluster != cluster:
		return m, fmt.Errorf("read remembered peers %s: they belong to cluster %q, not %q; going on without them", m.path, doc.Cluster, cluster)
	}
	now := m.now()
	for _, s := range doc.Peers {
		p, err := parsePeer(s.Addr)
		if err != nil || s.Name == "" {
			continue
		}
		if s.Addr = p.String(); s.LastSeen.After(now) { // the clock was set back since
			s.LastSeen = now
		}
		m.peers[s.Addr] = s
	}
	m.trim(now)
	return m, nil
}

func readMemory(path string) (memoryDoc, error) {
	var doc memoryDoc
	f, err := os.Open(path)
	if err != nil {
		return doc, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, memoryFileMax))
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err == nil && doc.Version != 1 {
		err = fmt.Errorf("unknown version %d", doc.Version)
	}
	return doc, err
}

// Saw notes that node name answers at addr, to which the DNS name host led, if
// any did.
func (m *Memory) Saw(name, addr, host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	old, known := m.peers[addr]
	if host == "" && old.Name == name {
		host = old.Host
	}
	m.peers[addr] = Seen{Name: name, Addr: addr, Host: host, LastSeen: now}
	if !known || old.Name != name || old.Host != host {
		m.changed = true
		m.trim(now)
	}
}

// Forget drops a node that was removed for good.
func (m *Memory) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for addr, s := range m.peers {
		if s.Name == name {
			delete(m.peers, addr)
			m.changed = true
		}
	}
}

// Peers returns what is remembered, last seen first.
func (m *Memory) Peers() []Seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sorted()
}

func (m *Memory) sorted() []Seen {
	out := make([]Seen, 0, len(m.peers))
	for _, s := range m.peers {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Seen) int {
		if c := b.LastSeen.Compare(a.LastSeen); c != 0 {
			return c
		}
		return strings.Compare(a.Addr, b.Addr)
	})
	return out
}

// trim keeps the memory bounded and fresh.
func (m *Memory) trim(now time.Time) {
	perName := map[string]int{}
	for i, s := range m.sorted() {
		perName[s.Name]++
		if i >= memoryMax || perName[s.Name] > memoryPerName || now.Sub(s.LastSeen) > memoryAge {
			delete(m.peers, s.Addr)
		}
	}
}

// Save writes the file if there is something to write and the last write is long
// enough ago; with force, whenever anything was seen at all.
func (m *Memory) Save(force bool) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	data, err := m.due(force)
	if err != nil || data == nil {
		return err
	}
	if err := replaceFile(m.path, data); err != nil {
		m.mu.Lock()
		m.changed = true
		m.mu.Unlock()
		return fmt.Errorf("write remembered peers: %w", err)
	}
	return nil
}

// due returns what to write now, nil = nothing, and counts it as written: a disk
// that refuses is not asked again at once.
func (m *Memory) due(force bool) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	since := now.Sub(m.written)
	due := m.changed && since >= memoryEvery || since >= memoryFreshen
	if !due && !force || len(m.peers) == 0 && !m.changed {
		return nil, nil
	}
	m.trim(now)
	data, err := json.MarshalIndent(memoryDoc{1, m.cluster, m.sorted()}, "", "  ")
	if err != nil {
		return nil, err
	}
	m.written, m.changed = now, false
	return append(data, '\n'), nil
}

// replaceFile leaves the old content or the new at path, whenever the machine
// stops.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".peers-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(memoryFilePerm), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
