package fabric

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// identity is what a data directory remembers of its node. It is kept outside
// JetStream, so that it can be read before a server runs.
type identity struct {
	Name        string    `json:"name"`              // NATS server name
	Mode        string    `json:"mode"`              // "standalone" or "clustered"; a store is never opened in the other
	Region      string    `json:"region,omitempty"`  // "" = DefaultRegion
	Incarnation uint64    `json:"incarnation"`       // counts the starts
	Created     time.Time `json:"created"`           // first start
	Voters      []string  `json:"voters,omitempty"`  // the roster as last seen; it counts more than what a start says
	Removed     bool      `json:"removed,omitempty"` // this name was removed from the cluster for good
}

const (
	identityFile = "node.json"
	lockFile     = "lock"
	standalone   = "standalone"
	clustered    = "clustered"
)

// dataDir is a node's directory, locked against a second node.
type dataDir struct {
	path     string
	lock     *os.File
	identity identity
}

// openDataDir creates and locks the directory at path and reads, or makes, its
// identity. What want says must be what is kept there; its name may be empty.
func openDataDir(path string, want identity) (*dataDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w; choose another with --data-dir", err)
	}
	lock, err := os.OpenFile(filepath.Join(abs, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w; give this user access, or choose another with --data-dir", err)
	}
	if err := lockExclusive(lock); err != nil {
		holder := readHolder(lock)
		return nil, errors.Join(fmt.Errorf("data directory %s is in use by another node%s; stop it, or choose another with --data-dir", abs, holder), lock.Close())
	}
	d := &dataDir{path: abs, lock: lock}
	if err := d.load(want); err != nil {
		return nil, errors.Join(err, d.close())
	}
	writeHolder(lock)
	return d, nil
}

// readHolder names the process that wrote its id into the lock file, if any.
func readHolder(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0) // an unreadable holder is an unnamed one
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
		return fmt.Sprintf(" (process %d)", pid)
	}
	return ""
}

// writeHolder is for people; the lock is the lock.
func writeHolder(f *os.File) {
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
}

func (d *dataDir) load(want identity) error {
	path := filepath.Join(d.path, identityFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.create(path, want)
	case err != nil:
		return fmt.Errorf("read node identity: %w", err)
	}
	if err := json.Unmarshal(data, &d.identity); err != nil || d.identity.Name == "" {
		return fmt.Errorf("node identity %s is damaged (%v); restore it, or move %s away to start anew", path, err, d.path)
	}
	if d.identity.Region == "" {
		d.identity.Region = DefaultRegion
	}
	if err := d.matches(want); err != nil {
		return err
	}
	d.identity.Incarnation++
	return d.save(path)
}

// matches refuses a start that would make nats-server delete or ignore data.
func (d *dataDir) matches(want identity) error {
	have := d.identity
	switch {
	case have.Mode == standalone && want.Mode == clustered:
		return fmt.Errorf("data directory %s belongs to a node on its own; opened as a cluster's, its data would be deleted. Start it without --cluster-addr, run `ripstop admin export FILE`, and `ripstop admin import FILE` into the cluster; or choose another directory with --data-dir", d.path)
	case have.Mode == clustered && want.Mode == standalone:
		return fmt.Errorf("data directory %s belongs to a clustered node; on its own it could not read its data. Start it with --cluster-addr and --peers, or choose another directory with --data-dir", d.path)
	case have.Mode != want.Mode:
		return fmt.Errorf("data directory %s belongs to a %q node, which this version does not know; choose another with --data-dir", d.path, have.Mode)
	case want.Name != "" && want.Name != have.Name:
		return fmt.Errorf("data directory %s belongs to node %q, not %q; start it as --name %s, or choose another with --data-dir", d.path, have.Name, want.Name, have.Name)
	case have.Removed:
		return fmt.Errorf("node %q was removed from its cluster: a name that comes back would be counted twice. Start it with another --name and an empty --data-dir; `ripstop admin import` takes what an export of this one holds", have.Name)
	case want.Region != have.Region:
		return fmt.Errorf("data directory %s belongs to region %q, not %q; start it with --region %s, or choose another with --data-dir", d.path, have.Region, want.Region, have.Region)
	}
	return nil
}

// update changes the identity on disk.
func (d *dataDir) update(change func(*identity)) error {
	change(&d.identity)
	return d.save(filepath.Join(d.path, identityFile))
}

func (d *dataDir) create(path string, want identity) error {
	if want.Name == "" {
		want.Name = "node-" + strings.ToLower(rand.Text()[:6])
	}
	d.identity = want
	d.identity.Incarnation = 1
	d.identity.Created = time.Now().UTC().Truncate(time.Second)
	return d.save(path)
}

func (d *dataDir) save(path string) error {
	data, err := json.MarshalIndent(d.identity, "", "  ")
	if err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	if err := writeDurably(path, append(data, '\n')); err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return nil
}

// writeDurably replaces path so that after a crash it has the old content or
// the new, never half.
func writeDurably(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
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

func (d *dataDir) close() error {
	if d == nil || d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}
