package pace

import (
	"context"
	"sync"
)

// Slots bound how many tasks of a queue run at once on this node, and how fast they start.
// Generations share them during a reload, because together they must not run more tasks
// than the limit, nor start them faster than the rate. The methods may be called from
// several goroutines at once.
type Slots struct {
	Pace *Pace

	mu       sync.Mutex
	taken    int
	released chan struct{} // closed when slots become free
}

// NewSlots returns slots that are free.
func NewSlots() *Slots { return &Slots{Pace: New(), released: make(chan struct{})} }

// Acquire waits until fewer than limit slots are taken. It takes the rest and returns their
// number, or 0 if ctx ends first.
func (s *Slots) Acquire(ctx context.Context, limit int) int {
	for ctx.Err() == nil {
		s.mu.Lock()
		n, released := limit-s.taken, s.released
		if n > 0 {
			s.taken = limit
			s.mu.Unlock()
			return n
		}
		s.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
		}
	}
	return 0
}

// Release frees n slots.
func (s *Slots) Release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	close(s.released)
	s.released = make(chan struct{})
}
