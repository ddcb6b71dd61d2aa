package sqlite

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// fence runs the steps of a lease or a delivery. If a step was not heard of, the
// next one learns first what became of it.
type fence struct {
	mu      sync.Mutex
	pending *step
}

type step struct {
	kind   string
	op     *op
	done   <-chan struct{}
	stored bool // set before done is closed
}

func (f *fence) step(ctx context.Context, s *store, kind string, apply func(*tx) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pending; p != nil {
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: waiting for the commit: %w", engine.ErrUnavailable, ctx.Err())
		}
		f.pending = nil
		if p.stored && p.kind == kind {
			return nil
		}
	}
	p := &step{kind: kind}
	p.op = &op{apply: func(t *tx) error {
		err := apply(t)
		if err == nil {
			t.after(func() { p.stored = true })
		}
		return err
	}}
	done, err := s.begin(ctx, p.op)
	if err != nil {
		return err
	}
	p.done = done
	select {
	case <-done:
		if p.op.err != nil && p.stored {
			f.pending = p
		}
		return p.op.err
	case <-ctx.Done():
		f.pending = p
		return fmt.Errorf("%w: waiting for the commit: %w", engine.ErrUnavailable, ctx.Err())
	}
}

// fenced returns ErrLost if the last statement changed nothing.
func (t *tx) fenced() error {
	if t.Changes() != 1 {
		return engine.ErrLost
	}
	return nil
}
