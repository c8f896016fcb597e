package kv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// exportFormat is the version of the export file: lines of JSON, a header, one
// line an entry, and a last line with their number and the SHA-256 of all
// lines before it, so that a file that was cut short is known as one.
const exportFormat = 1

// liveKinds are buckets that say what is, not what was: they fill by
// themselves, and mean nothing elsewhere.
var liveKinds = []string{"registry", "fabric"}

// ExportHeader is the first line of an export.
type ExportHeader struct {
	Format int       `json:"ripstop_export"`
	Node   string    `json:"node"`
	Region string    `json:"region"`
	At     time.Time `json:"at"`
}

type exportEntry struct {
	Kind     string          `json:"kind"` // what the bucket is for: its name up to region and generation
	Bucket   string          `json:"bucket"`
	Key      string          `json:"key"`
	Revision uint64          `json:"revision"`
	Value    json.RawMessage `json:"value"`
}

type exportEnd struct {
	End     bool   `json:"end"`
	Entries int    `json:"entries"`
	SHA256  string `json:"sha256"`
}

// Export writes what lasts of every bucket in js to w, but for the live ones,
// and returns the number of entries. A key that changes meanwhile is written as
// it was or as it is.
func Export(ctx context.Context, js jetstream.JetStream, from ExportHeader, w io.Writer) (int, error) {
	from.Format = exportFormat
	out := &exporter{w: bufio.NewWriter(w), sum: sha256.New()}
	if err := out.line(from); err != nil {
		return 0, fmt.Errorf("export: %w", err)
	}
	names := js.KeyValueStoreNames(ctx)
	var buckets []string
	for name := range names.Name() {
		if !slices.Contains(liveKinds, kindOf(name)) {
			buckets = append(buckets, name)
		}
	}
	if err := names.Error(); err != nil {
		return 0, fmt.Errorf("export: list buckets: %w", err)
	}
	slices.Sort(buckets)
	for _, name := range buckets {
		if err := out.bucket(ctx, js, name); err != nil {
			return out.entries, fmt.Errorf("export bucket %s: %w", name, err)
		}
	}
	err := out.line(exportEnd{End: true, Entries: out.entries, SHA256: hex.EncodeToString(out.sum.Sum(nil))})
	if err == nil {
		err = out.w.Flush()
	}
	if err != nil {
		return out.entries, fmt.Errorf("export: %w", err)
	}
	return out.entries, nil
}

// kindOf is what a bucket called <kind>_<region>_g<n> is for.
func kindOf(bucket string) string {
	kind, _, _ := strings.Cut(bucket, "_")
	return kind
}

type exporter struct {
	w       *bufio.Writer
	sum     hash.Hash
	entries int
}

func (e *exporter) line(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	e.sum.Write(data) // a hash takes everything
	_, err = e.w.Write(data)
	return err
}

func (e *exporter) bucket(ctx context.Context, js jetstream.JetStream, name string) error {
	bucket, err := js.KeyValue(ctx, name)
	if err != nil {
		return err
	}
	keys, err := bucket.ListKeys(ctx)
	if err != nil {
		return err
	}
	for key := range keys.Keys() {
		v, err := bucket.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // deleted since it was listed
		}
		if err != nil {
			return errors.Join(err, keys.Stop())
		}
		if !json.Valid(v.Value()) {
			return errors.Join(fmt.Errorf("key %s: %w", key, ErrCorrupt), keys.Stop())
		}
		if err := e.line(exportEntry{Kind: kindOf(name), Bucket: name, Key: key, Revision: v.Revision(), Value: v.Value()}); err != nil {
			return errors.Join(err, keys.Stop())
		}
		e.entries++
	}
	return ctx.Err() // a listing that ctx cut short ends without a word
}

// ImportResult says what an import did.
type ImportResult struct {
	Header    ExportHeader `json:"from"`
	Added     int          `json:"added"`
	Same      int          `json:"same"`      // there already, with this value
	Conflicts []string     `json:"conflicts"` // kind and key of what is there with another value, and was left as it is
}

// Import puts what r holds into the buckets that open returns for each kind.
// The file is checked whole before anything is written; what is there already
// is never overwritten. It may be repeated after a failure.
func Import(ctx context.Context, r io.ReadSeeker, open func(ctx context.Context, kind string) (jetstream.KeyValue, error)) (ImportResult, error) {
	var res ImportResult
	if err := checkExport(r, &res.Header); err != nil {
		return res, fmt.Errorf("import: %w", err)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return res, fmt.Errorf("import: %w", err)
	}
	buckets := map[string]jetstream.KeyValue{}
	err := exportLines(r, func(line []byte) error {
		var e exportEntry
		if err := json.Unmarshal(line, &e); err != nil || e.Key == "" {
			return err // the header, the end
		}
		bucket := buckets[e.Kind]
		if bucket == nil {
			var err error
			if bucket, err = open(ctx, e.Kind); err != nil {
				return fmt.Errorf("open the bucket for %s: %w", e.Kind, err)
			}
			buckets[e.Kind] = bucket
		}
		return res.add(ctx, bucket, e)
	})
	if err != nil {
		return res, fmt.Errorf("import: %w; repeat it when that is mended, what is there stays", err)
	}
	return res, nil
}

func (res *ImportResult) add(ctx context.Context, bucket jetstream.KeyValue, e exportEntry) error {
	_, err := bucket.Create(ctx, e.Key, e.Value)
	if !conflict(err) {
		if err == nil {
			res.Added++
		}
		return err
	}
	have, err := bucket.Get(ctx, e.Key)
	if err != nil {
		return err
	}
	if bytes.Equal(have.Value(), e.Value) {
		res.Same++
	} else {
		res.Conflicts = append(res.Conflicts, e.Kind+" "+e.Key)
	}
	return nil
}

// checkExport reads an export to its end and compares its sum.
func checkExport(r io.Reader, header *ExportHeader) error {
	sum := sha256.New()
	entries, lines := 0, 0
	var end exportEnd
	err := exportLines(r, func(line []byte) error {
		lines++
		switch {
		case end.End:
			return errors.New("the file goes on after its end")
		case lines == 1:
			if err := json.Unmarshal(line, header); err != nil || header.Format == 0 {
				return errors.New("this is no file that `ripstop admin export` wrote")
			}
			if header.Format != exportFormat {
				return fmt.Errorf("the file has format %d, and this version reads %d; use the version that wrote it", header.Format, exportFormat)
			}
		default:
			if err := json.Unmarshal(line, &end); err != nil {
				return fmt.Errorf("line %d is damaged: %w", lines, err)
			}
			if end.End {
				return nil
			}
			entries++
		}
		sum.Write(line) // a hash takes everything
		return nil
	})
	switch {
	case err != nil:
		return err
	case !end.End:
		return errors.New("the file was cut short; export again")
	case end.Entries != entries || end.SHA256 != hex.EncodeToString(sum.Sum(nil)):
		return errors.New("the file was changed since it was written: its sum does not hold; export again")
	}
	return nil
}

// exportLines calls f with each line, its end included.
func exportLines(r io.Reader, f func(line []byte) error) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			if len(line) > 0 {
				return errors.New("the file was cut short; export again")
			}
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(line); err != nil {
			return err
		}
	}
}
