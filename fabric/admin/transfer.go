package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// Exports and imports are moved in chunks that the operator's side asks for, or
// sends, one by one: so the slower side sets the pace, and a chunk whose answer
// was lost can be asked for again.
const (
	headerTransfer = "Ripstop-Transfer" // the id
	headerChunk    = "Ripstop-Chunk"    // its number, from 0
	headerEnd      = "Ripstop-End"      // "true": the last chunk of an export
	chunkSize      = 256 << 10
	maxTransfers   = 8               // at a time
	maxImport      = 4 << 30         // bytes
	idleFor        = 2 * time.Minute // a transfer that nobody goes on with ends
)

// Transfer is an export or import that has begun. It goes on at the same node.
type Transfer struct {
	ID   string `json:"id"`
	Node string `json:"node"`
}

// transfers are those of one node.
type transfers struct {
	opts Options
	ctx  context.Context

	mu   sync.Mutex
	open map[string]*transfer
	wg   sync.WaitGroup
}

type transfer struct {
	id   string
	idle *time.Timer
	stop context.CancelFunc

	mu    sync.Mutex
	next  int    // number of the next chunk
	last  []byte // the chunk before it, of an export
	ended bool
	r     *io.PipeReader // of an export
	spool *os.File       // of an import
	size  int64
}

func newTransfers(ctx context.Context, opts Options) *transfers {
	return &transfers{opts: opts, ctx: ctx, open: map[string]*transfer{}}
}

func (ts *transfers) close() error {
	ts.mu.Lock()
	all := ts.open
	ts.open = map[string]*transfer{}
	ts.mu.Unlock()
	var errs []error
	for _, t := range all {
		errs = append(errs, t.close())
	}
	ts.wg.Wait()
	return errors.Join(errs...)
}

func (t *transfer) close() error {
	t.idle.Stop()
	t.stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spool == nil {
		return nil
	}
	err := errors.Join(t.spool.Close(), os.Remove(t.spool.Name()))
	t.spool = nil
	return err
}

func (ts *transfers) end(id string) error {
	ts.mu.Lock()
	t := ts.open[id]
	delete(ts.open, id)
	ts.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.close()
}

// begin registers a transfer; ctx ends with it.
func (ts *transfers) begin() (t *transfer, ctx context.Context, err error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.open) >= maxTransfers {
		return nil, nil, errorf(CodeRefused, "", "%d exports and imports are under way on %s already", maxTransfers, ts.opts.Node)
	}
	t = &transfer{id: rand.Text()}
	ctx, t.stop = context.WithCancel(ts.ctx)
	t.idle = time.AfterFunc(idleFor, func() {
		if err := ts.end(t.id); err != nil {
			ts.opts.Logger.Warn("abandoned transfer not cleaned up", "err", err)
		}
	})
	ts.open[t.id] = t
	return t, ctx, nil
}

// find returns the transfer a chunk belongs to, and the chunk's number.
func (ts *transfers) find(id string, m micro.Request) (*transfer, int, error) {
	ts.mu.Lock()
	t := ts.open[id]
	ts.mu.Unlock()
	if t == nil {
		return nil, 0, errorf(CodeNotFound, "", "%s knows no transfer %q: it has ended, or nobody went on with it for %s", ts.opts.Node, id, idleFor)
	}
	t.idle.Reset(idleFor)
	n := 0
	if text := m.Headers().Get(headerChunk); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			return nil, 0, errorf(CodeUsage, "", "%s %q is no number", headerChunk, text)
		}
	}
	return t, n, nil
}

func (ts *transfers) onExport(context.Context, request, micro.Request) (any, error) {
	if ts.opts.Export == nil {
		return nil, errorf(CodeRefused, "", "%s can't export", ts.opts.Node)
	}
	t, ctx, err := ts.begin()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	t.r = r
	ts.wg.Go(func() {
		defer context.AfterFunc(ctx, func() { _ = r.CloseWithError(context.Canceled) })() // always nil
		_ = w.CloseWithError(ts.opts.Export(ctx, w))                                      // always nil
	})
	return Transfer{ID: t.id, Node: ts.opts.Node}, nil
}

func (ts *transfers) onRead(_ context.Context, r request, m micro.Request) (any, error) {
	t, n, err := ts.find(r.Transfer, m)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.r == nil:
		return nil, errorf(CodeUsage, "", "transfer %s is an import", t.id)
	case n == t.next:
		buf := make([]byte, chunkSize)
		k, err := io.ReadFull(t.r, buf)
		t.ended = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !t.ended {
			return nil, fmt.Errorf("export from %s: %w", ts.opts.Node, err)
		}
		t.next, t.last = n+1, buf[:k]
	case n != t.next-1:
		return nil, errorf(CodeUsage, "", "chunk %d is not the one to come, %d, nor the one before it", n, t.next)
	}
	h := nats.Header{headerTransfer: []string{t.id}, headerEnd: []string{strconv.FormatBool(t.ended)}}
	return &nats.Msg{Header: h, Data: t.last}, nil
}

func (ts *transfers) onBegin(context.Context, request, micro.Request) (any, error) {
	if ts.opts.Import == nil {
		return nil, errorf(CodeRefused, "", "%s can't import", ts.opts.Node)
	}
	t, _, err := ts.begin()
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(ts.opts.SpoolDir, "ripstop-import-*")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep the import: %w", err), ts.end(t.id))
	}
	t.mu.Lock()
	t.spool = f
	t.mu.Unlock()
	return Transfer{ID: t.id, Node: ts.opts.Node}, nil
}

func (ts *transfers) onWrite(_ context.Context, _ request, m micro.Request) (any, error) {
	t, n, err := ts.find(m.Headers().Get(headerTransfer), m)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.spool == nil:
		return nil, errorf(CodeUsage, "", "transfer %s takes no data", t.id)
	case n == t.next-1: // its answer was lost
	case n != t.next:
		return nil, errorf(CodeUsage, "", "chunk %d is not the one to come, %d", n, t.next)
	case t.size+int64(len(m.Data())) > maxImport:
		return nil, errorf(CodeRefused, "", "an import has at most %d GiB", maxImport>>30)
	default:
		k, err := io.Copy(t.spool, bytes.NewReader(m.Data()))
		if err != nil {
			return nil, fmt.Errorf("keep the import: %w", err)
		}
		t.next, t.size = n+1, t.size+k
	}
	return Transfer{ID: t.id, Node: ts.opts.Node}, nil
}

func (ts *transfers) onImport(ctx context.Context, r request, m micro.Request) (any, error) {
	t, _, err := ts.find(r.Transfer, m)
	if err != nil {
		return nil, err
	}
	done, err := func() ([]string, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.spool == nil {
			return nil, errorf(CodeUsage, "", "transfer %s is an export", t.id)
		}
		if _, err := t.spool.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return ts.opts.Import(ctx, t.spool)
	}()
	if end := ts.end(t.id); end != nil {
		ts.opts.Logger.Warn("import not cleaned up", "err", end)
	}
	if err != nil {
		return nil, err
	}
	ts.opts.Logger.Info("imported", "bytes", t.size)
	return Result{Done: done}, nil
}

// chunk makes the request for, or with, a chunk.
func chunk(subject, id string, n int, data []byte) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: data, Header: nats.Header{headerTransfer: []string{id}, headerChunk: []string{strconv.Itoa(n)}}}
}
