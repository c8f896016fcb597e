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
	Name    string    `json:"name"`    // NATS server name
	Mode    string    `json:"mode"`    // "standalone"; a store is never opened in another mode
	Created time.Time `json:"created"` // first start
}

const (
	identityFile = "node.json"
	lockFile     = "lock"
	standalone   = "standalone"
)

// dataDir is a node's directory, locked against a second node.
type dataDir struct {
	path     string
	lock     *os.File
	identity identity
}

// openDataDir creates and locks the directory at path and reads, or makes, its
// identity. name, if given, must be the one kept there.
func openDataDir(path, name string) (*dataDir, error) {
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
	if err := d.load(name); err != nil {
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

func (d *dataDir) load(name string) error {
	path := filepath.Join(d.path, identityFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.create(path, name)
	case err != nil:
		return fmt.Errorf("read node identity: %w", err)
	}
	if err := json.Unmarshal(data, &d.identity); err != nil || d.identity.Name == "" {
		return fmt.Errorf("node identity %s is damaged (%v); restore it, or move %s away to start anew", path, err, d.path)
	}
	if d.identity.Mode != standalone {
		return fmt.Errorf("data directory %s belongs to a %s node; a standalone one would delete its data; choose another with --data-dir", d.path, d.identity.Mode)
	}
	if name != "" && name != d.identity.Name {
		return fmt.Errorf("data directory %s belongs to node %q, not %q; start it as --name %s, or choose another with --data-dir", d.path, d.identity.Name, name, d.identity.Name)
	}
	return nil
}

func (d *dataDir) create(path, name string) error {
	if name == "" {
		name = "node-" + strings.ToLower(rand.Text()[:6])
	}
	d.identity = identity{Name: name, Mode: standalone, Created: time.Now().UTC().Truncate(time.Second)}
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
