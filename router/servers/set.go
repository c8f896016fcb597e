package servers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Attached is a server that Attach attached.
type Attached interface {
	// Close detaches it, letting calls in flight finish until ctx ends.
	Close(ctx context.Context) error
}

// Options configure a Set.
type Options struct {
	Path   string
	Attach func(Spec) (Attached, error)
	Drain  time.Duration // how long a removed server's calls may take to finish
	Logger *slog.Logger
}

// settle is how long the file must be quiet before it is read again: editors
// write in several steps.
const settle = 100 * time.Millisecond

// Set is the servers of a file, attached.
type Set struct {
	opts Options

	opened []Spec // as Open read them

	mu      sync.Mutex
	running map[string]running
}

type running struct {
	spec Spec
	Attached
}

// Open attaches the servers of the file. It fails if the file can't be used. A
// server that can't be attached, such as a command that is not installed here, is
// reported and left out: it must not take the others with it.
func Open(opts Options) (*Set, error) {
	s := &Set{opts: opts, running: map[string]running{}}
	specs, err := Load(opts.Path)
	if err != nil {
		return nil, err
	}
	s.opened = specs
	s.apply(specs)
	return s, nil
}

// apply makes the running servers those of specs. What did not change is left
// alone; what changed is attached anew before the old is let go, and if that
// fails the old stays. It returns how many of specs are not attached as they say.
func (s *Set) apply(specs []Spec) (failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := map[string]bool{}
	for _, spec := range specs {
		keep[spec.Name] = true
		old, had := s.running[spec.Name]
		if had && reflect.DeepEqual(old.spec, spec) {
			continue
		}
		if spec.Name != spec.Key {
			s.opts.Logger.Info("server attached under another name, since its own is no valid one", "key", spec.Key, "server", spec.Name)
		}
		a, err := s.opts.Attach(spec)
		if err != nil {
			failed++
			s.opts.Logger.Error("server not attached; save the servers file to try again", "server", spec.Key, "still_running_as_before", had, "err", err)
			continue
		}
		s.running[spec.Name] = running{spec, a}
		if had {
			s.detach(spec.Name, old)
		}
	}
	for name, old := range s.running {
		if !keep[name] {
			delete(s.running, name)
			s.detach(name, old)
		}
	}
	return failed
}

func (s *Set) detach(name string, old running) {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Drain)
	defer cancel()
	if err := old.Close(ctx); err != nil {
		s.opts.Logger.Warn("server detached with errors", "server", name, "err", err)
	}
}

// Run follows the file until ctx ends. A file that can't be used is reported,
// and what runs goes on running.
func (s *Set) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch servers file: %w", err)
	}
	defer w.Close()
	// The directory, not the file: editors replace files.
	if err := w.Add(filepath.Dir(s.opts.Path)); err != nil {
		return fmt.Errorf("watch servers file: %w", err)
	}
	if specs, err := Load(s.opts.Path); err != nil || !reflect.DeepEqual(specs, s.opened) {
		s.reload() // it changed before it was watched
	}
	quiet := time.NewTimer(settle)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return nil
			}
			if filepath.Clean(e.Name) == filepath.Clean(s.opts.Path) && e.Op != fsnotify.Chmod {
				quiet.Reset(settle)
			}
		case err := <-w.Errors:
			s.opts.Logger.Warn("servers file is not watched reliably", "err", err)
		case <-quiet.C:
			s.reload()
		}
	}
}

func (s *Set) reload() {
	specs, err := Load(s.opts.Path)
	if err != nil {
		s.opts.Logger.Error("servers file not taken; what runs goes on", "err", err)
		return
	}
	failed := s.apply(specs)
	s.opts.Logger.Info("servers file taken", "servers", len(specs)-failed, "not_attached", failed)
}

// Close detaches every server, all at once.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for name, r := range s.running {
		wg.Go(func() {
			if err := r.Close(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	wg.Wait()
	clear(s.running)
	return errors.Join(errs...)
}
