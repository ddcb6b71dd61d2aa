package sqlite

import (
	"context"
	"sync"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// fence runs the steps of a lease or a delivery one at a time. If a step was
// interrupted, the next one first waits for its outcome.
type fence struct {
	mu      sync.Mutex
	pending *op // the step whose outcome is unknown to the caller
	kind    string
}

// learn waits for a step whose outcome is unknown. f.mu is held.
func (f *fence) learn(ctx context.Context) error {
	if f.pending == nil {
		return nil
	}
	return f.pending.wait(ctx)
}

// step runs a step. If the previous step was interrupted but stored, and is of the same
// kind, the step is not repeated.
func (f *fence) step(ctx context.Context, s *store, kind string, apply func(*tx) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.learn(ctx); err != nil {
		return err
	}
	if f.pending != nil && f.pending.stored && f.kind == kind {
		f.pending = nil
		return nil
	}
	o := &op{apply: apply}
	err := s.submit(ctx, o)
	f.pending, f.kind = nil, kind
	if o.done != nil && err != nil {
		select {
		case <-o.done:
			if o.stored {
				f.pending = o
			}
		default:
			f.pending = o
		}
	}
	return err
}

// fenced returns ErrLost if the last statement changed no row.
func (t *tx) fenced() error {
	if t.Changes() != 1 {
		return engine.ErrLost
	}
	return nil
}
