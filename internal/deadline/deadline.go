// Package deadline has timeouts that calls share. A context with a timer of its own costs
// five allocations for each call.
package deadline

import (
	"context"
	"sync"
	"time"
)

// Shared returns contexts with the same timeout. It can be used from several goroutines
// at once.
type Shared struct {
	timeout time.Duration

	mu    sync.Mutex
	ctx   context.Context
	until time.Time // ctx is for calls that begin before
}

// New returns contexts with a timeout.
func New(timeout time.Duration) *Shared { return &Shared{timeout: timeout} }

// Context returns a context that ends after the timeout or up to a tenth of it later.
// Calls that begin in the same tenth share one.
func (s *Shared) Context() context.Context {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now.Before(s.until) {
		later := s.timeout / 10
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout+later)
		context.AfterFunc(ctx, cancel) // no call ends it earlier
		s.ctx, s.until = ctx, now.Add(later)
	}
	return s.ctx
}
