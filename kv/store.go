package kv

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// flushEvery is how often changes of an index go to disk. What is lost with
// less is fetched again.
const flushEvery = time.Second

// store keeps one index in a bbolt file: its entries under their keys, and what
// the index knows of itself. It is a cache: a file that is damaged in any way is
// replaced by an empty one.
type store struct {
	path string
	name []byte // of the bbolt bucket with the entries
	db   *bbolt.DB
}

// storeSchema is raised when the file's layout changes; an older file is
// thrown away.
const storeSchema = 1

var (
	metaBucket = []byte("_meta")
	errDamaged = errors.New("index file is damaged")
)

// indexMeta is what an index knows of itself.
type indexMeta struct {
	Schema  int       `json:"schema"`
	Created time.Time `json:"created"`
	Seq     uint64    `json:"seq"`
	AsOf    time.Time `json:"as_of"`
}

// openStore opens the file and reads the entries of bucket name. If the file
// can't be read it is made anew and why is returned.
func openStore(path, name string) (s *store, meta indexMeta, entries []Entry, why, err error) {
	s = &store{path: path, name: []byte(name)}
	meta, entries, why = s.open()
	if why == nil {
		return s, meta, entries, nil, nil
	}
	if errors.Is(why, bolterrors.ErrTimeout) { // another process has it
		return nil, indexMeta{}, nil, nil, fmt.Errorf("open index %s: %w", path, why)
	}
	if err := s.close(); err != nil {
		return nil, indexMeta{}, nil, why, fmt.Errorf("close index %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, indexMeta{}, nil, why, fmt.Errorf("replace index: %w", err)
	}
	if _, _, err := s.open(); err != nil {
		return nil, indexMeta{}, nil, why, errors.Join(fmt.Errorf("open index %s: %w", path, err), s.close())
	}
	return s, indexMeta{}, nil, why, nil
}

func (s *store) open() (meta indexMeta, entries []Entry, err error) {
	defer guard(&err)()
	s.db, err = bbolt.Open(s.path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return meta, nil, err
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		m, b := tx.Bucket(metaBucket), tx.Bucket(s.name)
		if m == nil || m.Get(s.name) == nil || b == nil {
			return nil
		}
		if meta, err = Decode[indexMeta](m.Get(s.name)); err != nil {
			return fmt.Errorf("%w: %v", errDamaged, err)
		}
		if meta.Schema != storeSchema {
			return fmt.Errorf("%w: its schema is %d, not %d", errDamaged, meta.Schema, storeSchema)
		}
		return b.ForEach(func(k, v []byte) error {
			e, err := unpack(k, v)
			entries = append(entries, e)
			return err
		})
	})
	return meta, entries, err
}

// guard turns what bbolt does on a damaged file, a panic or a fault of mapped
// memory, into an error.
func guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}
}

// write makes a batch of changes durable. rewrite empties the bucket first.
func (s *store) write(meta indexMeta, changes map[string]Entry, rewrite bool) (err error) {
	defer guard(&err)()
	meta.Schema = storeSchema
	data, err := Encode(meta)
	if err != nil {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		if rewrite && tx.Bucket(s.name) != nil {
			if err := tx.DeleteBucket(s.name); err != nil {
				return err
			}
		}
		b, err := tx.CreateBucketIfNotExists(s.name)
		if err != nil {
			return err
		}
		for key, e := range changes {
			if e.Gone {
				err = b.Delete([]byte(key))
			} else {
				err = b.Put([]byte(key), pack(e))
			}
			if err != nil {
				return err
			}
		}
		m, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		return m.Put(s.name, data)
	})
}

func (s *store) close() error {
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

// renew replaces the file by an empty one.
func (s *store) renew() (err error) {
	defer guard(&err)()
	if err := s.close(); err != nil {
		return err
	}
	if err := os.Remove(s.path); err != nil {
		return err
	}
	_, _, err = s.open()
	return err
}

// pack makes revision, checksum and value one. The checksum covers the key too,
// so that a value under another's key is found out.
func pack(e Entry) []byte {
	out := make([]byte, 8+sha256.Size, 8+sha256.Size+len(e.Value))
	binary.BigEndian.PutUint64(out, e.Rev)
	sum := entrySum(e)
	copy(out[8:], sum[:])
	return append(out, e.Value...)
}

func entrySum(e Entry) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%d\n", e.Key, e.Rev) // a hash takes everything
	h.Write(e.Value)
	return [sha256.Size]byte(h.Sum(nil))
}

func unpack(key, data []byte) (Entry, error) {
	if len(data) < 8+sha256.Size {
		return Entry{}, fmt.Errorf("%w: entry %q is too short", errDamaged, key)
	}
	e := Entry{Key: string(key), Rev: binary.BigEndian.Uint64(data), Value: bytes.Clone(data[8+sha256.Size:])}
	if sum := entrySum(e); !bytes.Equal(sum[:], data[8:8+sha256.Size]) {
		return Entry{}, fmt.Errorf("%w: checksum of entry %q does not hold", errDamaged, key)
	}
	return e, nil
}

// load opens the index's file and passes on what it holds. An index without its
// file works, but starts with nothing.
func (ix *Index) load() {
	s, meta, entries, why, err := openStore(ix.opts.File, ix.bucket.name)
	if why != nil {
		ix.log.Warn("index file is made anew", "file", ix.opts.File, "err", why)
	}
	if err != nil {
		ix.log.Warn("index is not kept on disk", "err", err)
		return
	}
	ix.store = s
	ix.created, ix.asOf = meta.Created, meta.AsOf
	ix.seq, ix.seen = meta.Seq, meta.Seq
	for _, e := range entries {
		ix.revs[e.Key] = e.Rev
	}
	if len(entries) > 0 {
		ix.opts.Apply(entries)
	}
}

func (ix *Index) keepWriting() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ix.ctx.Done():
			return
		case <-tick.C:
			if err := ix.flush(); err != nil {
				ix.log.Warn("index not written", "err", err)
			}
		}
	}
}

// flush writes what changed. A file that turns out to be damaged is made anew,
// and filled by the next pass.
func (ix *Index) flush() error {
	ix.flushing.Lock()
	defer ix.flushing.Unlock()
	ix.mu.Lock()
	meta := indexMeta{Created: ix.created, Seq: ix.seq, AsOf: ix.asOf.UTC()}
	changes, rewrite := ix.dirty, ix.rewrite
	if len(changes) == 0 && !rewrite && ix.asOf.Sub(ix.wrote) < ix.opts.Every {
		ix.mu.Unlock()
		return nil
	}
	ix.dirty, ix.rewrite, ix.wrote = map[string]Entry{}, false, ix.asOf
	ix.mu.Unlock()
	err := ix.store.write(meta, changes, rewrite)
	if err == nil {
		return nil
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for key, e := range changes {
		if _, newer := ix.dirty[key]; !newer {
			ix.dirty[key] = e
		}
	}
	ix.rewrite = ix.rewrite || rewrite
	if errors.Is(err, errDamaged) {
		ix.refill = true
		err = errors.Join(err, ix.store.renew())
		ix.Kick()
	}
	return fmt.Errorf("write index %s: %w", ix.opts.File, err)
}
