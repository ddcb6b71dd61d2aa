// Package deadline has timeouts that calls share. A context with a timer of its own costs
// five allocations for each call, and more for the contexts below it.
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

	mu     sync.Mutex
	ctx    context.Context
	parent context.Context // of ctx
	until  time.Time       // ctx is for calls that begin before
}

// New returns contexts with a timeout.
func New(timeout time.Duration) *Shared { return &Shared{timeout: timeout} }

// Context returns a context that ends after the timeout or up to a hundredth of it later.
// Calls that begin in the same hundredth share one.
func (s *Shared) Context() context.Context { return s.Below(context.Background()) }

// Below is Context for a context that also ends when its parent does. Calls share one
// only if no call between them has another parent.
func (s *Shared) Below(parent context.Context) context.Context {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if parent != s.parent || !now.Before(s.until) {
		later := s.timeout / 100
		ctx, cancel := context.WithTimeout(parent, s.timeout+later)
		context.AfterFunc(ctx, cancel) // no call ends it earlier
		s.ctx, s.parent, s.until = ctx, parent, now.Add(later)
	}
	return s.ctx
}
